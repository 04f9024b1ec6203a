import pytest
from hypothesis import given
from hypothesis import strategies as st

from priorzero.text.parse import normalise, parse_answer

VALID = ("go north", "open mailbox", "say 'hello'")


@pytest.mark.parametrize(
    ("format", "text", "format_ok", "action", "reasoning"),
    [
        ("plain", "Action: go north", True, "go north", ""),
        ("plain", " action:  Go   NORTH. \n", True, "go north", ""),
        ("plain", 'Action: "open mailbox"', True, "open mailbox", ""),
        ("plain", "Action: fly", True, None, ""),
        ("plain", "go north", False, None, ""),
        ("plain", "Action: go north\nAction: open mailbox", False, None, ""),
        ("plain", "Action:", False, None, ""),
        ("plain", "", False, None, ""),
        ("reasoning", "Reasoning: it is\ndark\nAction: open mailbox", True, "open mailbox", "it is\ndark"),
        ("reasoning", "Reasoning:\nAction: go north", True, "go north", ""),
        ("reasoning", "Action: go north", False, None, ""),
        ("reasoning", "Reasoning: north", False, None, ""),
        ("think_answer", "<think>dark</think> <answer>go north</answer>", True, "go north", "dark"),
        ("think_answer", "<think></think>\n<answer> Open mailbox </answer>\n", True, "open mailbox", ""),
        ("think_answer", "<think>dark</think><answer>go north", False, None, ""),
        ("think_answer", "<answer>go north</answer>", False, None, ""),
        ("think_answer", "<think>a</think><think>b</think><answer>go north</answer>", False, None, ""),
        ("think_answer", "<think>dark</think><answer></answer>", False, None, ""),
    ],
)
def test_answers(format, text, format_ok, action, reasoning):
    parsed = parse_answer(text, VALID, format)
    assert (parsed.format_ok, parsed.action, parsed.reasoning) == (format_ok, action, reasoning)


def test_unknown_format():
    with pytest.raises(ValueError, match="json"):
        parse_answer("x", VALID, "json")


words = st.text("abcdefgh xyz", min_size=1, max_size=20).map(lambda t: " ".join(t.split())).filter(bool)


@given(
    actions=st.lists(words, min_size=1, max_size=5, unique=True),
    reasoning=words,
    format=st.sampled_from(["plain", "reasoning", "think_answer"]),
    data=st.data(),
)
def test_round_trip(actions, reasoning, format, data):
    action = data.draw(st.sampled_from(actions))
    text = {
        "plain": f"Action: {action}",
        "reasoning": f"Reasoning: {reasoning}\nAction: {action}",
        "think_answer": f"<think>{reasoning}</think>\n<answer>{action}</answer>",
    }[format]
    parsed = parse_answer(text, actions, format)
    assert parsed.format_ok
    assert parsed.action == action
    assert parsed.reasoning == ("" if format == "plain" else reasoning)


@given(st.text(max_size=60), st.sampled_from(["plain", "reasoning", "think_answer"]))
def test_any_text_is_read_and_names_only_valid_actions(text, format):
    parsed = parse_answer(text, VALID, format)
    assert parsed.action in (*VALID, None)
    assert parsed.format_ok or parsed.action is None


@given(st.text(max_size=30))
def test_normalise_twice_is_normalise(text):
    assert normalise(normalise(text)) == normalise(text)
