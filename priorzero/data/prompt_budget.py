"""Prompts within a budget of tokens: the chat template applied, what is too long cut or left out, both counted."""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from priorzero.text.chat import row_tokens
from priorzero.text.prompt import PromptTooLongError
from priorzero.types import PromptRow

log = logging.getLogger(__name__)

OVERLONG = ("error", "drop", "left", "right", "middle")
GAP = "\n...\n"  # stands for what was cut out of the middle


@dataclass(frozen=True, kw_only=True)
class PromptBudget:
    """How long prompts may be.

    Attributes:
        max_tokens: of a prompt with its chat template and answer prefix.
        overlong: what happens to a longer one: "error" stops; "drop" leaves it out; "left", "right" and "middle" cut
            that side of its longest message that is not the system's, so that template and answer prefix stay whole.
    """

    max_tokens: int
    overlong: str

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens of a prompt must be positive, not {self.max_tokens}")
        if self.overlong not in OVERLONG:
            raise ValueError(f"overlong is one of {', '.join(OVERLONG)}, not {self.overlong!r}")


@dataclass(frozen=True, slots=True)
class FittedPrompts:
    """Rows whose prompts fit into the budget."""

    rows: tuple[PromptRow, ...]  # with their messages cut where they had to be
    tokens: tuple[tuple[int, ...], ...]  # the prompt of each row
    dropped: int  # rows left out
    cut: int  # rows with a message cut


def fit_prompts(rows: Sequence[PromptRow], tokenizer: Any, budget: PromptBudget) -> FittedPrompts:
    """Rows and prompts that keep to the budget; what was dropped and cut is counted and logged.

    Raises:
        PromptTooLongError: a prompt is too long and ``overlong`` is "error", or its template alone is too long to cut
            anything, or every row would be dropped.
    """
    kept: list[PromptRow] = []
    tokens: list[tuple[int, ...]] = []
    cut = 0
    for number, row in enumerate(rows, 1):
        ids = row_tokens(tokenizer, row)
        if len(ids) > budget.max_tokens:
            if budget.overlong == "drop":
                continue
            if budget.overlong == "error":
                raise PromptTooLongError(
                    f"prompt {number} of {len(rows)} has {len(ids)} tokens and the budget is {budget.max_tokens}: "
                    "raise max_tokens of the prompts, or let overlong drop or cut it"
                )
            row = _cut(row, number, tokenizer, budget)
            ids, cut = row_tokens(tokenizer, row), cut + 1
        kept.append(row)
        tokens.append(tuple(ids))
    dropped = len(rows) - len(kept)
    if dropped and not kept:
        raise PromptTooLongError(f"all {dropped} prompts have more than {budget.max_tokens} tokens: raise max_tokens")
    if dropped or cut:
        log.warning(
            "of %d prompts %d were left out and %d cut to %d tokens", len(rows), dropped, cut, budget.max_tokens
        )
    return FittedPrompts(tuple(kept), tuple(tokens), dropped, cut)


def _cut(row: PromptRow, number: int, tokenizer: Any, budget: PromptBudget) -> PromptRow:
    """The row with as many characters of its longest message as fit."""
    own = [i for i, message in enumerate(row.messages) if message.role != "system"]
    place = max(own, key=lambda i: len(row.messages[i].content), default=0)
    content = row.messages[place].content

    def keeping(count: int) -> PromptRow:
        message = replace(row.messages[place], content=_keep(content, count, budget.overlong))
        return replace(row, messages=(*row.messages[:place], message, *row.messages[place + 1 :]))

    def too_long(count: int) -> bool:
        return len(row_tokens(tokenizer, keeping(count))) > budget.max_tokens

    fitting = bisect_right(range(len(content)), False, key=too_long)
    if not fitting:
        raise PromptTooLongError(
            f"prompt {number} does not fit into {budget.max_tokens} tokens even without its longest message: raise "
            "max_tokens of the prompts, or drop it (overlong=drop)"
        )
    return keeping(fitting - 1)


def _keep(text: str, count: int, side: str) -> str:
    """``count`` characters of ``text``, the others cut from ``side``."""
    if side == "left":
        return text[len(text) - count :]
    if side == "right":
        return text[:count]
    return text[: count - count // 2] + GAP + text[len(text) - count // 2 :]
