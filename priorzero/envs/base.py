"""What every text game shares: specs, and the bookkeeping of an episode.

This module and the games run in worker processes, which must stay small: nothing here imports torch. An observation
is therefore a plain tuple ``(feedback, look, inventory)``; `priorzero.envs.vector` makes it a
`priorzero.types.Observation`.
"""

from __future__ import annotations

import re
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import gymnasium
from gymnasium.spaces import Text, Tuple

from priorzero.envs.sanitise import MAX_ACTION_BYTES, PRINTABLE, action_fault

PARTS = ("feedback", "look", "inventory")
FALLBACK_ACTIONS = ("look", "wait")  # offered where a game knows no valid action
MAX_TEXT_CHARS = 1 << 16


class EnvError(RuntimeError):
    """A game cannot be built or played as asked; the message says what to do."""


@runtime_checkable
class GameSpec(Protocol):
    """Names one game and knows how to build it. Picklable and hashable; importable by name in a worker process."""

    @property
    def name(self) -> str:
        """Unique name of the game, the key of its action vocabulary."""

    @property
    def max_steps(self) -> int:
        """Steps after which an episode is truncated."""

    def build(self) -> gymnasium.Env:
        """Makes the environment. Called in a worker process only."""


@dataclass(frozen=True)
class GameSet:
    """The games to train on and the games to evaluate on."""

    train: tuple[GameSpec, ...]
    heldout: tuple[GameSpec, ...]


@dataclass(frozen=True, slots=True)
class Reply:
    """What a game says after a reset or an action."""

    observation: tuple[str, str, str]  # feedback, look, inventory
    score: float
    terminated: bool


def check_common(observe: Sequence[str], max_steps: int) -> tuple[str, ...]:
    """Checks the options that all specs share.

    Returns:
        The observation parts in the order of `PARTS`; "score" is every game's and need not be filled by it.

    Raises:
        EnvError: for an unknown or missing part, or a step limit below 1.
    """
    parts = tuple(part for part in PARTS if part in observe)
    if not parts or not set(observe) <= {*PARTS, "score"}:
        raise EnvError(
            f"observe={list(observe)} is not valid: choose one or more of {', '.join(PARTS)}, and score if you like."
        )
    if max_steps < 1:
        raise EnvError(f"max_steps={max_steps} is not valid: it must be at least 1.")
    return parts


def observed(texts: tuple[str, str, str], observe: Sequence[str]) -> tuple[str, str, str]:
    """The texts of the `PARTS`, with "" for those that are not among ``observe``."""
    feedback, look, inventory = (text if part in observe else "" for part, text in zip(PARTS, texts, strict=True))
    return feedback, look, inventory


def tidy(text: str) -> str:
    """Strips the text, the ends of its lines and repeated blank lines."""
    lines = "\n".join(line.rstrip() for line in text.splitlines())
    return re.sub(r"\n{3,}", "\n\n", lines).strip()


class TextGame(gymnasium.Env[tuple[str, ...], str], ABC):
    """An episode of a text game: reward is the score delta, the end is latched, unsafe actions never reach the game.

    Args:
        spec: the game; ``info["game"]`` is its name.
        max_score: the best score of the game.
        goal: the task in words, where the game states one.

    Attributes:
        valid_actions_s: processor time that was spent on valid actions, in seconds.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}

    def __init__(self, spec: GameSpec, max_score: float, goal: str = "") -> None:
        self.name, self.max_steps, self.max_score, self.goal = spec.name, spec.max_steps, float(max_score), goal
        letters = "".join(chr(code) for code in range(0x20, 0x7F)) + "\n\t"
        letters += bytes(range(0x80, 0x100)).decode("cp1252", "ignore")
        text = Text(max_length=MAX_TEXT_CHARS, min_length=0, charset=letters)
        self.observation_space = Tuple((text, text, text))
        self.action_space = Text(max_length=MAX_ACTION_BYTES, min_length=1, charset="".join(sorted(PRINTABLE)))
        self._steps = 0
        self._last: Reply | None = None
        self._over = False
        self._empty_valid_actions = 0
        self.valid_actions_s = 0.0

    @abstractmethod
    def _begin(self, seed: int | None) -> Reply:
        """Starts an episode."""

    @abstractmethod
    def _play(self, action: str) -> Reply:
        """Sends one safe action to the game."""

    @abstractmethod
    def _valid_actions(self) -> list[str]:
        """Actions that are worth trying in the state of the last reply, sorted."""

    @abstractmethod
    def _world_hash(self) -> str:
        """Identifies the state of the game world."""

    def _room_id(self) -> str:
        """Identifies where the player is, also where rooms look alike; empty where nobody knows."""
        return ""

    def _things(self) -> tuple[str, tuple[str, ...]]:
        """A text that identifies what is in the room and carried, and its condition if it is carried, also what closed
        things hide; and what is carried, in what, and its condition, as in `Step.carried`. Empty where nobody knows.
        """
        return "", ()

    @abstractmethod
    def _walkthrough(self) -> list[str] | None:
        """Actions that win the game, if known."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[tuple[str, str, str], dict[str, Any]]:
        """Starts an episode; ``info["walkthrough"]`` wins from the game's own seed (None), if such a list is known."""
        super().reset(seed=seed)
        self._last, self._steps = self._begin(seed), 0
        self._over = self._last.terminated
        walkthrough = self._walkthrough() if seed is None else None
        return self._last.observation, self._info(self._last) | {"walkthrough": walkthrough}

    def step(self, action: str) -> tuple[tuple[str, str, str], float, bool, bool, dict[str, Any]]:
        """Plays one action. An action that `action_fault` refuses costs a step and changes nothing.

        Raises:
            EnvError: before the first reset and after the end of an episode.
        """
        if self._last is None or self._over:
            state = "has not begun" if self._last is None else "is over"
            raise EnvError(f"The episode of {self.name} {state}: call reset before step.")
        fault = action_fault(action)
        before = self._last
        if fault:
            feedback = f"[priorzero: the action {str(action)[:40]!a} is not allowed: it {fault}.]"
            reply = Reply((feedback, *before.observation[1:]), before.score, False)
        else:
            reply = self._play(action)
        self._last, self._steps = reply, self._steps + 1
        truncated = not reply.terminated and self._steps >= self.max_steps
        self._over = reply.terminated or truncated
        return reply.observation, float(reply.score - before.score), reply.terminated, truncated, self._info(reply)

    def _info(self, reply: Reply) -> dict[str, Any]:
        start = time.process_time()
        valid = [] if self._over else self._valid_actions()
        self.valid_actions_s += time.process_time() - start
        if not valid and not self._over:
            valid = list(FALLBACK_ACTIONS)
            self._empty_valid_actions += 1
        objects, carried = self._things()
        return {
            "valid_actions": valid,
            "score": float(reply.score),
            "max_score": self.max_score,
            "world_hash": self._world_hash(),
            "room": self._room_id(),
            "objects": objects,
            "carried": carried,
            "goal": self.goal,
            "game": self.name,
            "steps": self._steps,
            "empty_valid_actions": self._empty_valid_actions,
        }
