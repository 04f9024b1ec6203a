"""Tools that fail, hang and lie, under the agent loop."""

import threading
import time

import pytest
from dialogues import CALLS, Echo, counted, play, the

from priorzero.rollout.tools import ToolResult
from priorzero.rollout.web import ToolError, ToolUnavailableError


class Failing(Echo):
    """Does what the query says: sleeps so many seconds, is down, is broken, is unavailable the first time."""

    batch = 1

    def call(self, queries, rows):
        self.calls.append(list(queries))
        query = queries[0]
        if query.startswith("sleep"):
            time.sleep(float(query.split()[1]))
        if query == "down" or (query == "flaky" and self.calls.count(["flaky"]) == 1):
            raise ToolUnavailableError("connection refused")
        if query == "broken":
            raise ToolError("status 422")
        if query == "bug":
            raise KeyError("oops")
        return [] if query == "short" else [ToolResult(f"found {query}")]


@pytest.fixture(scope="module")
def tokenizer(llm_path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(llm_path)


def test_a_fault_for_good_masks_the_dialogue(tokenizer, caplog):
    dialogue = the(play(tokenizer, "<search>down</search>", tools=[Failing()])[0])
    assert (dialogue.finish, dialogue.valid) == ("fault", False)
    assert counted(dialogue) == {"turns": 1, "tool_calls": 1, "tool_faults": 1, "unanswered": 1}
    assert "1 of 1 tool calls of a turn failed: connection refused" in caplog.text


@pytest.mark.parametrize("query", ["down", "broken", "short"])
def test_a_fault_may_be_survived(query, tokenizer):
    texts = [f"<search>{query}</search>", "<answer>a</answer>"]
    dialogue = the(play(tokenizer, *texts, tools=[Failing()], max_faults=1)[0])
    assert (dialogue.finish, dialogue.valid) == ("stop", True)
    assert "<information>The search tool did not answer.</information>" in dialogue.text
    assert counted(dialogue)["tool_faults"] == 1


def test_what_is_not_available_is_tried_again(tokenizer):
    calls = {**CALLS, "attempts": 2}
    texts = ["<search>flaky</search>", "<search>broken</search>", "<answer>a</answer>"]
    tool = Failing()
    dialogue = the(play(tokenizer, *texts, tools=[tool], calls=calls, max_faults=1)[0])
    assert "found flaky" in dialogue.text
    assert tool.calls == [["flaky"], ["flaky"], ["broken"]], "what is refused is not tried again"
    assert counted(dialogue) == {"turns": 3, "tool_calls": 2, "tool_retries": 1, "tool_faults": 1}


def test_a_tool_that_hangs_holds_up_nobody_for_long(tokenizer):
    calls = {**CALLS, "timeout": 0.5, "threads": 2}
    first = [f"<search>{q}</search>" for q in ("sleep 30", "sleep 30", "quick", "sleep 0.1", "also quick")]
    texts = [*first, *(f"<answer>{i}</answer>" for i in range(5))]
    start = time.monotonic()
    results, _ = play(tokenizer, *texts, samples=5, tools=[Failing()], calls=calls, max_faults=1)
    assert time.monotonic() - start < 5
    dialogues = [group[0] for group in results]
    assert [d.counts["tool_timeouts"] for d in dialogues] == [1, 1, 0, 0, 0]
    assert "The search tool did not answer in time." in dialogues[0].text
    assert all(f"found {q}" in d.text for q, d in zip(("quick", "sleep 0.1", "also quick"), dialogues[2:], strict=True))
    assert [d.finish for d in dialogues] == ["stop"] * 5


def test_a_bug_of_a_tool_is_not_hidden(tokenizer):
    with pytest.raises(KeyError, match="oops"):
        play(tokenizer, "<search>bug</search>", tools=[Failing()])


def test_tools_that_are_not_concurrent_run_here(tokenizer):
    class Here(Echo):
        concurrent = False

        def answer(self, query):
            return ToolResult(threading.current_thread().name)

    dialogue = the(play(tokenizer, "<search>a</search>", "<answer>b</answer>", tools=[Here()])[0])
    assert threading.current_thread().name in dialogue.text


def test_a_fault_masks_all_steps(tokenizer):
    results, _ = play(tokenizer, "<search>a</search>", "<search>down</search>", tools=[Failing()], mode="step")
    assert [(step.finish, step.valid) for step in results[0]] == [("fault", False)] * 2
