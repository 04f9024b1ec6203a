import http.server
import json
import threading
import time

import pytest

from priorzero.rollout.tools import Imagined, ImagineTool, SearchTool, ToolResult
from priorzero.rollout.web import ToolError, ToolUnavailableError
from priorzero.types import Message, PromptRow

ROW = PromptRow((Message("user", "Play."),), valid_actions=("go north", "open mailbox"))
OPTIONS = {"topk": 2, "timeout": 5.0, "max_bytes": 10_000, "max_query_chars": 50, "batch": 8}


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.server.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.server.answer(self)

    def log_message(self, *_):
        pass


def reply(body, status=200):
    body = body if isinstance(body, bytes) else json.dumps(body).encode()

    def answer(handler):
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def drip(handler):
    """A byte every 50 ms, for 3 seconds."""
    handler.send_response(200)
    handler.end_headers()
    try:
        for _ in range(60):
            handler.wfile.write(b" ")
            time.sleep(0.05)
    except OSError:
        pass  # the client has hung up, as it should


def endless(handler):
    handler.send_response(200)
    handler.end_headers()
    try:
        for _ in range(1000):
            handler.wfile.write(b"x" * 65_536)
    except OSError:
        pass  # as above


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked, server.answer = [], reply({})
        server.url = f"http://127.0.0.1:{server.server_port}/retrieve"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def search(server, *queries, **options):
    tool = SearchTool(url=server.url, **{**OPTIONS, **options})
    return tool.call(queries, [ROW] * len(queries))


def document(contents):
    return {"document": {"contents": contents}, "score": 1.5}


def test_search_sends_and_reads_what_search_r1_does(server):
    server.answer = reply({"result": [[document('"Ann"\nborn\n1900'), document("Bob")], []]})
    results = search(server, " who is ann ", "nobody")
    assert server.asked == [{"queries": ["who is ann", "nobody"], "topk": 2, "return_scores": True}]
    assert results == [
        ToolResult("Doc 1 (Title: Ann) born\n1900\nDoc 2 (Title: Bob)"),
        ToolResult("Nothing was found."),
    ]


def test_documents_without_scores_are_read(server):
    server.answer = reply({"result": [[{"contents": "T\nx"}]]})
    assert search(server, "a") == [ToolResult("Doc 1 (Title: T) x")]


def test_queries_that_cannot_be_sent_are_answered_here(server):
    server.answer = reply({"result": [[document("T\nx")]]})
    results = search(server, "", "x" * 51, "fine")
    assert server.asked[0]["queries"] == ["fine"]
    assert results == [
        ToolResult("The query is empty.", problem=True),
        ToolResult("The query is longer than 50 characters.", problem=True),
        ToolResult("Doc 1 (Title: T) x"),
    ]
    assert search(server, " ") == [ToolResult("The query is empty.", problem=True)]
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (reply(b"<html>"), r"is not JSON: b'<html>'"),
        (reply({"results": []}), "is it a retriever of the Search-R1 kind"),
        (reply({"result": []}), 'must answer 1 queries with {"result"'),
        (reply([1]), "is it a retriever"),
        (reply({"result": [[{"text": "x"}]]}), "without 'contents'"),
        (reply({"result": [[{"contents": 3}]]}), "without 'contents'"),
        (reply({"result": [None]}), "without 'contents'"),
        (reply({"detail": "too long"}, 413), "status 413: .*too long"),
        (reply({"detail": "topk"}, 422), "status 422: .*topk"),
        (reply(b"x" * 10_001), "more than 10000 bytes"),
        (endless, "more than 10000 bytes"),
    ],
)
def test_what_is_wrong_for_good(answer, message, server):
    server.answer = answer
    with pytest.raises(ToolError, match=message) as error:
        search(server, "a")
    assert not isinstance(error.value, ToolUnavailableError)


@pytest.mark.parametrize("status", [500, 503, 429])
def test_what_may_work_later(status, server):
    server.answer = reply({"detail": "busy"}, status)
    with pytest.raises(ToolUnavailableError, match=f"status {status}: .*busy"):
        search(server, "a")


@pytest.mark.parametrize("answer", [drip, lambda handler: time.sleep(1.5)])
def test_a_slow_service_times_out(answer, server):
    server.answer = answer
    start = time.monotonic()
    with pytest.raises(ToolUnavailableError, match=r"in time|timed out"):
        search(server, "a", timeout=0.3)
    assert time.monotonic() - start < 1.4


def test_a_service_that_is_down_or_hangs_up(server):
    server.answer = lambda handler: handler.connection.close()
    with pytest.raises(ToolUnavailableError, match="cannot be reached"):
        search(server, "a")
    with pytest.raises(ToolError, match=r"cannot be reached \(.*refused.*is the service up.*python retrieve.py"):
        SearchTool(url="http://127.0.0.1:1/retrieve", **OPTIONS).check()


def test_no_proxy_stands_before_this_machine(server, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    server.answer = reply({"result": [[]]})
    assert search(server, "a") == [ToolResult("Nothing was found.")]


def test_bad_settings_of_search():
    with pytest.raises(ValueError, match="must start with http"):
        SearchTool(url="file:///etc/passwd", **OPTIONS)
    with pytest.raises(ValueError, match="must be positive"):
        SearchTool(url="http://x", **{**OPTIONS, "topk": 0})


# ------------------------------------------------------------------------------------------------------------- imagine


def test_imagine_asks_for_valid_actions_only():
    asked = []

    def imagine(rows, actions):
        asked.append((list(rows), list(actions)))
        return [Imagined(1.0, 2.345, ("take lamp", "go north", "wait")), Imagined(0.0, -1.0, ())]

    free = PromptRow((Message("user", "Play."),))
    tool = ImagineTool(imagine=imagine, shown_actions=2, batch=4)
    results = tool.call(["Open  Mailbox.", "fly", "", "dance"], [ROW, ROW, ROW, free])
    assert asked == [([ROW, free], ["open mailbox", "dance"])]
    assert results == [
        ToolResult(
            "open mailbox: expected reward +1.00, value of what follows 2.35. Likely next actions: take lamp; go north"
        ),
        ToolResult("That is not a valid action here. Valid actions: go north; open mailbox", problem=True),
        ToolResult("The action is empty.", problem=True),
        ToolResult("dance: expected reward +0.00, value of what follows -1.00."),
    ]
    tool.check()


def test_imagine_is_not_asked_without_need():
    def imagine(rows, actions):
        raise AssertionError("not to be called")

    (result,) = ImagineTool(imagine=imagine, shown_actions=2, batch=4).call(["fly"], [ROW])
    assert result.problem


def test_an_imagination_that_answers_too_little():
    tool = ImagineTool(imagine=lambda rows, actions: [], shown_actions=2, batch=4)
    with pytest.raises(ValueError, match="imagined 0 of 1 actions"):
        tool.call(["go north"], [ROW])


def test_bad_settings_of_imagine():
    with pytest.raises(ValueError, match="batch positive"):
        ImagineTool(imagine=lambda rows, actions: [], shown_actions=2, batch=0)
