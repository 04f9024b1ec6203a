"""The only place that reads an answer: generated text becomes one of the valid actions, or None."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from priorzero.text.prompt import FORMATS

_PATTERNS = {
    "plain": re.compile(r"\s*Action:[ \t]*(?P<action>[^\n]*\S)\s*", re.IGNORECASE),
    "reasoning": re.compile(
        r"\s*Reasoning:(?P<reasoning>.*?)\n\s*Action:[ \t]*(?P<action>[^\n]*\S)\s*", re.IGNORECASE | re.DOTALL
    ),
    "think_answer": re.compile(
        r"\s*<think>(?P<reasoning>(?:(?!</think>).)*)</think>\s*<answer>\s*(?P<action>[^\n<]*[^\s<])\s*</answer>\s*",
        re.DOTALL,
    ),
}


@dataclass(frozen=True)
class ParsedAnswer:
    """What an answer says.

    Attributes:
        format_ok: the whole answer is written as its format asks, whether or not the action is valid.
        action: the valid action that it names, spelt as in the list; None where it names none.
        reasoning: the reasoning text, empty where there is none.
    """

    format_ok: bool
    action: str | None
    reasoning: str = ""


def normalise(action: str) -> str:
    """Lower case, single spaces, no quotes around it and no full stop at its end."""
    return " ".join(action.lower().split()).strip("\"'`*. ")


def parse_answer(text: str, valid_actions: Sequence[str], format: str) -> ParsedAnswer:
    """Reads a generated answer (end-of-turn tokens already removed).

    Args:
        text: the whole answer, from the opening of the format.
        valid_actions: the actions it may name; an exact match after ``normalise`` counts, the first where two agree.
        format: "plain", "reasoning" or "think_answer".

    Raises:
        ValueError: unknown format.
    """
    if format not in FORMATS:
        raise ValueError(f"unknown prompt format {format!r}: choose one of {', '.join(FORMATS)}")
    match = _PATTERNS[format].fullmatch(text)
    if match is None:
        return ParsedAnswer(format_ok=False, action=None)
    groups = match.groupdict()
    wanted = normalise(groups["action"])
    action = next((a for a in valid_actions if normalise(a) == wanted), None)
    return ParsedAnswer(format_ok=True, action=action, reasoning=groups.get("reasoning", "").strip())
