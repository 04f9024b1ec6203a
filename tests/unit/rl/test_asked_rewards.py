import pytest

from priorzero.rl.asked_rewards import Judge, ScoreDelta
from priorzero.types import Answer, Message, PromptRow


def said(action: str | None, text: str = "") -> Answer:
    messages = (Message("system", "Play."), Message("user", "A {answer} hall."))
    row = PromptRow(messages=messages, answer="go west", valid_actions=("go north", "go west", "sing"))
    return Answer(row, text, action, "stop")


def test_only_valid_actions_are_played():
    played = []

    def play(rows, actions):
        played.append((len(rows), list(actions)))
        return [{"go north": 5.0, "sing": None}[action] for action in actions]

    reward = ScoreDelta(weight=0.1, invalid=-0.2, play=play)
    assert reward([said(None), said("go north"), said("fly"), said("sing")]) == [-0.2, 0.5, -0.2, None]
    assert played == [(2, ["go north", "sing"])]
    assert reward([said(None)]) == [-0.2]
    assert len(played) == 1


def test_a_player_that_loses_a_row():
    with pytest.raises(ValueError, match="'play' returned 0 results for 1 answers"):
        ScoreDelta(weight=1.0, invalid=0.0, play=lambda rows, actions: [])([said("sing")])


def test_judge():
    asked = []
    replies = [
        "The player said Score: 2.\n**Score:** 7.5",
        "score: 0",
        "I cannot tell.",
        "Score: 11",
        "Score: -1",
    ]

    def generate(chats):
        asked.extend(chats)
        return replies[: len(chats)]

    judge = Judge(value=2.0, best=10, template="{prompt} | {answer} | {reference}", generate=generate)
    assert judge([said("sing", "I sing {prompt}")] * 5) == [1.5, 0.0, None, None, None]
    # what is filled in is not filled in again
    assert asked[0] == [Message("user", "A {answer} hall. | I sing {prompt} | go west")]
    with pytest.raises(ValueError, match="'generate' returned 5 results for 6 answers"):
        judge([said("sing")] * 6)
