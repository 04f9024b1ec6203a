"""Makes batches: from segments and steps to the tensors that the two models train on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from priorzero.text.prompt import PromptBuilder
from priorzero.text.vocabulary import ActionVocabulary
from priorzero.types import PackedPrompts, PolicyBatch, Segment, Situation, Turn, WorldModelBatch

Pack = Callable[[list[list[int]], list[list[list[int]]], int], PackedPrompts]

MIN_VISIT_PROB = 1e-6  # stands for a played action that the search never visited


# -------------------------------------------------------------------------------------------------------- world model


def world_model_batch(
    segments: Sequence[Segment],
    starts: Sequence[int],
    *,
    unroll: int,
    bootstrap: int,
    vocabulary: ActionVocabulary,
    weight: np.ndarray,
    index: np.ndarray,
    max_known: int | None,
    rng: np.random.Generator,
) -> WorldModelBatch:
    """Windows of ``S = unroll + bootstrap`` steps; what lies past a segment's end is padding.

    Past a true end the padding is the absorbing state: the last observation with random actions.

    Candidates are, in the order of their ids: the valid actions of the trained steps, the played actions, and of every
    game in the batch the other actions known there, as negatives. A step without visits (nobody searched) has a policy
    target of all zeros.

    Args:
        segments: B segments.
        starts: B first steps, each a step of its segment.
        unroll: T, trained steps.
        bootstrap: further steps that only n-step targets need.
        vocabulary: knows all actions of the segments.
        weight: [B] importance weights.
        index: [B] int64, handed through.
        max_known: at most so many known actions a game, drawn without replacement; None for all, 0 for none
            (where only values are asked for).
        rng: draws the actions of absorbing states, and known actions in alphabetical order of the games.

    Raises:
        KeyError: an action is not in the vocabulary.
        ValueError: a start lies outside of its segment.
    """
    span = unroll + bootstrap
    windows = _windows(segments, starts, span)
    lengths = [length for _, _, length in windows]
    observation = np.zeros((len(windows), span + 1, segments[0].vectors.shape[1]), np.float32)
    reward = np.zeros((len(windows), span), np.float32)
    for row, (segment, start, length) in enumerate(windows):
        observation[row, : length + 1] = segment.vectors[start : start + length + 1]
        if _ended(segment, start, length):
            observation[row, length + 1 :] = segment.vectors[-1]
        reward[row, :length] = segment.learned_rewards[start : start + length]
    played = vocabulary.ids([a for s, start, n in windows for a in s.actions[start : start + n]])
    valid = _ValidActions(windows, unroll, vocabulary)
    members = {game: vocabulary.members(game) for game in sorted({segment.game for segment in segments})}
    vectors = vocabulary.vectors()
    used = np.zeros(len(vectors), bool)
    for ids in (played, valid.ids, *(_subset(ids, max_known, rng) for ids in members.values())):
        used[ids] = True
    candidates = np.flatnonzero(used)
    column = np.cumsum(used) - 1  # [V], of a vocabulary id among the candidates
    action = np.zeros((len(windows), span), np.int64)
    action[np.arange(span) < np.array(lengths)[:, None]] = column[played]
    for row, (segment, start, length) in enumerate(windows):
        if _ended(segment, start, length):
            action[row, length:] = rng.integers(len(candidates), size=span - length)
    legal, policy = valid.spread(column[valid.ids], len(candidates))
    return WorldModelBatch(
        observation=torch.from_numpy(observation),
        action=torch.from_numpy(action),
        reward=torch.from_numpy(reward),
        length=torch.tensor(lengths),
        terminated=torch.tensor([_ended(*window) for window in windows]),
        candidates=torch.from_numpy(vectors[candidates]),
        legal=legal,
        known=_known(segments, members, candidates, len(vectors)),
        policy=policy,
        weight=torch.from_numpy(np.asarray(weight, np.float32)),
        index=torch.from_numpy(np.asarray(index, np.int64)),
    )


def _windows(segments: Sequence[Segment], starts: Sequence[int], span: int) -> list[tuple[Segment, int, int]]:
    """Segment, first step and number of real steps of each window."""
    windows = [(s, start, min(span, len(s) - start)) for s, start in zip(segments, starts, strict=True)]
    for segment, start, length in windows:
        if start < 0 or length < 1:
            raise ValueError(f"step {start} is not a step of a segment of {len(segment)} steps")
    return windows


def _ended(segment: Segment, start: int, length: int) -> bool:
    """Whether the game truly ended with the window's last step."""
    return segment.terminated and start + length == len(segment)


def _subset(ids: np.ndarray, limit: int | None, rng: np.random.Generator) -> np.ndarray:
    return ids if limit is None or len(ids) <= limit else rng.choice(ids, limit, replace=False)


