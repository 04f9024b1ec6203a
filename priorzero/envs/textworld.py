"""TextWorld games: generated on first use, kept in a cache folder, played with the admissible commands as actions.

Source: Cote et al. 2018, "TextWorld: A Learning Environment for Text-based Games". The package imports the GPL-licensed
interpreter, so it is imported in worker processes only, inside functions. Linux and macOS.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium

from priorzero.envs.base import PARTS, EnvError, GameSet, Reply, TextGame, check_common, tidy
from priorzero.envs.stories import StoryError, story_fault
from priorzero.envs.textworld_options import OptionValue, check_options

_EVENT_TAG = re.compile(r"\[[^\]]+\]\n?")  # Inform prints [taking] and the like while a game is traced
_STATUS_TAG = re.compile(r"<(score|moves)>\n.*?</\1>", re.DOTALL)


@dataclass(frozen=True)
class TextWorldSpec:
    """One generated game.

    Attributes:
        family: "cooking", "simple", "coin_collector" or "treasure_hunter".
        options: pairs (or a mapping) of the family's options; those left out have the defaults of ``tw-make``, except
            that `recipe_seed` follows `game_seed`, so that games differ in their recipes. Treasure hunter above level
            20 can take minutes to generate.
        game_seed: seed of the generated world, 0 to 2**32 - 1.
        max_steps: step limit of an episode.
        cache_dir: where generated games are kept; created when needed.
        observe: which parts of the observation to fill.
        leave_out: verbs (first words) of commands that are not offered, for example "examine", which changes nothing.

    Raises:
        EnvError: for an unknown family or option, or a value out of range.
    """

    family: str
    options: tuple[tuple[str, OptionValue], ...]
    game_seed: int
    max_steps: int
    cache_dir: str
    observe: tuple[str, ...] = PARTS
    leave_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", check_options(self.family, dict(self.options)))
        object.__setattr__(self, "observe", check_common(self.observe, self.max_steps))
        object.__setattr__(self, "leave_out", tuple(self.leave_out))
        object.__setattr__(self, "cache_dir", str(Path(self.cache_dir).absolute()))
        if not 0 <= self.game_seed < 2**32:
            raise EnvError(f"game_seed={self.game_seed} is not valid: it must be 0 to 2**32 - 1.")

    @property
    def name(self) -> str:
        """For example "tw-cooking-r1t1cook-7"; differs for every game."""
        options = dict(self.options)
        if self.family == "simple":
            variant = f"{options['rewards']}-{options['goal']}"
        elif self.family == "cooking":
            variant = f"r{options['recipe']}t{options['take']}" + (f"go{options['go']}" if options["go"] != 1 else "")
            variant += "".join(skill for skill in ("open", "cook", "cut", "drop") if options[skill])
            variant += "" if options["recipe_seed"] is None else f"-recipe{options['recipe_seed']}"
        else:
            variant = f"l{options['level']}"
        return f"tw-{self.family}-{variant}-{self.game_seed}"

    def build(self) -> gymnasium.Env:
        """Generates the game if the cache does not hold it, and opens it. Worker processes only."""
        return TextWorldEnv(self, generate(self))


def textworld_games(
    family: str,
    options: Mapping[str, OptionValue],
    train_seeds: Sequence[int],
    heldout_seeds: Sequence[int],
    max_steps: int,
    cache_dir: str | Path,
    observe: Sequence[str] = PARTS,
    leave_out: Sequence[str] = (),
) -> GameSet:
    """Games of one family: one for each seed. Nothing is generated until a game is played.

    Raises:
        EnvError: for options that `TextWorldSpec` refuses, or a seed both trained on and held out.
    """
    both = sorted(set(train_seeds) & set(heldout_seeds))
    if both:
        raise EnvError(f"The TextWorld seeds {both} are both trained on and held out: give each to one side.")

    def specs(seeds: Sequence[int]) -> tuple[TextWorldSpec, ...]:
        pairs, parts, verbs = tuple(options.items()), tuple(observe), tuple(leave_out)
        return tuple(TextWorldSpec(family, pairs, int(s), max_steps, str(cache_dir), parts, verbs) for s in seeds)

    return GameSet(specs(train_seeds), specs(heldout_seeds))


def generate(spec: TextWorldSpec) -> Path:
    """Returns the story file of a game, generated if it is not in the cache.

    Several processes may ask at once: one generates, the others wait. A file appears in the cache complete or not at
    all, and always after the .json that describes the game.

    Raises:
        StoryError: if the file in the cache is damaged.
    """
    import textworld

    folder = Path(spec.cache_dir) / f"textworld-{textworld.__version__}"
    folder.mkdir(parents=True, exist_ok=True)
    story = folder / f"{spec.name}.z8"
    with open(folder / f"{spec.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (story.exists() and story.with_suffix(".json").exists()):
            _generate_into(spec, story)
    fault = story_fault(story.read_bytes())
    if fault:
        raise StoryError(f"The generated game {story} is damaged: {fault}. Delete it, and it is made again.")
    return story


def _generate_into(spec: TextWorldSpec, story: Path) -> None:
    import textworld
    import textworld.challenges
    from textworld.generator import compile_game

    settings: dict[str, Any] = dict(spec.options) | {"split": None, "test": False}
    if settings.get("recipe_seed") is None:
        settings["recipe_seed"] = spec.game_seed
    scratch = Path(tempfile.mkdtemp(prefix=".making-", dir=story.parent))
    try:
        options = textworld.GameOptions()
        options.seeds = spec.game_seed
        options.path = str(scratch / story.name)
        make = textworld.challenges.CHALLENGES[f"tw-{spec.family}"][1]
        compile_game(make(settings, options), options)
        for name in (story.with_suffix(".json").name, story.name):
            os.replace(scratch / name, story.parent / name)
    finally:
        shutil.rmtree(scratch)


class TextWorldEnv(TextGame):
    """Plays a generated game. Reset seeds change nothing: a generated game has no chance in it.

    The room and the inventory come from commands that are undone at once, which halves the cost of letting TextWorld
    print them after every command.
    """

    def __init__(self, spec: TextWorldSpec, story: Path) -> None:
        import textworld

        infos = textworld.EnvInfos(
            admissible_commands=True,
            max_score=True,
            score=True,
            objective=True,
            won=True,
            lost=True,
            extras=["walkthrough"],
        )
        self._env: Any = textworld.start(str(story), infos)
        self._env.seed(1)
        self._observe = spec.observe
        self._leave_out = set(spec.leave_out)
        self._hidden = {part for part in ("look", "inventory") if part in spec.observe}
        self._state: Any = self._env.reset()
        super().__init__(spec, self._state.max_score, tidy(self._state.objective))

    def close(self) -> None:
        """Closes the game for good; safe to call twice."""
        self._env.close()
        self._last = None

    def _begin(self, seed: int | None) -> Reply:
        self._state = self._env.reset()
        banner = self._state.feedback.rfind("$$")  # the title is drawn with dollar signs
        end = self._state.feedback.find("\n", banner) if banner >= 0 else 0
        return self._reply(self._state.feedback[end:], terminated=False)

    def _play(self, action: str) -> Reply:
        self._state, _, terminated = self._env.step(action)
        return self._reply(self._state.feedback, terminated)

    def _reply(self, feedback: str, terminated: bool) -> Reply:
        shown = tidy(feedback) if "feedback" in self._observe else ""
        look, inventory = (
            "" if terminated or part not in self._hidden else self._peek(part) for part in ("look", "inventory")
        )
        return Reply((shown, look, inventory), float(self._state.score), terminated)

    def _peek(self, command: str) -> str:
        """The answer to a command that is undone: it costs no step and moves nothing."""
        interpreter = self._env.unwrapped._jericho
        before = interpreter.get_state()
        text, _, _, _ = interpreter.step(command)
        interpreter.set_state(before)
        return tidy(_STATUS_TAG.sub("", _EVENT_TAG.sub("", text)))

    def _valid_actions(self) -> list[str]:
        commands = set(self._state.admissible_commands) - self._hidden
        return sorted(c for c in commands if c.split(" ", 1)[0] not in self._leave_out)

    def _world_hash(self) -> str:
        facts = sorted(str(fact) for fact in self._state["_facts"])
        return hashlib.blake2b("\n".join([str(self._state.score), *facts]).encode(), digest_size=16).hexdigest()

    def _walkthrough(self) -> list[str] | None:
        commands = self._state.get("extra.walkthrough")
        return commands and [c for c in commands if c.split(" ", 1)[0] not in self._leave_out]
