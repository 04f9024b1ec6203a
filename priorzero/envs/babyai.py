"""BabyAI levels in words: a grid world seen seven cells far, six actions, and a mission for a goal.

Source: Chevalier-Boisvert et al. 2019, "BabyAI: A Platform to Study the Sample Efficiency of Grounded Language
Learning", in the version of ``minigrid``, an optional library (extra ``babyai``).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import gymnasium

from priorzero.envs.babyai_text import ACTIONS, hands, useful_actions, view, world_hash
from priorzero.envs.base import PARTS, EnvError, GameSet, Reply, TextGame, check_common, observed

_LEVEL = re.compile(r"(?:BabyAI-)?([A-Za-z0-9]+)(?:-v\d+)?")


@dataclass(frozen=True)
class BabyAISpec:
    """One level with one seed: a fixed world and mission.

    Attributes:
        level: name of the level, for example "GoToRedBallGrey"; "BabyAI-GoToRedBallGrey-v0" is the same.
        game_seed: seed of the world and its mission, 0 to 2**32 - 1.
        max_steps: step limit of an episode, and the T of the reward ``1 - 0.9 t / T`` for success after t steps.
        observe: which parts of the observation to fill. The feedback is the view after the action, so that the room
            description (look), which is the view too, adds nothing; the inventory is what the player carries.

    Raises:
        EnvError: for a value out of range.
    """

    level: str
    game_seed: int
    max_steps: int
    observe: tuple[str, ...] = PARTS

    def __post_init__(self) -> None:
        object.__setattr__(self, "observe", check_common(self.observe, self.max_steps))
        match = _LEVEL.fullmatch(self.level)
        if match is None:
            raise EnvError(f"level={self.level!r} is not valid: it must be a name such as GoToRedBallGrey.")
        object.__setattr__(self, "level", match[1])
        if not 0 <= self.game_seed < 2**32:
            raise EnvError(f"game_seed={self.game_seed} is not valid: it must be 0 to 2**32 - 1.")

    @property
    def name(self) -> str:
        """For example "babyai-GoToRedBallGrey-7"."""
        return f"babyai-{self.level}-{self.game_seed}"

    def build(self) -> gymnasium.Env:
        """Makes the world. Worker processes only."""
        return BabyAIEnv(self)


def babyai_games(
    level: str,
    train_seeds: Sequence[int],
    heldout_seeds: Sequence[int],
    max_steps: int,
    observe: Sequence[str] = PARTS,
) -> GameSet:
    """Worlds of one level: one for each seed.

    Raises:
        EnvError: if minigrid is not installed, for options that `BabyAISpec` refuses, or a seed both trained on and
            held out.
    """
    _require_minigrid()
    both = sorted(set(train_seeds) & set(heldout_seeds))
    if both:
        raise EnvError(f"The BabyAI seeds {both} are both trained on and held out: give each to one side.")

    def specs(seeds: Sequence[int]) -> tuple[BabyAISpec, ...]:
        return tuple(BabyAISpec(level, int(seed), max_steps, tuple(observe)) for seed in seeds)

    return GameSet(specs(train_seeds), specs(heldout_seeds))


class BabyAIEnv(TextGame):
    """Plays one world. Reset seeds change nothing: there is no chance in a world once it is made.

    The score is the reward, which comes with success, and 1 would be success in no time. Words other than `ACTIONS`
    cost a step and change nothing.

    Raises:
        EnvError: if minigrid is not installed or there is no such level.
    """

    def __init__(self, spec: BabyAISpec) -> None:
        self._spec = spec
        self._level = _open(spec)
        self._observe = spec.observe
        super().__init__(spec, max_score=1.0, goal=self._level.mission)

    def close(self) -> None:
        """Closes the world; safe to call twice."""
        self._level.close()
        self._last = None

    def _begin(self, seed: int | None) -> Reply:
        self._level.reset(seed=self._spec.game_seed)
        return self._reply(0.0, terminated=False)

    def _play(self, action: str) -> Reply:
        if action not in ACTIONS:
            return self._reply(0.0, terminated=False, answer=f"You can only {', '.join(ACTIONS)}. ")
        self._level.step_count = self._steps  # the level has not seen the words that are no actions
        _, reward, terminated, _, _ = self._level.step(ACTIONS.index(action))
        return self._reply(float(reward), bool(terminated))

    def _reply(self, score: float, terminated: bool, answer: str = "") -> Reply:
        seen = view(self._level)
        return Reply(observed((answer + seen, seen, hands(self._level)), self._observe), score, terminated)

    def _valid_actions(self) -> list[str]:
        return useful_actions(self._level)

    def _world_hash(self) -> str:
        return world_hash(self._level)

    def _walkthrough(self) -> list[str] | None:
        return demonstration(_open(self._spec))


def demonstration(level: Any) -> list[str] | None:
    """What minigrid's bot does in a fresh level, in words; None where it does not succeed within the level's limit.

    The bot knows the levels of the paper. Among the others it gives up with an `AssertionError` where the player
    starts with something in hand or a key lies in a box, and fails missions that forbid wrong doors.
    """
    from minigrid.utils.baby_ai_bot import BabyAIBot

    bot, words, suggested = BabyAIBot(level), [], None
    while len(words) < level.max_steps:
        try:
            suggested = int(bot.replan(suggested))
        except AssertionError:
            return None
        if suggested == level.actions.done:  # nothing to do but to let time pass, in words that have no effect now
            suggested = ACTIONS.index("drop" if level.carrying is None else "pick up")
        words.append(ACTIONS[suggested])
        _, reward, terminated, _, _ = level.step(suggested)
        if terminated:
            return words if reward > 0 else None
    return None


def _open(spec: BabyAISpec) -> Any:
    _require_minigrid()
    import minigrid  # noqa: F401  registers the levels

    versions = [name for name in gymnasium.registry if re.fullmatch(rf"BabyAI-{spec.level}-v\d+", name)]
    if not versions:
        levels = sorted({name.split("-")[1] for name in gymnasium.registry if name.startswith("BabyAI-")})
        close = ", ".join(difflib.get_close_matches(spec.level, levels, n=3) or levels[:8])
        raise EnvError(f"There is no BabyAI level {spec.level!r} (of {len(levels)}): close names are {close}.")
    level: Any = gymnasium.make(max(versions), disable_env_checker=True).unwrapped
    level.max_steps, level.fixed_max_steps = spec.max_steps, True
    level.reset(seed=spec.game_seed)
    return level


def _require_minigrid() -> None:
    if find_spec("minigrid") is None:
        raise EnvError("BabyAI needs the library minigrid: pip install 'priorzero[babyai]', or pip install minigrid.")
