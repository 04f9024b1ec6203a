"""Rewards that ask somebody else, through a callable that the application gives: the game itself, or another model."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from priorzero.rl.rewards import Scores, is_valid
from priorzero.types import Answer, Message, PromptRow


@dataclass(frozen=True, kw_only=True)
class ScoreDelta:
    """What the game pays for the action when it is really played.

    Attributes:
        weight: of a point.
        invalid: score of an answer without a valid action, which is not played; not weighted.
        play: (rows, actions) to score deltas in points, None where a row could not be played.
    """

    weight: float
    invalid: float
    play: Callable[[Sequence[PromptRow], Sequence[str]], Scores]

    def __call__(self, answers: Sequence[Answer]) -> Scores:
        """One score an answer; all valid actions are played in one call."""
        playable = [i for i, a in enumerate(answers) if is_valid(a)]
        scores: list[float | None] = [self.invalid] * len(answers)
        if playable:
            rows, actions = [answers[i].row for i in playable], [answers[i].action or "" for i in playable]
            deltas = self.play(rows, actions)
            for i, delta in zip(playable, _same_length(deltas, len(playable), "play"), strict=True):
                scores[i] = None if delta is None else self.weight * delta
        return scores


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Another language model gives marks. None where its reply holds no mark within the limits.

    The last "Score: <number>" of the reply counts, mapped from 0..best to 0..value.

    Attributes:
        value: of the best mark.
        best: the best mark, as the template asks for it; the worst is 0.
        template: the question, with {prompt}, {answer} and {reference} in it.
        generate: chats to replies, one each.
    """

    value: float
    best: float
    template: str
    generate: Callable[[Sequence[Sequence[Message]]], Sequence[str]]

    def __call__(self, answers: Sequence[Answer]) -> Scores:
        """One score an answer; all are asked for in one call."""
        replies = self.generate([self._chat(a) for a in answers])
        return [self._mark(reply) for reply in _same_length(replies, len(answers), "generate")]

    def _chat(self, answer: Answer) -> list[Message]:
        parts = {"{prompt}": answer.row.messages[-1].content, "{answer}": answer.text, "{reference}": answer.row.answer}
        text = re.sub("|".join(map(re.escape, parts)), lambda match: parts[match.group()], self.template)
        return [Message("user", text)]

    def _mark(self, reply: str) -> float | None:
        found = re.findall(r"score:\s*\**\s*(-?\d+(?:\.\d+)?)", reply, re.IGNORECASE)
        mark = float(found[-1]) if found else -1.0
        return self.value * mark / self.best if 0 <= mark <= self.best else None


def _same_length(results: Sequence[Any], wanted: int, name: str) -> Sequence[Any]:
    if len(results) != wanted:
        raise ValueError(f"{name!r} returned {len(results)} results for {wanted} answers: it must return one each")
    return results
