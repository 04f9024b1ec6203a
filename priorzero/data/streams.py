"""Endless batches from the replay: one stream for each of the two models. Knows no Lightning.

A stream is an iterator. It waits where the rate limiter says so, raises what made the collector fail, and ends when its
``stop`` event is set while it waits. Its state is small; the replay is saved apart. Under several ranks each rank has
its own replay, limiter and streams, and nothing here talks to another rank.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from torch import Tensor

from priorzero.data.collate import Pack, policy_batch, world_model_batch
from priorzero.data.limiter import POLL_S, RateLimiter
from priorzero.data.reanalysis import FreshPolicies
from priorzero.data.replay import Draw, Replay
from priorzero.rl.advantages import AdvantageNormaliser, Normalisation, ReturnBaseline
from priorzero.text.prompt import PromptBuilder
from priorzero.text.vocabulary import ActionVocabulary
from priorzero.types import PolicyBatch, Segment, WorldModelBatch

AdvantageSource = Literal["world_model", "returns"]
Advantages = Callable[[Sequence[Segment], Sequence[int]], np.ndarray]  # (segments [n], steps [n]) -> [n]


class Stream(Protocol):
    """Endless batches with a state."""

    def __iter__(self) -> Iterator[Any]: ...

    def __next__(self) -> Any: ...

    def state_dict(self) -> dict[str, Any]:
        """Counters and random numbers, as tensors and plain containers."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where ``state_dict`` was taken."""
        ...


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a stream draws from, and how it takes turns with the collector."""

    replay: Replay
    limiter: RateLimiter
    limited: bool  # its samples count for the limiter; False: it only waits for the first min_size inserts
    stall_s: float  # raise if nothing could be drawn for so long
    stop: threading.Event  # ends a wait, and with it the stream

    def admit(self, n: int) -> None:
        """Wait until ``n`` samples may be drawn.

        Raises:
            StopIteration: stopped.
            RuntimeError: the collector failed (chained), or is stalled.
        """
        if self.limited:
            allowed = self.limiter.wait_sample(self.stop, n, self.stall_s)
        else:
            allowed = self.limiter.wait_ready(self.stop, self.stall_s)
        if not allowed:
            self._give_up(
                f"{self.limiter.inserted} steps inserted, {self.limiter.sampled} samples taken: "
                "is the collector running, and is min_size within the replay's reach?"
            )

    def taken(self, n: int) -> None:
        """Record ``n`` samples, where they count."""
        if self.limited:
            self.limiter.sample(n)

    def wait_for(self, draw: Callable[[], Draw], what: str) -> Draw:
        """The first draw that is not empty; raises like ``admit``."""
        deadline = time.monotonic() + self.stall_s
        while not len((found := draw()).ids):
            if self.stop.is_set() or time.monotonic() > deadline:
                self._give_up(f"the replay's {len(self.replay)} steps hold no {what}")
            self.limiter.wait_ready(self.stop)  # raises if the collector has failed
            self.stop.wait(POLL_S)
        return found

    def _give_up(self, why: str) -> None:
        if self.stop.is_set():
            raise StopIteration
        raise RuntimeError(f"no batch for {self.stall_s} s; {why}")


# -------------------------------------------------------------------------------------------------------- world model


@dataclass(frozen=True, kw_only=True)
class WorldModelDataConfig:
    """What a world-model batch looks like."""

    batch_size: int  # windows
    unroll: int  # T, trained steps
    bootstrap: int  # n of the n-step targets
    max_known: int | None  # negatives a game in the policy loss, None: all that are known


class WorldModelStream:
    """Windows drawn by the replay's own rule. A window counts as one sample.

    Args:
        source: where to draw.
        vocabulary: knows all actions of the segments.
        config: what a batch looks like.
        seed: of absorbing actions and negatives.
        fresh: gives some windows new policy targets, None: all keep those that they were played with.
    """

    def __init__(
        self,
        source: Source,
        vocabulary: ActionVocabulary,
        config: WorldModelDataConfig,
        *,
        seed: int,
        fresh: FreshPolicies | None = None,
    ) -> None:
        self.source = source
        self.batches = 0
        self._vocabulary = vocabulary
        self._config = config
        self._fresh = fresh
        self._rng = np.random.default_rng(seed)

    def __iter__(self) -> Iterator[WorldModelBatch]:
        return self

    def __next__(self) -> WorldModelBatch:
        config = self._config
        self.source.admit(config.batch_size)
        draw = self.source.replay.sample_ids(config.batch_size)
        self.source.taken(config.batch_size)
        segments = draw.segments if self._fresh is None else self._fresh(draw, self.batches)
        self.batches += 1
        return world_model_batch(
            segments,
            draw.steps,
            unroll=config.unroll,
            bootstrap=config.bootstrap,
            vocabulary=self._vocabulary,
            weight=draw.weight,
            index=draw.index,
            max_known=config.max_known,
            rng=self._rng,
        )

    def state_dict(self) -> dict[str, Any]:
        """Counter and random numbers."""
        return {"batches": self.batches, "rng": self._rng.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where ``state_dict`` was taken."""
        self.batches = int(state["batches"])
        self._rng.bit_generator.state = state["rng"]


# ------------------------------------------------------------------------------------------------------------- policy


