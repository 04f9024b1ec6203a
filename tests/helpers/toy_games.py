"""A game for tests: a corridor with a coin at its east end. Tiny, quick, and made like the real ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import gymnasium

from priorzero.envs.base import EnvError, GameSet, Reply, TextGame


@dataclass(frozen=True)
class CorridorSpec:
    """``length`` rooms in a row. Reaching the last one scores 1; taking the coin there scores 1 more and wins."""

    length: int = 3
    max_steps: int = 8
    breaks_at: int | None = None  # in this step of an episode the game refuses to go on

    @property
    def name(self) -> str:
        return f"corridor-{self.length}"

    def build(self) -> gymnasium.Env:
        return Corridor(self)


class Corridor(TextGame):
    """The seed chooses where an episode starts: anywhere but in the last room."""

    def __init__(self, spec: CorridorSpec) -> None:
        super().__init__(spec, max_score=2, goal="take the coin")
        self.spec = spec

    def _begin(self, seed: int | None) -> Reply:
        self.room, self.reached, self.taken = (seed or 0) % (self.spec.length - 1), False, False
        return self._reply("You wake up.")

    def _play(self, action: str) -> Reply:
        if self._steps + 1 == self.spec.breaks_at:
            raise EnvError("the corridor has collapsed")
        if action in ("go east", "go west"):
            self.room += 1 if action == "go east" else -1
        self.reached = self.reached or self.room == self.spec.length - 1
        self.taken = action == "take coin"
        return self._reply(f"You {action}.")

    def _reply(self, feedback: str) -> Reply:
        look = f"room {self.room} of {self.spec.length}"
        return Reply((feedback, look, "a coin" if self.taken else "nothing"), self.reached + self.taken, self.taken)

    def _valid_actions(self) -> list[str]:
        last = self.room == self.spec.length - 1
        choices = {"go west": self.room > 0, "go east": not last, "take coin": last, "wait": True}
        return sorted(action for action, possible in choices.items() if possible)

    def _world_hash(self) -> str:
        return f"{self.room} {self.reached} {self.taken}"

    def _things(self) -> tuple[str, tuple[str, ...]]:
        return "", ("lantern",)

    def _walkthrough(self) -> list[str] | None:
        return ["go east"] * (self.spec.length - 1) + ["take coin"]


def corridor_games(
    lengths: Sequence[int], max_steps: int, observe: Sequence[str], breaks_at: int | None = None
) -> GameSet:
    """What ``env=corridor`` builds."""
    return GameSet(tuple(CorridorSpec(n, max_steps, breaks_at) for n in lengths), (CorridorSpec(6, max_steps),))
