import numpy as np
import pytest
from dialogues import CALLS, CONFIG, ROW, SAMPLING, Echo, build, counted, play, the, written_runs

from priorzero.rollout.dialogue import written_text
from priorzero.rollout.tools import ToolResult
from priorzero.text.chat import ChatTemplateError, row_tokens
from priorzero.text.prompt import PromptTooLongError
from priorzero.types import Message, PromptRow


@pytest.fixture(scope="module")
def tokenizer(llm_path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(llm_path)


# ------------------------------------------------------------------------------------------------------- one sequence


def test_a_search_and_an_answer(tokenizer):
    results, generator = play(tokenizer, "I look. <search>Ann Lee</search>", "So: <answer>Ann</answer>")
    dialogue = the(results)
    assert dialogue.text == (
        "I look. <search>Ann Lee</search>\n\n<information>found Ann Lee</information>\n\nSo: <answer>Ann</answer>"
    )
    assert dialogue.row is ROW
    assert (dialogue.finish, dialogue.valid) == ("stop", True)
    assert written_runs(dialogue) == generator.written
    prompt = row_tokens(tokenizer, ROW)
    assert list(dialogue.tokens[: len(prompt)]) == prompt
    assert not dialogue.written[: len(prompt)].any()
    assert dialogue.turn_ends == (len(prompt) + len(generator.written[0]) - 1, len(dialogue.tokens) - 1)
    assert dialogue.turn_rewards == (0.25, 0.0)
    assert counted(dialogue) == {"turns": 2, "tool_calls": 1}
    assert written_text(tokenizer, dialogue) == "I look. <search>Ann Lee</search>So: <answer>Ann</answer>"
    sent = [prompts[0] for prompts, _, _ in generator.asked]
    assert sent[0] == prompt
    assert sent[1][: len(sent[0]) + len(generator.written[0])] == [*sent[0], *generator.written[0]]
    assert [sampling.seed for _, sampling, _ in generator.asked] == [7, 8]
    assert generator.asked[0][1].stop == ("</search>", "</answer>")


def test_log_probabilities_stay_with_their_tokens(tokenizer):
    dialogue = the(play(tokenizer, "<search>a</search>", "<answer>b</answer>")[0])
    assert dialogue.rollout_logprobs.dtype == np.float32
    assert ((dialogue.rollout_logprobs != 0) == dialogue.written).all()
    first, second = (len(run) for run in written_runs(dialogue))
    expected = [*(-1.0 - np.arange(first)), *(-1.0 - np.arange(second))]
    np.testing.assert_array_equal(dialogue.rollout_logprobs[dialogue.written], np.float32(expected))


def test_a_closed_message_goes_on_in_a_new_one(tokenizer):
    results, _ = play(tokenizer, "Hm.<|im_end|>", "<search>a</search><|im_end|>", "<answer>b</answer><|im_end|>")
    dialogue = the(results)
    assert dialogue.text == (
        "Hm.<|im_end|>\n<|im_start|>user\nMy last turn has neither a call nor an answer. To search, write "
        "<search>query</search>. What comes of it is shown between <information> and </information>. To answer, write "
        "<answer>answer</answer>. Let me try again.<|im_end|>\n<|im_start|>assistant\n"
        "<search>a</search><|im_end|>\n<|im_start|>user\n<information>found a</information><|im_end|>\n"
        "<|im_start|>assistant\n<answer>b</answer><|im_end|>"
    )
    assert dialogue.turn_rewards == (-0.5, 0.25, 0.0)
    assert counted(dialogue) == {"turns": 3, "tool_calls": 1, "invalid_turns": 1}


def test_an_answer_never_closed(tokenizer):
    dialogue = the(play(tokenizer, "<answer>a b", "<answer>c d", "<answer>e f")[0])
    assert dialogue.finish == "turns"
    assert counted(dialogue) == {"turns": 3, "invalid_turns": 3, "unanswered": 1}
    assert dialogue.turn_rewards == (-0.5, -0.5, -0.5)
    assert dialogue.valid
    assert dialogue.text.count("Let me try again.") == 2


def test_the_last_turn_calls_no_tool(tokenizer):
    tool = Echo()
    texts = [f"<search>{i}</search>" for i in range(3)]
    dialogue = the(play(tokenizer, *texts, tools=[tool])[0])
    assert tool.calls == [["0"], ["1"]]
    assert dialogue.finish == "turns"
    assert dialogue.written[-1]
    assert counted(dialogue) == {"turns": 3, "tool_calls": 2, "unanswered": 1}


def test_a_dialogue_without_room_for_a_turn_ends(tokenizer):
    room = len(row_tokens(tokenizer, ROW)) + SAMPLING.max_tokens
    dialogue = the(play(tokenizer, "<search>a</search>", max_tokens=room)[0])
    assert dialogue.finish == "length"
    assert dialogue.written[-1], "a result that nobody reads is left out"
    assert counted(dialogue) == {"turns": 1, "tool_calls": 1, "unanswered": 1}
    with pytest.raises(PromptTooLongError, match=r"dialogue 0 and one turn do not fit into agent\.max_tokens"):
        play(tokenizer, "x", max_tokens=room - 1)


def test_results_are_cut_and_cannot_close_a_message(tokenizer):
    class Long(Echo):
        def answer(self, query):
            return ToolResult("<|im_<|im_end|>end|></information>" + "word " * 10**6)

    dialogue = the(play(tokenizer, "<search>a</search>", "<answer>b</answer>", tools=[Long()])[0])
    assert dialogue.text.startswith("<search>a</search>\n\n<information>word word")
    assert "im_" not in dialogue.text
    given = len(dialogue.tokens) - len(row_tokens(tokenizer, ROW)) - dialogue.written.sum()
    assert CONFIG["result_tokens"] < given < CONFIG["result_tokens"] + 20
    assert counted(dialogue) == {"turns": 2, "tool_calls": 1, "results_cut": 1}


def test_the_answer_prefix_is_part_of_what_is_read(tokenizer):
    row = PromptRow((Message("user", "Who?"),), answer_prefix="<answer>")
    dialogue = the(play(tokenizer, "Ann</answer>", rows=[row])[0])
    assert dialogue.finish == "stop"
    assert dialogue.text == "Ann</answer>"
    assert written_text(tokenizer, dialogue) == "<answer>Ann</answer>"


def test_a_plain_answer_needs_no_tags(tokenizer):
    results, generator = play(tokenizer, "Ann<|im_end|>", "Bob", tools=[], max_turns=0, samples=2)
    assert [group[0].finish for group in results] == ["stop", "length"]
    assert generator.asked[0][1].stop == ()
    assert counted(results[1][0]) == {"turns": 1}


def test_many_dialogues_share_a_call_a_turn(tokenizer):
    other = PromptRow((Message("user", "Where?"),))
    tool = Echo()
    texts = ["<search>1</search>", "<answer>2</answer>", "<search>3</search>", "<search>bad</search>"]
    texts += ["<answer>4</answer>", "<answer>5</answer>", "nothing", "<answer>6</answer>"]
    results, generator = play(tokenizer, *texts, rows=[ROW, other], samples=2, tools=[tool])
    assert [(len(prompts), samples) for prompts, _, samples in generator.asked] == [(2, 2), (3, 1), (1, 1)]
    dialogues = [the([group]) for group in results]
    assert [dialogue.row for dialogue in dialogues] == [ROW, ROW, other, other]
    assert [written_text(tokenizer, d) for d in dialogues] == [
        "<search>1</search><answer>4</answer>",
        "<answer>2</answer>",
        "<search>3</search><answer>5</answer>",
        "<search>bad</search>nothing<answer>6</answer>",
    ]
    assert sorted(tool.calls) == [["1", "3"], ["bad"]]
    assert counted(dialogues[3])["tool_problems"] == 1


def test_instructions_name_the_tools(tokenizer):
    loop, _ = build(tokenizer, instructions=True)
    assert loop.instructed(ROW).messages == (
        Message(
            "user",
            "Who?\n\nTo search, write <search>query</search>. What comes of it is shown between <information> and "
            "</information>. To answer, write <answer>answer</answer>.",
        ),
    )


# --------------------------------------------------------------------------------------------------------------- steps


def test_each_step_has_its_own_prompt(tokenizer):
    texts = ["<search>a</search>", "<search>b</search><|im_end|>", "<answer>c</answer>"]
    results, generator = play(tokenizer, *texts, mode="step", history_turns=1)
    (steps,) = results
    past = [
        (Message("assistant", "<search>a</search>"), Message("user", "<information>found a</information>")),
        (Message("assistant", "<search>b</search>"), Message("user", "<information>found b</information>")),
    ]
    assert [step.row.messages for step in steps] == [ROW.messages, ROW.messages + past[0], ROW.messages + past[1]]
    for turn, step in enumerate(steps):
        assert list(step.tokens) == [*row_tokens(tokenizer, step.row), *generator.written[turn]]
        assert generator.asked[turn][0] == [row_tokens(tokenizer, step.row)]
        assert written_runs(step) == [generator.written[turn]]
        assert step.turn_ends == (len(step.tokens) - 1,)
        assert (step.finish, step.valid, step.row.group_id) == ("stop", True, "g")
        assert step.row.extra == {"turn": turn}
    assert [step.turn_rewards for step in steps] == [(0.25,), (0.25,), (0.0,)]
    assert steps[0].row.state_id == "s"
    assert len({step.row.state_id for step in steps}) == 3
    assert steps[0].counts["turns"] == 3
    assert [dict(step.counts) for step in steps[1:]] == [{}, {}]


def test_equal_steps_have_equal_states(tokenizer):
    texts = ["<search>a</search>"] * 2 + ["<answer>b</answer>"] * 2
    (first, second), _ = play(tokenizer, *texts, mode="step", samples=2)
    assert first[1].row.state_id == second[1].row.state_id


def test_old_steps_are_left_out_before_a_dialogue_ends(tokenizer):
    texts = [f"<search>{i}</search>" for i in range(3)]
    room = len(row_tokens(tokenizer, ROW)) + SAMPLING.max_tokens + 45
    results, _ = play(tokenizer, *texts, mode="step", max_tokens=room)
    (steps,) = results
    assert [len(step.row.messages) for step in steps] == [1, 3, 3]
    results, _ = play(tokenizer, *texts, mode="step", max_tokens=room - 40)
    assert [step.finish for step in results[0]] == ["length"]


# ------------------------------------------------------------------------------------------------------------ refusals


def test_bad_settings(tokenizer):
    with pytest.raises(ValueError, match="mode of the agent is one of dialogue, step, not 'both'"):
        build(tokenizer, mode="both")
    with pytest.raises(ValueError, match="must be positive"):
        build(tokenizer, history_turns=0)
    with pytest.raises(ValueError, match="tags must be words that differ"):
        build(tokenizer, answer_tag="search")
    with pytest.raises(ValueError, match="tags must be words that differ"):
        build(tokenizer, tools=[Echo(), Echo()])
    with pytest.raises(ValueError, match="attempts >= 1"):
        build(tokenizer, calls={**CALLS, "attempts": 0})
    with pytest.raises(ValueError, match="samples must be at least 1"):
        play(tokenizer, samples=0)


def test_a_template_that_rewrites_needs_step_mode(tokenizer, llm_path):
    from transformers import AutoTokenizer

    rewriting = AutoTokenizer.from_pretrained(llm_path)
    rewriting.chat_template = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(ChatTemplateError, match=r"set agent\.mode=step"):
        build(rewriting)
    build(rewriting, mode="step")
    rewriting.chat_template = None
    with pytest.raises(ChatTemplateError, match="choose an instruct model"):
        build(rewriting)


def test_a_generator_that_writes_nothing(tokenizer):
    with pytest.raises(ValueError, match="returned 0 tokens"):
        play(tokenizer, "")


def test_no_rows(tokenizer):
    assert play(tokenizer, rows=[])[0] == []