@dataclass(frozen=True, kw_only=True)
class PolicyDataConfig:
    """Which steps the language model learns from.

    Raises:
        ValueError: the batch does not divide into micro-batches, a share is out of range, or a name is unknown.
    """

    batch_size: int  # steps drawn, and normalised, together
    micro_batch_size: int  # steps a batch that is handed out; divides batch_size
    newest_steps: int  # how far back "newest" reaches, in steps of the replay
    newest_share: float  # of the batch is drawn from the newest steps, the rest from all
    advantage: AdvantageSource  # by the world model, or returns less their running mean
    normalisation: Normalisation
    decay: float  # of running means: of the normalisation and of the return baseline

    def __post_init__(self) -> None:
        if self.micro_batch_size < 1 or self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} must be a multiple of micro_batch_size {self.micro_batch_size}"
            )
        if not 0.0 <= self.newest_share <= 1.0:
            raise ValueError(f"newest_share is a share of the batch, between 0 and 1, got {self.newest_share}")
        if self.advantage not in get_args(AdvantageSource):
            raise ValueError(f"unknown advantage source {self.advantage!r}: choose one of {get_args(AdvantageSource)}")


class PolicyStream:
    """Steps with a choice and with visits, drawn in batches and handed out in micro-batches.

    Args:
        source: where to draw.
        config: what to draw.
        prompts: writes prompts and answers.
        pack: ``priorzero.policy.packing.pack``.
        pad_id: token of the padding.
        advantages: the world model's, needed if ``config.advantage`` is ``world_model``. Called once a batch.
        seed: of the draws.
        reduce: sums moments over ranks, see ``AdvantageNormaliser``.

    Raises:
        ValueError: the advantage source is missing.
    """

    def __init__(
        self,
        source: Source,
        config: PolicyDataConfig,
        *,
        prompts: PromptBuilder,
        pack: Pack,
        pad_id: int,
        advantages: Advantages | None,
        seed: int,
        reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if config.advantage == "world_model" and advantages is None:
            raise ValueError("advantage=world_model needs a world model: pass advantages, or choose advantage=returns")
        self.source = source
        self.batches = 0  # micro-batches
        self._config = config
        self._prompts, self._pack, self._pad_id = prompts, pack, pad_id
        self._world_model = advantages if config.advantage == "world_model" else None
        self._baseline = ReturnBaseline(config.decay)
        self._normalise = AdvantageNormaliser(config.normalisation, decay=config.decay, reduce=reduce)
        self._rng = np.random.default_rng(seed)
        self._steps: list[tuple[Segment, int]] = []  # still to be handed out
        self._index = np.zeros(0, np.int64)  # of these, as are the advantages
        self._advantages = np.zeros(0, np.float32)

    def __iter__(self) -> Iterator[PolicyBatch]:
        return self

    def __next__(self) -> PolicyBatch:
        if len(self._steps) < len(self._index):
            self._fetch_restored()
        if not self._steps:
            self._refill()
        size = self._config.micro_batch_size
        segments, steps = zip(*self._steps[:size], strict=True)
        batch = policy_batch(
            segments,
            steps,
            prompts=self._prompts,
            pack=self._pack,
            pad_id=self._pad_id,
            advantages=self._advantages[:size],
        )
        self._keep(self._steps[size:], self._index[size:], self._advantages[size:])
        self.batches += 1
        return batch

    def _refill(self) -> None:
        config = self._config
        self.source.admit(config.batch_size)
        finished = config.advantage == "returns"
        replay, rng = self.source.replay, self._rng
        what = "step with two valid actions and visits" + (" and a known return" if finished else "")
        count = round(config.newest_share * config.batch_size)
        new = replay.sample_decisions(count, rng, newest_steps=config.newest_steps, finished=finished)
        draws = [new]
        if rest := config.batch_size - len(new.ids):
            draw = partial(replay.sample_decisions, rest, rng, finished=finished)
            draws.append(self.source.wait_for(draw, what))
        self.source.taken(config.batch_size)
        segments = [s for draw in draws for s in draw.segments]
        steps = [t for draw in draws for t in draw.steps]
        advantages = self._normalise(torch.from_numpy(self._raw_advantages(segments, steps))).numpy()
        order = rng.permutation(config.batch_size)  # mixes the newest with the rest
        index = np.concatenate([draw.index for draw in draws])
        self._keep([(segments[i], steps[i]) for i in order], index[order], advantages[order])

    def _raw_advantages(self, segments: list[Segment], steps: list[int]) -> np.ndarray:
        if self._world_model is not None:
            return np.asarray(self._world_model(segments, steps), np.float32)
        known = zip(segments, steps, strict=True)  # their returns are: only finished steps were drawn
        returns = np.array([s.returns[step] for s, step in known if s.returns is not None])
        return self._baseline.advantages([segment.game for segment in segments], returns)

    def _keep(self, steps: list[tuple[Segment, int]], index: np.ndarray, advantages: np.ndarray) -> None:
        self._steps, self._index, self._advantages = steps, index, advantages

    def _fetch_restored(self) -> None:
        draw = self.source.replay.draw_of(self._index)
        stored = np.isin(self._index, draw.index)  # what was evicted before the checkpoint is passed over
        steps = list(zip(draw.segments, draw.steps, strict=True))
        self._keep(steps, self._index[stored], self._advantages[stored])

    def state_dict(self) -> dict[str, Any]:
        """Counters, random numbers, running means, and what was drawn but not yet handed out."""
        return {
            "batches": self.batches,
            "rng": self._rng.bit_generator.state,
            "baseline": self._baseline.state_dict(),
            "normalise": self._normalise.state_dict(),
            "index": torch.from_numpy(self._index.copy()),
            "advantages": torch.from_numpy(self._advantages.copy()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where ``state_dict`` was taken; the replay may be loaded before or after."""
        self.batches = int(state["batches"])
        self._rng.bit_generator.state = state["rng"]
        self._baseline.load_state_dict(state["baseline"])
        self._normalise.load_state_dict(state["normalise"])
        self._keep([], state["index"].numpy().copy(), state["advantages"].numpy().copy())
