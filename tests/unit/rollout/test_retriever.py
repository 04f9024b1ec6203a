import http.client
import json
import re
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from search_service import needs_retriever, search_service
from segment_factory import make_segment

from priorzero.rollout import retriever
from priorzero.rollout.corpus import CorpusError, Document, read_corpus, transcripts, write_corpus
from priorzero.rollout.retriever import Bm25Index, Limits, RetrieverExtraError, main
from priorzero.rollout.tools import SearchTool, ToolResult
from priorzero.rollout.web import ToolError

needs_retriever()

ROOT = Path(__file__).resolve().parents[3]
DOCUMENTS = (
    Document("0", "Mailbox", "The small mailbox holds a leaflet."),
    Document("1", "Attic", "A lamp and a rope lie in the dark attic."),
    Document("2", "Forest", "Paths lead north and south; there is no lamp."),
)
LIMITS = Limits(body=2000, queries=3, query_chars=100, topk=5, requests=2)
TOOL = {"topk": 2, "timeout": 10.0, "max_bytes": 100_000, "max_query_chars": 1000, "batch": 8}


def write(folder, *lines):
    path = folder / "corpus.jsonl"
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines), encoding="utf-8")
    return path


# -------------------------------------------------------------------------------------------------------------- corpus


def test_both_kinds_of_documents_are_read(tmp_path):
    path = write(tmp_path, {"id": 7, "contents": '"T"\na\nb'}, "", {"title": "U", "text": "c", "url": "x"})
    assert read_corpus(path) == [Document("7", '"T"', "a\nb"), Document("2", "U", "c")]


def test_a_corpus_comes_back(tmp_path):
    write_corpus(tmp_path / "c.jsonl", DOCUMENTS)
    assert tuple(read_corpus(tmp_path / "c.jsonl")) == DOCUMENTS


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{oops", r"corpus.jsonl, line 2: is not JSON .*\{oops"),
        ("[1]", r'line 2: must be \{"id", "contents"\} or'),
        ({"title": "x"}, "line 2: must be"),
        ({"contents": 3}, "line 2: must be"),
    ],
)
def test_a_bad_line_is_named(line, message, tmp_path):
    with pytest.raises(CorpusError, match=message):
        read_corpus(write(tmp_path, {"contents": "fine"}, line))


def test_bad_corpora(tmp_path):
    with pytest.raises(CorpusError, match="no such file"):
        read_corpus(tmp_path / "none")
    with pytest.raises(CorpusError, match="is empty"):
        read_corpus(write(tmp_path, "", " "))
    (tmp_path / "latin").write_bytes(b"\xe9")
    with pytest.raises(CorpusError, match="is not UTF-8"):
        read_corpus(tmp_path / "latin")
    with pytest.raises(CorpusError, match="no document of the corpus has a word"):
        Bm25Index([Document("0", "the", "and")])


def test_games_played_can_be_searched():
    segment = make_segment(steps=5)
    documents = list(transcripts([segment], steps=2))
    assert [d.title for d in documents] == [
        f"{segment.game}, episode {segment.episode}, steps {segment.start + a} to {segment.start + b}"
        for a, b in ((0, 1), (2, 3), (4, 4))
    ]
    for number, document in enumerate(documents):
        for t in range(2 * number, min(2 * number + 2, 5)):
            assert f"> {segment.actions[t]}" in document.text
    assert len({d.id for d in documents}) == 3
    assert Bm25Index(documents).search([segment.actions[4]], 3)
    with pytest.raises(ValueError, match="at least one step"):
        list(transcripts([segment], steps=0))


# --------------------------------------------------------------------------------------------------------------- index


def test_the_best_document_comes_first():
    index = Bm25Index(DOCUMENTS)
    lamp, rope, none, stop_words, empty = index.search(["lamp", "rope lamp", "zebra", "the and", ""], 5)
    assert {f.document.title for f in lamp} == {"Attic", "Forest"}
    assert [f.document.title for f in rope] == ["Attic", "Forest"]
    assert rope[0].score > rope[1].score > 0
    assert none == stop_words == empty == []
    assert len(index.search(["lamp"], 1)[0]) == 1


# ------------------------------------------------------------------------------------------------------------- service


class Slow(Bm25Index):
    """Says that it is asked, and waits for its event before it answers."""

    asked, ready = threading.Semaphore(0), threading.Event()

    def search(self, queries, topk):
        if queries[0] == "slow":
            self.asked.release()
            assert self.ready.wait(20)
        return super().search(queries, topk)


@pytest.fixture(scope="module")
def url():
    with search_service(Slow(DOCUMENTS), LIMITS, topk=2) as address:
        yield address


