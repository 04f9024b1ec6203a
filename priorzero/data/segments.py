"""Segments in bulk: checked when they come in, written as tensors and plain containers that repeat nothing."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from itertools import chain
from sys import intern
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from priorzero.types import Observation, Segment, Turn

MAX_STEPS = 1 << 20  # of one segment, so that a step fits beside the serial number in an index

Key = TypeVar("Key", bound=Hashable)


def check_segment(segment: Segment) -> Segment:
    """The segment with float32 arrays and shared strings, once its parts are known to fit.

    Raises:
        ValueError: lengths disagree, a played action was not valid, or a finished episode lacks its returns.
    """
    steps = len(segment)
    where = f"segment of {segment.game}, episode {segment.episode}, from step {segment.start}"
    if not 0 < steps < MAX_STEPS:
        raise ValueError(f"{where}: has {steps} steps, allowed are 1 to {MAX_STEPS - 1}")
    for name, extra in (("observations", 1), ("vectors", 1), ("valid_actions", 1), ("rewards", 0), ("intrinsic", 0)):
        _expect(where, name, len(getattr(segment, name)), steps + extra)
    for name in ("visit_probs", "root_values", "prior_logprobs"):
        _expect(where, name, len(getattr(segment, name)), steps)
    for t, (action, valid) in enumerate(zip(segment.actions, segment.valid_actions, strict=False)):
        if action not in valid:
            raise ValueError(f"{where}: step {t} played {action!r}, which is not among its valid actions {valid}")
        _expect_probs(where, t, len(valid), segment.visit_probs[t], empty_allowed=True)
        if (logprobs := segment.prior_logprobs[t]) is not None:
            _expect_probs(where, t, len(valid), logprobs, empty_allowed=False)
    if segment.returns is not None:
        _expect(where, "returns", len(segment.returns), steps)
    elif segment.terminated or segment.truncated:
        raise ValueError(f"{where}: ends its episode, so it must carry its returns (discounted_returns)")
    return _canonical(segment)


def _expect(where: str, name: str, found: int, expected: int) -> None:
    if found != expected:
        raise ValueError(f"{where}: {name} has length {found}, it must be {expected}")


def _expect_probs(where: str, step: int, valid: int, probs: np.ndarray, *, empty_allowed: bool) -> None:
    if len(probs) != valid and (len(probs) or not empty_allowed):
        raise ValueError(f"{where}: step {step} has {valid} valid actions but {len(probs)} probabilities")


def _canonical(segment: Segment) -> Segment:
    return replace(
        segment,
        vectors=_float(segment.vectors),
        rewards=_float(segment.rewards),
        intrinsic=_float(segment.intrinsic),
        root_values=_float(segment.root_values),
        visit_probs=tuple(map(_float, segment.visit_probs)),
        prior_logprobs=tuple(None if x is None else _float(x) for x in segment.prior_logprobs),
        returns=None if segment.returns is None else _float(segment.returns),
        observations=tuple(Observation(*map(intern, o)) for o in segment.observations),
        valid_actions=tuple(tuple(map(intern, actions)) for actions in segment.valid_actions),
        actions=tuple(map(intern, segment.actions)),
    )


def _float(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, np.float32)


# ------------------------------------------------------------------------------------------------------------- packing


class _Distinct(Generic[Key]):
    """Numbers keys by first sight."""

    def __init__(self) -> None:
        self.keys: dict[Key, int] = {}

    def add(self, key: Key) -> int:
        return self.keys.setdefault(key, len(self.keys))


class _Writer:
    """Numbers what segments repeat: texts, observations, sets of valid actions, vectors."""

    def __init__(self) -> None:
        self.texts: _Distinct[str] = _Distinct()
        self.observations: _Distinct[tuple[int, ...]] = _Distinct()
        self.action_sets: _Distinct[tuple[int, ...]] = _Distinct()
        self.vectors: _Distinct[bytes] = _Distinct()

    def observation(self, observation: Observation) -> int:
        return self.observations.add(tuple(map(self.texts.add, observation)))

    def actions(self, actions: tuple[str, ...]) -> int:
        return self.action_sets.add(tuple(map(self.texts.add, actions)))


_FIELDS = 11  # numbers in a row of "segments"


def _row(segment: Segment, texts: _Distinct[str]) -> list[int]:
    return [
        texts.add(segment.game),
        texts.add(segment.goal),
        segment.episode,
        segment.start,
        len(segment),
        len(segment.history),
        int(segment.terminated),
        int(segment.truncated),
        segment.world_model_version,
        segment.policy_version,
        int(segment.returns is not None),
    ]


def pack_segments(segments: Sequence[Segment]) -> dict[str, Any]:
    """Tensors and lists that hold the segments exactly, each distinct text, action set and vector once.

    Segments must have come through ``check_segment`` and have vectors of one width. The result can be read with
    ``torch.load(weights_only=True)``.
    """
    writer = _Writer()
    histories = [turn for segment in segments for turn in segment.history]
    visit_probs = [array for segment in segments for array in segment.visit_probs]
    logprobs = [array for segment in segments for array in segment.prior_logprobs]
    state = {
        "segments": _ints([_row(s, writer.texts) for s in segments]).reshape(-1, _FIELDS),
        "observation": _ints([writer.observation(o) for s in segments for o in s.observations]),
        "vector": _ints([writer.vectors.add(row.tobytes()) for s in segments for row in s.vectors]),
        "valid_actions": _ints([writer.actions(valid) for s in segments for valid in s.valid_actions]),
        "action": _ints([writer.texts.add(action) for s in segments for action in s.actions]),
        "rewards": _floats(s.rewards for s in segments),
        "intrinsic": _floats(s.intrinsic for s in segments),
        "root_values": _floats(s.root_values for s in segments),
        "returns": _floats(s.returns for s in segments if s.returns is not None),
        "visit_probs": _floats(visit_probs),
        "visit_probs_length": _ints([len(array) for array in visit_probs]),
        "prior_logprobs": _floats(array for array in logprobs if array is not None),
        "prior_logprobs_length": _ints([-1 if array is None else len(array) for array in logprobs]),
        "history_observation": _ints([writer.observation(turn.observation) for turn in histories]),
        "history_action": _ints([writer.texts.add(turn.action) for turn in histories]),
        "history_reward": torch.tensor([turn.reward for turn in histories], dtype=torch.float64),
    }
    width = segments[0].vectors.shape[1] if segments else 0
    rows = np.frombuffer(b"".join(writer.vectors.keys), np.float32).reshape(len(writer.vectors.keys), width)
    return state | {
        "texts": list(writer.texts.keys),
        "observations": _ints(list(writer.observations.keys)).reshape(-1, len(Observation._fields)),
        "action_sets": _ints(list(chain.from_iterable(writer.action_sets.keys))),
        "action_sets_length": _ints([len(key) for key in writer.action_sets.keys]),
        "vectors": torch.from_numpy(rows.copy()),
    }


def _ints(values: list[Any]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def _floats(arrays: Iterable[np.ndarray]) -> Tensor:
    parts = list(arrays)
    return torch.from_numpy(np.concatenate(parts) if parts else np.zeros(0, np.float32))


# ----------------------------------------------------------------------------------------------------------- unpacking


class _Reader:
    """Hands out the parts of a packed state in the order in which they were written."""

    def __init__(self, state: dict[str, Any]) -> None:
        self._state = state
        self._at: dict[str, int] = {}
        self.texts = [intern(text) for text in state["texts"]]
        self.observations = [Observation(*(self.texts[i] for i in row)) for row in state["observations"].tolist()]
        self.vectors = state["vectors"].numpy()
        ids = iter(state["action_sets"].tolist())
        self.action_sets = [
            tuple(self.texts[next(ids)] for _ in range(length)) for length in state["action_sets_length"].tolist()
        ]

    def take(self, name: str, n: int) -> np.ndarray:
        start = self._at.get(name, 0)
        self._at[name] = start + n
        return self._state[name][start : start + n].numpy().copy()

    def lengths(self, name: str, n: int) -> list[int]:
        return self.take(f"{name}_length", n).tolist()

    def look_up(self, table: Sequence[Any], name: str, n: int) -> tuple[Any, ...]:
        return tuple(table[i] for i in self.take(name, n).tolist())


def unpack_segments(state: dict[str, Any]) -> list[Segment]:
    """The segments that ``pack_segments`` wrote, equal in every bit; equal texts and action sets are one object."""
    reader = _Reader(state)
    return [_read(reader, row) for row in state["segments"].tolist()]


def _read(reader: _Reader, row: list[int]) -> Segment:
    game, goal, episode, start, steps, turns, terminated, truncated, world_model_version, policy_version, known = row
    history = zip(
        reader.look_up(reader.observations, "history_observation", turns),
        reader.look_up(reader.texts, "history_action", turns),
        reader.take("history_reward", turns).tolist(),
        strict=True,
    )
    return Segment(
        game=reader.texts[game],
        goal=reader.texts[goal],
        episode=episode,
        start=start,
        history=tuple(Turn(*turn) for turn in history),
        observations=reader.look_up(reader.observations, "observation", steps + 1),
        vectors=reader.vectors[reader.take("vector", steps + 1)],
        valid_actions=reader.look_up(reader.action_sets, "valid_actions", steps + 1),
        actions=reader.look_up(reader.texts, "action", steps),
        rewards=reader.take("rewards", steps),
        intrinsic=reader.take("intrinsic", steps),
        visit_probs=tuple(reader.take("visit_probs", n) for n in reader.lengths("visit_probs", steps)),
        root_values=reader.take("root_values", steps),
        prior_logprobs=tuple(
            None if n < 0 else reader.take("prior_logprobs", n) for n in reader.lengths("prior_logprobs", steps)
        ),
        terminated=bool(terminated),
        truncated=bool(truncated),
        world_model_version=world_model_version,
        policy_version=policy_version,
        returns=reader.take("returns", steps) if known else None,
    )
