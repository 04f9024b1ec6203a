from functools import partial
from itertools import pairwise

import pytest

from priorzero.rl import rewards as rw
from priorzero.text.parse import parse_answer
from priorzero.types import Answer, Message, PromptRow

ACTIONS = ("open mailbox", "go north", "take leaflet")


def row(**fields) -> PromptRow:
    fields = {"answer": "open mailbox", "valid_actions": ACTIONS, "data_source": "game"} | fields
    return PromptRow(messages=(Message("user", "You see a mailbox."),), **fields)


def said(action: str | None, text: str | None = None, **fields) -> Answer:
    return Answer(row(**fields), f"Action: {action}" if text is None else text, action, "stop")


def test_exact_match():
    reward = rw.ExactMatch(value=1.0)
    answers = [said("open mailbox"), said("go north"), said(None), said("Open  Mailbox"), said("go north", answer="")]
    assert reward(answers) == [1.0, 0.0, 0.0, 1.0, None]


def test_valid_and_invalid_action():
    answers = [said("go north"), said("fly"), said(None), said("go north", valid_actions=())]
    assert rw.ValidAction(value=0.1)(answers) == [0.1, 0.0, 0.0, None]
    assert rw.InvalidAction(value=-0.5)(answers) == [0.0, -0.5, -0.5, None]


@pytest.mark.parametrize(
    ("format", "good", "bad"),
    [
        ("think_answer", "<think>hm</think>\n<answer>go north</answer>", "<answer>go north</answer>"),
        ("reasoning", "Reasoning: it is dark.\nAction: go north", "Action: go north\nReasoning: it is dark."),
        ("plain", "Action: dance", "dance"),  # well written, though no valid action
    ],
)
def test_format_with_the_parser_of_the_project(format, good, bad):
    reward = rw.Format(value=0.1, parse=partial(parse_answer, format=format))
    assert reward([said(None, good), said(None, bad)]) == [0.1, 0.0]


def test_fuzzy_match():
    reward = rw.FuzzyMatch(value=2.0, threshold=0.5)
    answers = [
        said("open mailbox"),
        said(None, "I think.\nopen mailbx"),  # the last line: 11 of 12 characters
        said(None, "<answer>Open Mailbox</answer> it is"),
        said("go north"),
        said(None, ""),
        said("go north", answer=""),
    ]
    assert reward(answers) == [2.0, pytest.approx(2 * 22 / 23), 2.0, 0.0, 0.0, None]


def qa(text: str, answer: str = "", **extra) -> Answer:
    return Answer(row(answer=answer, valid_actions=(), data_source="qa", extra=extra), text, None, "stop")


def test_question_match():
    reward = rw.QuestionMatch(value=1.0, format_value=0.2)
    both = ["Barack Obama", "Obama"]
    answers = [
        qa("<think>who?</think><answer>the OBAMA.</answer>", answers=both),
        qa("<answer>Obama</answer> no, <answer>Trump</answer>", answers=both),  # the last one counts
        qa("It was Obama", answers=both),
        qa("<answer> Obama\n</answer>", answers="obama"),
        qa("<answer>An apple</answer>", answer="apple"),
        qa("<answer>apple</answer>"),
    ]
    assert reward(answers) == [1.0, 0.2, 0.0, 1.0, 1.0, None]


def test_value_of_the_search():
    values = {"open mailbox": 3.0, "go north": 1.0}
    raw = rw.SearchValue(weight=0.5, scale="raw", invalid=-1.0)
    answers = [
        said(action, extra={"action_values": values}) for action in ("open mailbox", "go north", "take leaflet", None)
    ]
    assert raw([*answers, said("go north")]) == [1.5, 0.5, None, -1.0, None]
    scaled = rw.SearchValue(weight=2.0, scale="range", invalid=-1.0)
    assert scaled(answers) == [2.0, 0.0, None, -1.0]
    assert scaled([said("go north", extra={"action_values": {"go north": 4.0}})]) == [0.0]
    with pytest.raises(ValueError, match="choose raw or range"):
        rw.SearchValue(weight=1.0, scale="rank", invalid=0.0)


def test_progress_shaping():
    extra = {"potential": 2.0, "next_potentials": {"open mailbox": 4.0, "go north": 0.0}}
    answers = [said(action, extra=extra) for action in ("open mailbox", "go north", "take leaflet", None)]
    reward = rw.ProgressShaping(weight=2.0, gamma=0.5)
    assert reward([*answers, said("go north")]) == [0.0, -4.0, None, -2.0, None]


def test_shaping_telescopes():
    gamma, potentials = 0.9, [1.0, 3.0, -2.0, 0.0]  # the last state is an end
    reward = rw.ProgressShaping(weight=1.0, gamma=gamma)
    steps = [
        said("go north", extra={"potential": now, "next_potentials": {"go north": after}})
        for now, after in pairwise(potentials)
    ]
    total = sum(gamma**t * f for t, f in enumerate(reward(steps)))
    assert total == pytest.approx(-potentials[0])  # whatever happens between
