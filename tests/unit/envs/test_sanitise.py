import pytest
from hypothesis import given
from hypothesis import strategies as st

from priorzero.envs.sanitise import MAX_ACTION_BYTES, action_fault


@pytest.mark.parametrize("action", ["north", "Put the egg in the nest.", 'say "hello"', "", "take all; look", "x me!"])
def test_ordinary_actions_pass(action: str):
    assert action_fault(action) == ""


@pytest.mark.parametrize(
    "action", ["look\0", "a\\x", "\\", "look\nnorth", "look\r", "\ttake", "café", "\ud800", "\x7f"]
)
def test_unsafe_characters_are_refused(action: str):
    assert "printable ASCII" in action_fault(action)


def test_length_limit_counts_characters_of_ascii():
    assert action_fault("x" * MAX_ACTION_BYTES) == ""
    assert "longer than 190" in action_fault("x" * (MAX_ACTION_BYTES + 1))


@pytest.mark.parametrize(
    "action",
    [
        "save", "SAVE", " restore ", "quit", "q", "restart", "script", "unscript", "transcript on", "recording",
        "restor", "transc", "north. save", "look then quit", "take egg and save", "floyd, save", "$verify", "#random",
        "tw-print state", "oops save", "die", "resume", "suspend", "long", "super", "purloin lamp", "showobj",
        "undo", "look. undo", "pause", "trace 2", "trace on", "record. recording on",
    ],
)  # fmt: skip
def test_commands_to_the_interpreter_are_refused(action: str):
    assert "not to the game" in action_fault(action)


@pytest.mark.parametrize(
    "action", ["say save", "take record", "record", "undo rope", "trace circle", "ask guard about quit", "rest", "sav"]
)
def test_blocked_words_pass_where_they_are_not_the_verb(action: str):
    assert action_fault(action) == ""


@given(st.text(max_size=300))
def test_whatever_passes_is_one_safe_line(action: str):
    if not action_fault(action):
        assert action.isascii()
        assert len(action.encode()) <= MAX_ACTION_BYTES
        assert not set(action) & set("\0\n\r\\")


def test_action_that_is_not_text_is_refused():
    assert action_fault(None) == "is not text"  # type: ignore[arg-type]