def _known(
    segments: Sequence[Segment], members: dict[str, np.ndarray], candidates: np.ndarray, vocabulary_size: int
) -> Tensor:
    table = np.zeros((len(members), vocabulary_size), bool)
    for row, ids in enumerate(members.values()):
        table[row, ids] = True
    game = {name: row for row, name in enumerate(members)}
    return torch.from_numpy(table[:, candidates][[game[segment.game] for segment in segments]])


class _ValidActions:
    """The valid actions of all trained steps of a batch, end to end, with their visit probabilities."""

    def __init__(self, windows: list[tuple[Segment, int, int]], unroll: int, vocabulary: ActionVocabulary) -> None:
        self.shape = (len(windows), unroll)
        texts: list[Sequence[str]] = []
        visits: list[np.ndarray] = []
        cells: list[int] = []  # of [B * T]
        for row, (segment, start, length) in enumerate(windows):
            trained = min(unroll, length)
            texts += segment.valid_actions[start : start + trained]
            visits += segment.visit_probs[start : start + trained]
            cells += range(row * unroll, row * unroll + trained)
        counts = [len(actions) for actions in texts]
        self.cell = np.repeat(cells, counts)
        self.ids = vocabulary.ids(list(chain.from_iterable(texts)))
        filled = [p if len(p) else np.zeros(n, np.float32) for p, n in zip(visits, counts, strict=True)]
        self.probs = np.concatenate(filled)

    def spread(self, columns: np.ndarray, width: int) -> tuple[Tensor, Tensor]:
        """``legal`` [B, T, U] bool and ``policy`` [B, T, U] float32, given each action's column."""
        rows, unroll = self.shape
        legal = np.zeros((rows * unroll, width), bool)
        policy = np.zeros((rows * unroll, width), np.float32)
        legal[self.cell, columns] = True
        policy[self.cell, columns] = self.probs
        shape = (rows, unroll, width)
        return torch.from_numpy(legal.reshape(shape)), torch.from_numpy(policy.reshape(shape))


# ------------------------------------------------------------------------------------------------------------- policy


def situation(segment: Segment, step: int) -> Situation:
    """What the player knew before ``actions[step]``; the prompt builder cuts the history to what it shows."""
    turns = (Turn(segment.observations[t], segment.actions[t], float(segment.rewards[t])) for t in range(step))
    return Situation(
        observation=segment.observations[step],
        valid_actions=segment.valid_actions[step],
        history=(*segment.history, *turns),
        goal=segment.goal,
    )


def policy_batch(
    segments: Sequence[Segment],
    steps: Sequence[int],
    *,
    prompts: PromptBuilder,
    pack: Pack,
    pad_id: int,
    advantages: np.ndarray,
    weight: np.ndarray | None = None,
) -> PolicyBatch:
    """States with all their valid actions as candidates.

    The behaviour log-probability is the one that the language model gave the played action when it was played. Where no
    language model was asked it is that of the search, ``log visit_probs`` (at least ``log MIN_VISIT_PROB``), which is
    what really chose the action up to its temperature.

    Args:
        segments: B segments.
        steps: B steps, one in each segment. Steps with one valid action teach nothing: leave them out.
        prompts: writes prompts and answers.
        pack: ``priorzero.policy.packing.pack``, handed in so that data does not depend on policy.
        pad_id: token of the padding.
        advantages: [B] of the played actions.
        weight: [B], 0 for samples that only fill up the batch; None for all 1.

    Raises:
        ValueError: nothing to batch, or the lengths differ.
    """
    situations = [situation(segment, step) for segment, step in zip(segments, steps, strict=True)]
    weight = np.ones(len(situations)) if weight is None else weight
    if not len(situations) == len(advantages) == len(weight) > 0:
        raise ValueError(f"{len(situations)} steps, {len(advantages)} advantages, {len(weight)} weights: need as many")
    packed = pack(
        [prompts.prompt(s) for s in situations], [prompts.answers(s.valid_actions) for s in situations], pad_id
    )
    action = [
        s.valid_actions.index(segment.actions[t]) for s, segment, t in zip(situations, segments, steps, strict=True)
    ]
    visit_probs = np.zeros((len(situations), packed.max_candidates), np.float32)
    for row, (segment, step) in enumerate(zip(segments, steps, strict=True)):
        probs = segment.visit_probs[step]
        visit_probs[row, : len(probs)] = probs
    behaviour = map(_behaviour_logprob, segments, steps, action)
    return PolicyBatch(
        prompts=packed,
        visit_probs=torch.from_numpy(visit_probs),
        action=torch.tensor(action),
        advantage=torch.from_numpy(np.asarray(advantages, np.float32)),
        behaviour_logprobs=torch.tensor(list(behaviour), dtype=torch.float32),
        weight=torch.from_numpy(np.asarray(weight, np.float32)),
    )


def _behaviour_logprob(segment: Segment, step: int, action: int) -> float:
    logprobs = segment.prior_logprobs[step]
    if logprobs is not None:
        return float(logprobs[action])
    probs = segment.visit_probs[step]
    return float(np.log(max(probs[action] if len(probs) else 0.0, MIN_VISIT_PROB)))