def ask(url, body, method="POST", path="/retrieve"):
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    try:
        connection.request(method, path, body if isinstance(body, bytes) else json.dumps(body))
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def test_replies_are_those_of_search_r1(url):
    status, reply = ask(url, {"queries": ["rope lamp", "zebra"], "topk": 1, "return_scores": True})
    assert status == 200
    ((best,), nothing) = reply["result"]
    assert best["document"] == {"id": "1", "contents": "Attic\nA lamp and a rope lie in the dark attic."}
    assert best["score"] > 0
    assert nothing == []
    status, reply = ask(url, {"queries": ["rope lamp"]})
    assert [document["id"] for document in reply["result"][0]] == ["1", "2"]


def test_health(url):
    assert ask(url, b"", "GET", "/health") == (200, {"status": "ok", "documents": 3})


def test_the_search_tool_and_the_service_fit(url):
    tool = SearchTool(url=url, **TOOL)
    tool.check()
    (result, nothing) = tool.call(["leaflet", "zebra"], [None, None])
    assert result == ToolResult("Doc 1 (Title: Mailbox) The small mailbox holds a leaflet.")
    assert nothing == ToolResult("Nothing was found.")
    with pytest.raises(ToolError, match=r"status 422: .*a request has 1 to 3 queries, not 4"):
        tool.call(["a"] * 4, [None] * 4)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{oops", 422, "Invalid JSON"),
        (b"\xff", 422, "the request must be"),
        (b"", 422, "the request must be"),
        ([], 422, "the request must be"),
        ({}, 422, "queries: Field required"),
        ({"queries": "a"}, 422, "queries: Input should be a valid"),
        ({"queries": [1]}, 422, "queries.0: Input should be a valid string"),
        ({"queries": ["a"], "k": 3}, 422, "k: Extra inputs"),
        ({"queries": []}, 422, "1 to 3 queries, not 0"),
        ({"queries": ["a"] * 4}, 422, "1 to 3 queries, not 4"),
        ({"queries": ["a" * 101]}, 422, "at most 100 characters"),
        ({"queries": ["a"], "topk": 0}, 422, "topk is 1 to 5, not 0"),
        ({"queries": ["a"], "topk": 6}, 422, "topk is 1 to 5, not 6"),
        ({"queries": ["a" * 2000]}, 413, "more than 2000 bytes: send fewer queries"),
        (b"x" * 15_000, 413, "more than 2000 bytes"),
    ],
)
def test_bad_requests_are_told_why(body, status, message, url):
    found, reply = ask(url, body)
    assert found == status
    assert message in reply["detail"]


def test_a_huge_request_is_not_read(url):
    with pytest.raises(ToolError, match=r"413|cannot be reached"):
        SearchTool(url=url, **{**TOOL, "max_query_chars": 10**9}).call(["x" * 50_000_000], [None])


def test_a_busy_service_says_so(url):
    Slow.ready.clear()
    waiting = [threading.Thread(target=ask, args=(url, {"queries": ["slow"]})) for _ in range(LIMITS.requests)]
    for thread in waiting:
        thread.start()
    try:
        assert all(Slow.asked.acquire(timeout=10) for _ in waiting)
        busy = {"detail": "2 requests are being answered: try again later"}
        assert ask(url, {"queries": ["lamp"]}) == (503, busy)
        with pytest.raises(ToolError, match="status 503"):
            SearchTool(url=url, **TOOL).check()
        assert ask(url, b"", "GET", "/health")[0] == 200
    finally:
        Slow.ready.set()
        for thread in waiting:
            thread.join()
    assert ask(url, {"queries": ["lamp"]})[0] == 200


# ------------------------------------------------------------------------------------------------------------- command


def test_the_command_serves_on_this_machine(tmp_path):
    write_corpus(tmp_path / "c.jsonl", DOCUMENTS)
    command = [sys.executable, "retrieve.py", str(tmp_path / "c.jsonl"), "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            said = ""
            while "running on" not in said:
                line = process.stderr.readline()
                assert line, said
                said += line
            assert "3 documents of" in said
            url = said.split("running on ")[1].split()[0]
            assert url.startswith("http://127.0.0.1:")
            assert ask(url, {"queries": ["lamp"]})[0] == 200
        finally:
            process.terminate()
            process.wait(30)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.jsonl"], "none.jsonl: no such file"),
        (["CORPUS", "--topk", "200"], r"--topk must be between 1 and --max-topk \(100\), not 200"),
        (["CORPUS", "--max-body", "0"], "every limit of the retriever must be at least 1"),
    ],
)
def test_the_command_refuses_in_a_sentence(arguments, message, tmp_path, capsys):
    write_corpus(tmp_path / "c.jsonl", DOCUMENTS)
    with pytest.raises(SystemExit, match="1"):
        main([str(tmp_path / "c.jsonl") if a == "CORPUS" else a for a in arguments])
    said = capsys.readouterr().err
    assert re.search(message, said)
    assert len(said.splitlines()) == 1


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setattr(retriever.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RetrieverExtraError, match=r"needs bm25s: pip install 'priorzero\[retriever\]'"):
        Bm25Index(DOCUMENTS)
