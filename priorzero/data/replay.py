"""Remembers segments, and draws steps of them to learn from. Thread safe: one lock, held only for bookkeeping.

Every rank of a distributed run has its own replay, filled by its own collector and saved in its own folder.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from priorzero.data.segments import MAX_STEPS, check_segment, pack_segments, unpack_segments
from priorzero.rl.returns import discounted_returns
from priorzero.types import Segment, SegmentId

FILE_NAME = "replay.pt"
MIN_PRIORITY = 1e-6  # so that no step is lost for ever (PER, arXiv 1511.05952, section 3.3)

_NO_STEPS = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class Draw:
    """Drawn steps. The segments come along, so that it does not matter if they are evicted meanwhile."""

    ids: list[SegmentId]  # n
    segments: list[Segment]  # n
    weight: np.ndarray  # [n] float32 importance weights, at most 1; all 1 where the draw was uniform
    index: np.ndarray  # [n] int64, serial number and step in one, for update_priorities

    @property
    def steps(self) -> list[int]:
        """Where each window starts in its segment."""
        return [i.step for i in self.ids]


@dataclass(slots=True)
class _Steps:
    """One row a stored step, the oldest first; ``index`` is ascending."""

    index: np.ndarray  # int64, serial number * MAX_STEPS + step
    mass: np.ndarray  # float64, priority^alpha
    decision: np.ndarray  # bool, there was a choice and a search: the language model can learn from it
    finished: np.ndarray  # bool, the return is known

    def extended(self, other: _Steps) -> _Steps:
        return _Steps(*(np.concatenate([getattr(self, f.name), getattr(other, f.name)]) for f in fields(self)))

    def without_first(self, n: int) -> _Steps:
        return _Steps(*(getattr(self, f.name)[n:] for f in fields(self)))


class Replay:
    """The newest segments up to a number of steps; whole segments leave, oldest first.

    Every step of every segment can be drawn, the last included: uniformly, or if ``prioritised`` with probability
    proportional to ``priority^alpha`` (PER, arXiv 1511.05952) and importance weights ``(n p)^-beta`` divided by the
    greatest of the draw. New segments get the greatest priority that is stored.

    Args:
        capacity_steps: steps that are kept.
        prioritised: see above; if False, ``alpha`` and ``beta`` are not read.
        alpha: 0 is uniform, 1 proportional to the priority.
        beta: 0 corrects nothing, 1 corrects fully.
        gamma: discount of the returns that are filled in when an episode ends.
        seed: of the draws.

    Attributes:
        reanalysed: how many drawn states were searched again before they were learned from; counted by who does it.

    Raises:
        ValueError: no room for even one step.
    """

    def __init__(
        self, capacity_steps: int, *, prioritised: bool, alpha: float, beta: float, gamma: float, seed: int
    ) -> None:
        if capacity_steps < 1:
            raise ValueError(f"the replay needs room for at least one step, got capacity_steps={capacity_steps}")
        self.capacity_steps = capacity_steps
        self.prioritised = prioritised
        self.alpha = alpha
        self.beta = beta
        self.gamma = gamma
        self._rng = np.random.default_rng(seed)
        self._lock = threading.Lock()
        self._next_serial = 0
        self._steps_added = 0
        self.reanalysed = 0
        self._clear()

    def _clear(self) -> None:
        self._segments: dict[int, Segment] = {}  # by serial number, oldest first
        self._open: dict[int, list[int]] = {}  # episode -> serial numbers of its segments whose returns are unknown
        self._steps = _Steps(_NO_STEPS, np.zeros(0), np.zeros(0, bool), np.zeros(0, bool))
        self._ends: np.ndarray | None = None  # running sum of the mass, None after a change

    def __len__(self) -> int:
        return len(self._steps.index)

    @property
    def segments(self) -> int:
        """Number of stored segments."""
        return len(self._segments)

    @property
    def steps_added(self) -> int:
        """Steps that ever entered."""
        return self._steps_added

    # --------------------------------------------------------------------------------------------------- coming in

    def add(self, segment: Segment) -> int:
        """Store a segment; the last one of an episode also gives the earlier ones their returns.

        Returns:
            Its serial number.

        Raises:
            ValueError: the segment contradicts itself, does not continue the stored part of its episode, has vectors of
                another width than the others, or is longer than the capacity.
        """
        segment = check_segment(segment)
        if len(segment) > self.capacity_steps:
            raise ValueError(f"a segment of {len(segment)} steps cannot fit capacity_steps={self.capacity_steps}")
        with self._lock:
            self._check_fit(segment)
            serial = self._next_serial
            peak = float(self._steps.mass.max()) if len(self) else 1.0
            self._insert({serial: segment}, np.full(len(segment), peak))
            self._next_serial += 1
            self._steps_added += len(segment)
            self._fill_returns(segment)
            while len(self) > self.capacity_steps:
                self._evict()
            return serial

    def _check_fit(self, segment: Segment) -> None:
        other = next(iter(self._segments.values()), segment)
        if segment.vectors.shape[1] != other.vectors.shape[1]:
            raise ValueError(f"vectors are {segment.vectors.shape[1]} wide, those stored {other.vectors.shape[1]}")
        if before := self._open.get(segment.episode):
            last = self._segments[before[-1]]
            if (segment.game, segment.start) != (last.game, last.start + len(last)):
                raise ValueError(
                    f"episode {segment.episode} of {last.game} is stored up to step {last.start + len(last)}, but a "
                    f"segment of {segment.game} from step {segment.start} came: add the segments of an episode in order"
                )

    def _insert(self, segments: dict[int, Segment], mass: np.ndarray) -> None:
        """Append segments, by serial number; ``mass`` goes over all their steps."""
        index = [serial * MAX_STEPS + np.arange(len(segment)) for serial, segment in segments.items()]
        decision = [_is_decision(segment, t) for segment in segments.values() for t in range(len(segment))]
        known = [segment.returns is not None for segment in segments.values()]
        finished = np.repeat(np.array(known, bool), [len(rows) for rows in index])
        rows = _Steps(np.concatenate([_NO_STEPS, *index]), mass, np.array(decision, bool), finished)
        self._steps = self._steps.extended(rows)
        self._segments |= segments
        self._ends = None
        for serial, segment in segments.items():
            if segment.returns is None:
                self._open.setdefault(segment.episode, []).append(serial)

    def _fill_returns(self, segment: Segment) -> None:
        if segment.returns is None:
            return
        following = segment.returns
        for serial in reversed(self._open.pop(segment.episode, [])):
            earlier = self._segments[serial]
            following = discounted_returns(earlier.learned_rewards, self.gamma, following[0])
            self._segments[serial] = replace(earlier, returns=following)
            first = np.searchsorted(self._steps.index, serial * MAX_STEPS)
            self._steps.finished[first : first + len(earlier)] = True

    def _evict(self) -> None:
        serial = next(iter(self._segments))
        segment = self._segments.pop(serial)
        self._steps = self._steps.without_first(len(segment))
        self._ends = None
        if segment.returns is None:
            self._open[segment.episode].remove(serial)
            if not self._open[segment.episode]:
                del self._open[segment.episode]

    # --------------------------------------------------------------------------------------------------- going out

    def get(self, segment_number: int) -> Segment:
        """A stored segment.

        Raises:
            KeyError: it was evicted, or never existed.
        """
        with self._lock:
            if segment_number not in self._segments:
                raise KeyError(f"segment {segment_number} is not in the replay (evicted, or never added)")
            return self._segments[segment_number]

    def sample_ids(self, n: int) -> Draw:
        """Draw ``n`` steps with replacement.

        Raises:
            RuntimeError: nothing is stored.
        """
        with self._lock:
            if not len(self):
                raise RuntimeError("nothing to sample, the replay is empty: wait with RateLimiter.wait_sample first")
            if not self.prioritised:
                return self._draw(self._steps.index[self._rng.integers(len(self), size=n)])
            if self._ends is None:
                self._ends = np.cumsum(self._steps.mass)
            total = self._ends[-1]
            rows = np.searchsorted(self._ends, self._rng.random(n) * total, side="right").clip(max=len(self) - 1)
            weight = (len(self) * self._steps.mass[rows] / total) ** -self.beta
            return self._draw(self._steps.index[rows], weight / weight.max())

    def sample_decisions(
        self, n: int, rng: np.random.Generator, *, newest_steps: int | None = None, finished: bool = False
    ) -> Draw:
        """Draw ``n`` steps with at least two valid actions and with visits, uniformly and with replacement.

        Args:
            n: how many.
            rng: the caller's, so that two readers do not disturb each other.
            newest_steps: only among so many newest steps of the replay; None: among all.
            finished: only steps whose return is known.

        Returns:
            The draw; it is empty if there is no such step.
        """
        with self._lock:
            tail = slice(None if newest_steps is None else max(0, len(self) - newest_steps), None)
            usable = self._steps.decision[tail]
            if finished:
                usable = usable & self._steps.finished[tail]
            candidates = self._steps.index[tail][usable]
            return self._draw(candidates[rng.integers(len(candidates), size=n)] if len(candidates) else candidates)

    def draw_of(self, index: np.ndarray) -> Draw:
        """The steps of an earlier draw again, without those that were evicted meanwhile."""
        with self._lock:
            return self._draw(index[self._find(index) >= 0])

    def newest(self, n_steps: int) -> list[SegmentId]:
        """The newest ``n_steps`` steps (all, if there are fewer), the newest first."""
        with self._lock:
            return [_identify(i) for i in self._steps.index[::-1][:n_steps].tolist()]

    def update_priorities(self, index: np.ndarray, priorities: np.ndarray) -> None:
        """Give drawn steps new priorities; steps that were evicted meanwhile are passed over.

        Args:
            index: [n] int64, of a ``Draw``. Where a step comes twice, its last priority counts.
            priorities: [n], usually the mean absolute TD error of the window.

        Raises:
            ValueError: a priority is negative or not finite, or the lengths differ.
        """
        index, priorities = np.asarray(index, np.int64), np.asarray(priorities, np.float64)
        if index.shape != priorities.shape:
            raise ValueError(f"steps of shape {index.shape} cannot take priorities of shape {priorities.shape}")
        if not (np.isfinite(priorities) & (priorities >= 0)).all():
            raise ValueError("priorities must be finite and not negative: the loss that gave them has diverged")
        if not self.prioritised:
            return
        with self._lock:
            rows = self._find(index)
            mass = np.maximum(priorities, MIN_PRIORITY) ** self.alpha
            self._steps.mass[rows[rows >= 0]] = mass[rows >= 0]
            self._ends = None

    def _find(self, index: np.ndarray) -> np.ndarray:
        """Rows of these steps, -1 where they are not stored (any more)."""
        if not len(self):
            return np.full(len(index), -1)
        rows = np.searchsorted(self._steps.index, index).clip(max=len(self) - 1)
        return np.where(self._steps.index[rows] == index, rows, -1)

    def _draw(self, index: np.ndarray, weight: np.ndarray | None = None) -> Draw:
        ids = [_identify(i) for i in index.tolist()]
        weight = np.ones(len(ids)) if weight is None else weight
        return Draw(ids, [self._segments[i.segment] for i in ids], weight.astype(np.float32), index)

    # ---------------------------------------------------------------------------------------------------- keeping

    def state_dict(self) -> dict[str, Any]:
        """Everything, the state of the random numbers included, as tensors and plain containers."""
        with self._lock:
            segments = dict(self._segments)
            state = {
                "mass": torch.from_numpy(self._steps.mass.copy()),
                "next_serial": self._next_serial,
                "steps_added": self._steps_added,
                "reanalysed": self.reanalysed,
                "rng": self._rng.bit_generator.state,
            }
        serials = torch.tensor(list(segments), dtype=torch.int64)
        return state | {"serials": serials} | pack_segments(list(segments.values()))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace the contents by those of ``state_dict``. The capacity stays; what exceeds it is evicted.

        Priorities are stored to the power alpha: after a change of alpha they are right once they were updated.
        """
        segments = dict(zip(state["serials"].tolist(), unpack_segments(state), strict=True))
        with self._lock:
            self._clear()
            self._insert(segments, state["mass"].numpy().copy())
            self._next_serial = int(state["next_serial"])
            self._steps_added = int(state["steps_added"])
            self.reanalysed = int(state["reanalysed"])
            self._rng.bit_generator.state = state["rng"]
            while len(self) > self.capacity_steps:
                self._evict()

    def save(self, folder: Path) -> None:
        """Write ``state_dict`` to the folder; a reader sees the old file or the new one, never half of one."""
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / f"{FILE_NAME}.tmp"
        with unfinished.open("wb") as file:
            torch.save(self.state_dict(), file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(folder / FILE_NAME)

    def load(self, folder: Path) -> None:
        """Read what ``save`` wrote.

        Raises:
            FileNotFoundError: the folder holds no replay.
        """
        file = folder / FILE_NAME
        if not file.is_file():
            raise FileNotFoundError(f"no replay at {file}: resume from a folder that Replay.save has written")
        self.load_state_dict(torch.load(file, weights_only=True))


def _is_decision(segment: Segment, step: int) -> bool:
    return len(segment.valid_actions[step]) >= 2 and bool(segment.visit_probs[step].sum() > 0)


def _identify(index: int) -> SegmentId:
    return SegmentId(*divmod(index, MAX_STEPS))
