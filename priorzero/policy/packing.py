"""Lays prompts and their candidate answers out as trees, so that what they share at their start is computed once.

A row of tokens is a tree in depth-first order: a token's descendants follow it without a gap. Candidates of a prompt
share the prompt and each other's first words; prompts in one row share the instructions that all prompts begin with.
Under the mask a token sees its ancestors and itself only, and its position is its depth, so every path from the root
gives what the same sequence gives alone (up to rounding).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from priorzero.types import PackedPrompts


def pack(
    prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[Sequence[int]]], pad_id: int, *, row_tokens: int = 512
) -> PackedPrompts:
    """Lays out ``B`` prompts with their candidates in as many rows as they need.

    Args:
        prompts: tokens of each prompt, at least one.
        answers: for each prompt its candidates, for each candidate its tokens, at least one of each.
        pad_id: token of the padding.
        row_tokens: a row takes no further prompt once it holds so many tokens. Long rows share more; the cost of
            attention grows with their length.

    Raises:
        ValueError: different numbers of prompts and answers, or something is empty.
    """
    return stack(lay_out(prompts, answers, row_tokens), range(len(prompts)), pad_id)


def lay_out(
    prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[Sequence[int]]], row_tokens: int
) -> list[TreeRow]:
    """The rows of ``pack``, prompts with equal beginnings beside each other. Same arguments and errors."""
    if len(prompts) != len(answers) or not prompts:
        raise ValueError(f"need one list of answers a prompt, got {len(prompts)} prompts and {len(answers)} lists")
    rows = [TreeRow()]
    for i in sorted(range(len(prompts)), key=lambda i: list(prompts[i])):
        if len(rows[-1].tokens) >= row_tokens:
            rows.append(TreeRow())
        rows[-1].add(i, prompts[i], answers[i])
    for row in rows:
        row.descend((), 0)
    return rows


class TreeRow:
    """One row: the tokens of some prompts and their candidates, as one tree (or several)."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.position: list[int] = []
        self.end: list[int] = []  # index after the token's last descendant
        self.prompts: list[int] = []  # which prompts lie here
        self.candidates: list[int] = []  # how many candidates each of them has
        self.score_position: list[int] = []
        self.score_token: list[int] = []
        self.score_of: list[tuple[int, int]] = []  # prompt and candidate
        self._path: list[int] = []  # indices from the root to the newest token

    def add(self, number: int, prompt: Sequence[int], candidates: Sequence[Sequence[int]]) -> None:
        """Put prompt ``number`` and its candidates below what they share with the prompt before."""
        if not prompt or not candidates or not all(candidates):
            raise ValueError("a prompt, a list of candidates or a candidate is empty")
        self.prompts.append(number)
        self.candidates.append(len(candidates))
        shared = _shared([self.tokens[i] for i in self._path], prompt)
        self.descend(prompt[shared:], shared)
        depth, previous = len(prompt), ()
        for j in sorted(range(len(candidates)), key=lambda j: list(candidates[j])):
            candidate = candidates[j]
            fed = candidate[:-1]  # the last token is predicted, nothing follows it
            shared = _shared(previous, fed)
            self.descend(fed[shared:], depth + shared)
            self.score_position += self._path[depth - 1 :]
            self.score_token += candidate
            self.score_of += [(number, j)] * len(candidate)
            previous = fed

    def descend(self, tokens: Sequence[int], depth: int) -> None:
        """Leave all but the first ``depth`` tokens of the path behind, and go on with ``tokens``."""
        at, count = len(self.tokens), len(tokens)
        for left in self._path[depth:]:
            self.end[left] = at
        del self._path[depth:]
        self.position += range(depth, depth + count)
        self._path += range(at, at + count)
        self.tokens += tokens
        self.end += [-1] * count


