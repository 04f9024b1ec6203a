"""Z-machine games through Jericho, with valid actions found without a language parser.

Source: Hausknecht et al. 2020, "Interactive Fiction Games: A Colossal Adventure". Jericho is GPL-licensed, so it is
imported in worker processes only, inside functions.
"""

from __future__ import annotations

import hashlib
import sys
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium

from priorzero.envs.actions import ActionFinder
from priorzero.envs.base import PARTS, EnvError, GameSet, Reply, TextGame, check_common, tidy
from priorzero.envs.stories import StoryError, check_story, find_story

SEARCHES = ("fast", "exact", "none")


@dataclass(frozen=True)
class JerichoSpec:
    """One story file.

    Attributes:
        story: path of the story file.
        max_steps: step limit of an episode.
        observe: which parts of the observation to fill.
        valid_actions: "exact" fills every template of the game with every pair of objects; "fast" leaves out pairs of
            which nothing is carried and rare verbs with two objects; "none" looks for no actions, which suits replays.
        valid_actions_cache: how many states keep their valid actions; 0 computes them at every step. The key is the
            world hash with the room and the inventory, which leaves out hidden timers: about 1 % of the actions of a
            late state may then be missing or without effect.

    Raises:
        EnvError: for a value out of range.
    """

    story: str
    max_steps: int
    observe: tuple[str, ...] = PARTS
    valid_actions: str = "fast"
    valid_actions_cache: int = 100_000

    def __post_init__(self) -> None:
        object.__setattr__(self, "observe", check_common(self.observe, self.max_steps))
        object.__setattr__(self, "story", str(Path(self.story).absolute()))
        if self.valid_actions not in SEARCHES:
            raise EnvError(f"valid_actions={self.valid_actions!r} is not valid: choose one of {', '.join(SEARCHES)}.")
        if self.valid_actions_cache < 0:
            raise EnvError(f"valid_actions_cache={self.valid_actions_cache} is not valid: it must be 0 or more.")

    @property
    def name(self) -> str:
        """The name of the story file without its suffix."""
        return Path(self.story).stem

    def build(self) -> gymnasium.Env:
        """Opens the story file. Worker processes only."""
        return JerichoEnv(self)


def jericho_games(
    story_file: str,
    folders: Sequence[str | Path],
    max_steps: int,
    observe: Sequence[str] = PARTS,
    valid_actions: str = "fast",
    valid_actions_cache: int = 100_000,
) -> GameSet:
    """One story file; its episodes differ by their seeds, and there is no other game to hold out.

    Args:
        story_file: a name to look for in ``folders``, or a path.
        folders: where story files lie, in order.
        max_steps: step limit of an episode.
        observe: which parts of the observation to fill.
        valid_actions: how they are found; see `JerichoSpec`.
        valid_actions_cache: how many states keep theirs; see `JerichoSpec`.

    Raises:
        StoryError: if the story file is missing or not playable.
        EnvError: for an option that `JerichoSpec` refuses.
    """
    path = str(find_story(story_file, folders))
    spec = JerichoSpec(path, max_steps, tuple(observe), valid_actions, valid_actions_cache)
    return GameSet(train=(spec,), heldout=())


class JerichoEnv(TextGame):
    """Plays a story file that Jericho knows.

    Reset seeds the game's chance: seeds are 1 or more, 0 counts as 1, and None is the seed of the walkthrough.

    Raises:
        StoryError: if the file is not playable or Jericho has no bindings for it.
    """

    def __init__(self, spec: JerichoSpec) -> None:
        self._game = _open(spec.story)
        exact = spec.valid_actions == "exact"
        self._finder = None if spec.valid_actions == "none" else ActionFinder(self, self._game, exact)
        self._observe = spec.observe
        self._cache: OrderedDict[bytes, tuple[str, ...]] = OrderedDict()
        self._cache_size = spec.valid_actions_cache
        self._room = self._carried = self._hash = ""
        super().__init__(spec, self._game.get_max_score())

    def close(self) -> None:
        """Closes the game; safe to call twice. A closed game cannot be stepped until it is reset."""
        self._game.close()
        self._last = None

    def peek(self, command: str) -> str:
        """The answer to a command that is undone: it costs no step and moves nothing, the game's chance included."""
        before = self._game.get_state()
        text, _, _, _ = self._game.step(command)
        if self._game._emulator_halted():
            self._game.reset()
        self._game.set_state(before)
        return tidy(text)

    def _begin(self, seed: int | None) -> Reply:
        if seed is not None and seed < 0:
            raise EnvError(f"seed={seed} is not valid for {self.name}: seeds are 1 or more.")
        self._game.seed(None if seed is None else max(seed, 1))
        text, _ = self._game.reset()
        return self._reply(text)

    def _play(self, action: str) -> Reply:
        text, _, _, _ = self._game.step(action)
        return self._reply(text)

    def _reply(self, text: str) -> Reply:
        game = self._game
        terminated = bool(game.game_over() or game.victory() or game._emulator_halted())
        self._hash = _world_hash(game)
        self._room = "" if terminated else self.peek("look")
        self._carried = "" if terminated else self.peek("inventory")
        parts = zip(PARTS, (tidy(text), self._room, self._carried), strict=True)
        feedback, look, inventory = (shown if part in self._observe else "" for part, shown in parts)
        return Reply((feedback, look, inventory), float(game.get_score()), terminated)

    def _valid_actions(self) -> list[str]:
        if self._finder is None:
            return []
        seen = "\0".join((self._hash, self._room, self._carried)).encode()
        key = hashlib.blake2b(seen, digest_size=16).digest()
        if key in self._cache:
            self._cache.move_to_end(key)
            return list(self._cache[key])
        found = tuple(map(sys.intern, self._finder.find(self._room, self._carried)))
        if self._cache_size:
            self._cache[key] = found
            if len(self._cache) > self._cache_size:
                self._cache.popitem(last=False)
        return list(found)

    def _world_hash(self) -> str:
        return self._hash

    def _walkthrough(self) -> list[str] | None:
        return self._game.get_walkthrough()


def _open(story: str) -> Any:
    """Opens a story file with Jericho after checking everything that makes its interpreter end the process."""
    import jericho
    from jericho.defines import BINDINGS_DICT

    check_story(story)
    if hashlib.md5(Path(story).read_bytes(), usedforsecurity=False).hexdigest() not in BINDINGS_DICT:
        raise StoryError(
            f"Jericho has no bindings for {story}: it recognises the contents of a file, and knows other releases of "
            "this game at most. Use the file of the Jericho game suite."
        )
    return jericho.FrotzEnv(story)


def _world_hash(game: Any) -> str:
    """Hash of the object tree and the watched memory; equal where Jericho's own hash is equal, and 20 times cheaper."""
    state = bytes(game.get_world_objects(clean=True)) + game._get_special_ram().tobytes()
    return hashlib.blake2b(state, digest_size=16).hexdigest()
