"""Comparing what was written with what is right: spelling, answers to questions, similarity."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable
from difflib import SequenceMatcher

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def squeeze(text: str) -> str:
    """Lower case with single spaces."""
    return " ".join(text.lower().split())


def last_answer(text: str) -> str | None:
    """What stands between the last ``<answer>`` and ``</answer>``, None without such a pair."""
    found = _ANSWER.findall(text)
    return found[-1].strip() if found else None


def normalise_qa(text: str) -> str:
    """Lower case without punctuation, articles and repeated spaces, as SQuAD (arXiv:1606.05250) and Search-R1 do."""
    return squeeze(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)))


def qa_match(answer: str, alternatives: Iterable[str]) -> bool:
    """Whether the answer equals one of the alternatives after ``normalise_qa``."""
    wanted = normalise_qa(answer)
    return any(wanted == normalise_qa(alternative) for alternative in alternatives)


def similarity(first: str, second: str) -> float:
    """0 (nothing in common) to 1 (equal up to case and spaces): twice the matching characters over all characters."""
    return SequenceMatcher(None, squeeze(first), squeeze(second), autojunk=False).ratio()
