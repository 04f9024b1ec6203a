"""Where the prompts of a language model that learns from its own answers come from: a file, or what was played."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from priorzero.data.collate import situation
from priorzero.data.replay import Replay
from priorzero.text.prompt import PromptBuilder
from priorzero.types import PromptRow, Segment

Extras = Callable[[Sequence[Segment], Sequence[int]], Sequence[dict[str, Any]]]
GAME = "game"  # data source of prompts from games


def unfit_sources(rows: set[str], rewards: Mapping[str, Mapping[str, float]]) -> str:
    """Says in what rewards do not fit the prompts that they are for; empty where they do.

    Args:
        rows: data sources of the prompts.
        rewards: data source to {reward: weight}, as in ``rl.grading.Grader``.
    """
    known = {str(source) for source in rewards}
    if missing := sorted(rows - known):
        nameless = ", or set the data_source of the prompts that have none" if "" in missing else ""
        return (
            f"reward.sources has no rewards for {missing}, it has some for {sorted(known)}: choose another reward "
            f"(reward=game is for games, reward=qa for questions), or add reward.sources.{missing[-1] or 'NAME'}"
            f"{nameless}"
        )
    weighted = {str(source) for source, weights in rewards.items() if any(weights.values())}
    if unused := sorted(weighted - rows):
        return (
            f"reward.sources.{unused[0]} gives weight to rewards of prompts that never occur (data sources that do: "
            f"{sorted(rows)}): leave it out with ~reward.sources.{unused[0]}, or set the data_source of the prompts"
        )
    return ""


class PromptSource(Protocol):
    """Endless tasks with a state. Each row that is handed out is a group of its own: its ``group_id`` is a number."""

    @property
    def data_sources(self) -> frozenset[str]:
        """The data sources that its rows can have."""
        ...

    def take(self, count: int) -> list[PromptRow]:
        """The next ``count`` rows."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Random numbers and counters, as plain containers."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where ``state_dict`` was taken."""
        ...


class FixedPrompts:
    """Rows of a file, in another order every time they are through.

    Args:
        rows: all of them.
        seed: of the orders.

    Raises:
        ValueError: there are none.
    """

    def __init__(self, rows: Sequence[PromptRow], seed: int) -> None:
        if not rows:
            raise ValueError("there are no prompts to train on")
        self._rows, self._seed = tuple(rows), seed
        self._taken = 0

    @property
    def data_sources(self) -> frozenset[str]:
        """See ``PromptSource``."""
        return frozenset(row.data_source for row in self._rows)

    def take(self, count: int) -> list[PromptRow]:
        """See ``PromptSource``."""
        taken = []
        orders: dict[int, np.ndarray] = {}
        for number in range(self._taken, self._taken + count):
            epoch, place = divmod(number, len(self._rows))
            if epoch not in orders:
                orders[epoch] = np.random.default_rng((self._seed, epoch)).permutation(len(self._rows))
            taken.append(replace(self._rows[orders[epoch][place]], group_id=f"{number}"))
        self._taken += count
        return taken

    def state_dict(self) -> dict[str, Any]:
        """See ``PromptSource``."""
        return {"taken": self._taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See ``PromptSource``."""
        self._taken = int(state["taken"])


class PlayedPrompts:
    """Situations of the newest steps of the replay; the right answer is what the search chose most often there.

    Args:
        replay: where segments are.
        prompts: writes the prompts.
        newest_steps: how far back it reaches.
        seed: of the draws.
        extras: what rewards and tools want to know of each step besides (``PromptRow.extra``); None for nothing.
    """

    def __init__(
        self,
        replay: Replay,
        prompts: PromptBuilder,
        *,
        newest_steps: int,
        seed: int,
        extras: Extras | None,
    ) -> None:
        self._replay, self._prompts, self._newest_steps = replay, prompts, newest_steps
        self._extras = extras
        self._rng = np.random.default_rng(seed)
        self._taken = 0

    @property
    def data_sources(self) -> frozenset[str]:
        """See ``PromptSource``."""
        return frozenset((GAME,))

    def take(self, count: int) -> list[PromptRow]:
        """See ``PromptSource``.

        Raises:
            ValueError: the replay has no step with a choice.
        """
        draw = self._replay.sample_decisions(count, self._rng, newest_steps=self._newest_steps)
        if not draw.ids:
            raise ValueError(
                "the replay has no step with two valid actions and visits to make prompts of: let a policy that "
                "searches play (collector.policy=wm_prior), and enough steps before the first update "
                "(collector.min_env_steps)"
            )
        extras = self._extras(draw.segments, draw.steps) if self._extras else [{}] * len(draw.ids)
        return [
            self._row(segment, step, extra)
            for segment, step, extra in zip(draw.segments, draw.steps, extras, strict=True)
        ]

    def _row(self, segment: Segment, step: int, extra: dict[str, Any]) -> PromptRow:
        now = situation(segment, step)
        row = self._prompts.row(now)
        self._taken += 1
        return replace(
            row,
            answer=now.valid_actions[int(np.argmax(segment.visit_probs[step]))],
            data_source=GAME,
            state_id=hashlib.blake2b(repr((row.messages, segment.game)).encode(), digest_size=8).hexdigest(),
            group_id=f"{self._taken}",
            extra=extra,
        )

    def state_dict(self) -> dict[str, Any]:
        """See ``PromptSource``."""
        return {"taken": self._taken, "rng": self._rng.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See ``PromptSource``."""
        self._taken = int(state["taken"])
        self._rng.bit_generator.state = state["rng"]