def pack_samples(
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    written: Tensor,
    pad_id: int,
    *,
    row_tokens: int,
) -> tuple[PackedPrompts, Tensor]:
    """Lays out ``N`` generated samples; those with equal prompts share it.

    Args:
        prompts: tokens of each sample's prompt.
        answers: tokens after it, those of tools included.
        written: [N, L] bool, the tokens to score: False on the rest and on padding.
        pad_id: token of the padding.
        row_tokens: as in ``pack``.

    Returns:
        The layout, which scores written tokens only, and where each of these lies in the flattened [N, L].

    Raises:
        ValueError: the numbers of prompts and answers differ, or something is empty.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for n, prompt in enumerate(prompts):
        groups.setdefault(tuple(prompt), []).append(n)
    members = list(groups.values())
    packed = pack(list(groups), [[answers[n] for n in group] for group in members], pad_id, row_tokens=row_tokens)
    most = packed.max_candidates
    sample = {g * most + j: n for g, group in enumerate(members) for j, n in enumerate(group)}
    seen = [0] * len(prompts)
    place = []
    for slot in packed.score_slot.tolist():  # the tokens of an answer come in their order
        n = sample[slot]
        place.append(n * written.shape[1] + seen[n])
        seen[n] += 1
    places = torch.tensor(place)
    kept = written.flatten()[places]
    scored = {name: getattr(packed, name)[kept] for name in ("score_position", "score_token", "score_slot")}
    return replace(packed, **scored), places[kept]


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences share at their start."""
    count = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        count += 1
    return count


def stack(rows: Sequence[TreeRow], order: Sequence[int], pad_id: int) -> PackedPrompts:
    """Rows as one batch; prompt ``order[b]`` becomes number ``b`` of the batch."""
    width = max(len(row.tokens) for row in rows)
    number = {prompt: b for b, prompt in enumerate(order)}
    candidates = [0] * len(order)
    for row in rows:
        for prompt, count in zip(row.prompts, row.candidates, strict=True):
            candidates[number[prompt]] = count
    most = max(candidates)
    return PackedPrompts(
        tokens=_matrix([row.tokens for row in rows], np.full(width, pad_id)),
        position=_matrix([row.position for row in rows], np.zeros(width, np.int64)),
        end=_matrix([row.end for row in rows], np.arange(1, width + 1)),
        score_position=torch.tensor([r * width + p for r, row in enumerate(rows) for p in row.score_position]),
        score_token=torch.tensor([token for row in rows for token in row.score_token]),
        score_slot=torch.tensor([number[i] * most + j for row in rows for i, j in row.score_of]),
        candidates=torch.tensor(candidates),
    )


def _matrix(rows: Sequence[Sequence[int]], padding: np.ndarray) -> Tensor:
    """[len(rows), len(padding)] int64: each row, and the padding where it ends. Faster than tensors of nested lists."""
    matrix = np.tile(padding.astype(np.int64), (len(rows), 1))
    for line, row in zip(matrix, rows, strict=True):
        line[: len(row)] = row
    return torch.from_numpy(matrix)


def padded(packed: PackedPrompts, rows: int, width: int) -> PackedPrompts:
    """The same in at least as many rows and columns: token 0 is added, which nobody sees."""
    more_rows, more = rows - len(packed.tokens), width - packed.tokens.shape[1]
    end = torch.arange(1, width + 1).repeat(rows, 1)
    end[: len(packed.end), : packed.end.shape[1]] = packed.end
    row = packed.score_position // packed.tokens.shape[1]
    return replace(
        packed,
        tokens=functional.pad(packed.tokens, (0, more, 0, more_rows)),
        position=functional.pad(packed.position, (0, more, 0, more_rows)),
        end=end,
        score_position=packed.score_position + row * more,
    )


def tree_mask(end: Tensor) -> Tensor:
    """Who may see whom: ``[R, 1, L, L]`` bool (query, key), True = visible, from ``end`` [R, L] of ``PackedPrompts``.

    A token sees its ancestors and itself. Padding sees only itself, so that no row of the softmax is empty.
    """
    at = torch.arange(end.shape[1], device=end.device)
    return ((at[None, None, :] <= at[None, :, None]) & (at[None, :, None] < end[:, None, :]))[:, None]
