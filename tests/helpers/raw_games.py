"""Jericho without its guards, for tests that what they keep out would indeed break the interpreter and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium

from priorzero.envs.jericho import JerichoEnv, JerichoSpec


@dataclass(frozen=True)
class RawSpec(JerichoSpec):
    """A game that hands every action to the interpreter as it is; "state of PATH" loads another game's state."""

    def build(self) -> gymnasium.Env:
        return RawGame(self)


@dataclass(frozen=True)
class UncheckedSpec(JerichoSpec):
    """A story file that is opened without a look at it."""

    def build(self) -> gymnasium.Env:
        import jericho

        jericho.FrotzEnv(self.story)
        raise AssertionError("the interpreter took the file")


class RawGame(JerichoEnv):
    def step(self, action: str) -> Any:
        if action.startswith("state of "):
            import jericho

            other = jericho.FrotzEnv(action.removeprefix("state of "))
            other.reset()
            self._game.set_state(other.get_state())
            action = "look"
        self._game.step(action)
        return super().step("look")
