"""Rewards of answers by rules, by the search's opinion and by progress; ``asked_rewards`` ask a game or a model.

A reward is called with a batch and gives one number an answer, or None where it cannot judge (no right answer is known,
for example): such an answer is masked out of training and counted. All values come from ``configs/reward``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from priorzero.rl.text_match import last_answer, qa_match, similarity, squeeze
from priorzero.types import Answer, PromptRow

Scores = Sequence[float | None]


class Reward(Protocol):
    """Judges answers. A plain function with this signature is a reward, too."""

    def __call__(self, answers: Sequence[Answer]) -> Scores:
        """One score an answer, in the same order; None where it cannot be judged."""


class Parsed(Protocol):
    """What a parser tells of an answer; ``text.parse.ParsedAnswer`` is one."""

    @property
    def format_ok(self) -> bool:
        """The whole answer is written as its format asks."""


class PerAnswer(ABC):
    """A reward that judges each answer by itself."""

    def __call__(self, answers: Sequence[Answer]) -> Scores:
        """One score an answer, in the same order; None where it cannot be judged."""
        return [self._score(answer) for answer in answers]

    @abstractmethod
    def _score(self, answer: Answer) -> float | None: ...


# ------------------------------------------------------------------------------------------------------------- rules


@dataclass(frozen=True, kw_only=True)
class ExactMatch(PerAnswer):
    """``value`` where the action is the row's answer (for a game, what the search chose), else 0; None without one."""

    value: float

    def _score(self, answer: Answer) -> float | None:
        if not answer.row.answer:
            return None
        return self.value if answer.action and squeeze(answer.action) == squeeze(answer.row.answer) else 0.0


@dataclass(frozen=True, kw_only=True)
class ValidAction(PerAnswer):
    """``value`` where the action is one of the row's valid actions, else 0; None where the row lists none."""

    value: float

    def _score(self, answer: Answer) -> float | None:
        if not answer.row.valid_actions:
            return None
        return self.value if is_valid(answer) else 0.0


@dataclass(frozen=True, kw_only=True)
class InvalidAction(PerAnswer):
    """``value`` (negative) where the answer names no valid action, else 0; None where the row lists none."""

    value: float

    def _score(self, answer: Answer) -> float | None:
        if not answer.row.valid_actions:
            return None
        return 0.0 if is_valid(answer) else self.value


@dataclass(frozen=True, kw_only=True)
class Format(PerAnswer):
    """``value`` where the whole text is written as its format asks, else 0.

    Attributes:
        value: of a well-formed answer.
        parse: reads (text, valid actions); ``text.parse.parse_answer`` with its format bound.
    """

    value: float
    parse: Callable[[str, Sequence[str]], Parsed]

    def _score(self, answer: Answer) -> float | None:
        return self.value if self.parse(answer.text, answer.row.valid_actions).format_ok else 0.0


@dataclass(frozen=True, kw_only=True)
class FuzzyMatch(PerAnswer):
    """``value`` times the similarity (0..1) to the row's answer; None where the row has no answer.

    Compared is the action, else what stands in the last ``<answer>`` pair, else the last line of the text.

    Attributes:
        value: of an equal answer.
        threshold: a similarity below it counts as 0.
    """

    value: float
    threshold: float

    def _score(self, answer: Answer) -> float | None:
        if not answer.row.answer:
            return None
        said = answer.action or last_answer(answer.text) or (answer.text.strip().splitlines() or [""])[-1]
        found = similarity(said, answer.row.answer)
        return self.value * found if found >= self.threshold else 0.0


@dataclass(frozen=True, kw_only=True)
class QuestionMatch(PerAnswer):
    """Exact match of answers to questions, as in Search-R1 (arXiv:2503.09516).

    The last ``<answer>`` pair of what the model wrote is compared with the alternatives, ``row.extra["answers"]`` (a
    string or a list), else ``row.answer``; None where the row has neither.

    Attributes:
        value: where it equals one of them after normalisation.
        format_value: where there is an ``<answer>`` pair with something else.
    """

    value: float
    format_value: float

    def _score(self, answer: Answer) -> float | None:
        alternatives, said = _alternatives(answer.row), last_answer(answer.text)
        if not alternatives:
            return None
        if said is None:
            return 0.0
        return self.value if qa_match(said, alternatives) else self.format_value


# ------------------------------------------------------------------------------------------------ search and progress


@dataclass(frozen=True, kw_only=True)
class SearchValue(PerAnswer):
    """What the search thinks of the action: ``row.extra["action_values"]``, a dict from action to value.

    None where the row has no values, or none of this valid action.

    Attributes:
        weight: of the value.
        scale: "raw", in points; "range", 0 for the worst and 1 for the best action of the row (all 0 where equal).
        invalid: score of an answer without a valid action; not weighted.
    """

    weight: float
    scale: Literal["raw", "range"]
    invalid: float

    def __post_init__(self) -> None:
        if self.scale not in ("raw", "range"):
            raise ValueError(f"the scale of a search value is {self.scale!r}: choose raw or range")

    def _score(self, answer: Answer) -> float | None:
        values: Mapping[str, float] | None = answer.row.extra.get("action_values")
        if not values:
            return None
        if not is_valid(answer):
            return self.invalid
        value = values.get(answer.action or "")
        if value is None:
            return None
        if self.scale == "raw":
            return self.weight * value
        low, high = min(values.values()), max(values.values())
        return self.weight * (value - low) / (high - low) if high > low else 0.0


@dataclass(frozen=True, kw_only=True)
class ProgressShaping(PerAnswer):
    """``weight (gamma phi(s') - phi(s))``, which leaves the best policy the best one (Ng, Harada and Russell 1999).

    ``row.extra["potential"]`` is phi(s), ``row.extra["next_potentials"]`` a dict from action to phi(s'); an end of the
    game must have phi 0. An invalid action leaves the state as it is. None where a potential is not known.
    """

    weight: float
    gamma: float

    def _score(self, answer: Answer) -> float | None:
        now, following = answer.row.extra.get("potential"), answer.row.extra.get("next_potentials", {})
        after = following.get(answer.action) if is_valid(answer) else now
        return None if now is None or after is None else self.weight * (self.gamma * after - now)


def is_valid(answer: Answer) -> bool:
    """Whether the answer names one of the valid actions of its row."""
    return answer.action is not None and answer.action in answer.row.valid_actions


def _alternatives(row: PromptRow) -> list[str]:
    given: Any = row.extra.get("answers") or row.answer
    return [given] * bool(given) if isinstance(given, str) else list(given)
