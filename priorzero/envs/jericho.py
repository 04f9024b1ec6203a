"""Z-machine games through Jericho, with valid actions found without a language parser.

Source: Hausknecht et al. 2020, "Interactive Fiction Games: A Colossal Adventure". Jericho is GPL-licensed, so it is
imported in worker processes only, inside functions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium

from priorzero.envs.action_cache import ActionCache, CacheConfig
from priorzero.envs.actions import ActionFinder
from priorzero.envs.base import PARTS, EnvError, GameSet, Reply, TextGame, check_common, observed, tidy
from priorzero.envs.hang import ended_after
from priorzero.envs.object_words import below
from priorzero.envs.stories import StoryError, check_story, find_story

SEARCHES = ("fast", "exact", "none")
_COMMAND_S = 2.0  # of processor time, after which a command hangs; most take less than a millisecond


@dataclass(frozen=True)
class JerichoSpec:
    """One story file.

    Attributes:
        story: path of the story file.
        max_steps: step limit of an episode.
        observe: which parts of the observation to fill.
        valid_actions: "exact" fills every template of the game with every pair of objects in every state; "fast" fills
            again only what worked before or was not tried yet in the objects' condition; "none" looks for no actions,
            which suits replays. What "fast" finds in a state may grow as it learns; see `priorzero.envs.templates`.
            To look or to take inventory is valid only where it makes a point.
        valid_actions_cache: how many states keep their valid actions in memory; 0 keeps none there.
        valid_actions_folder: folder of the file that shares them between processes and runs; None for no file.
        valid_actions_entries: how many states that file keeps.
        valid_actions_audit: share of the searches of "fast" that are exact, to count what the others miss.
        valid_actions_refresh: share of the remembered answers that are computed again, to count how many changed.

    Raises:
        EnvError: for a value out of range.
    """

    story: str
    max_steps: int
    observe: tuple[str, ...] = PARTS
    valid_actions: str = "fast"
    valid_actions_cache: int = 100_000
    valid_actions_folder: str | None = None
    valid_actions_entries: int = 1_000_000
    valid_actions_audit: float = 0.0002
    valid_actions_refresh: float = 0.01

    def __post_init__(self) -> None:
        object.__setattr__(self, "observe", check_common(self.observe, self.max_steps))
        object.__setattr__(self, "story", str(Path(self.story).absolute()))
        if self.valid_actions not in SEARCHES:
            raise EnvError(f"valid_actions={self.valid_actions!r} is not valid: choose one of {', '.join(SEARCHES)}.")
        if self.valid_actions_folder is not None:
            object.__setattr__(self, "valid_actions_folder", str(Path(self.valid_actions_folder).absolute()))
        for name, least in (("cache", 0), ("entries", 1)):
            value = getattr(self, f"valid_actions_{name}")
            if value < least:
                raise EnvError(f"valid_actions_{name}={value} is not valid: it must be {least} or more.")
        for name in ("audit", "refresh"):
            share = getattr(self, f"valid_actions_{name}")
            if not 0 <= share <= 1:
                raise EnvError(f"valid_actions_{name}={share} is not valid: it must be from 0 to 1.")

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
    **options: Any,
) -> GameSet:
    """One story file; its episodes differ by their seeds, and there is no other game to hold out.

    Args:
        story_file: a name to look for in ``folders``, or a path.
        folders: where story files lie, in order.
        max_steps: step limit of an episode.
        observe: which parts of the observation to fill.
        options: how the valid actions are found and kept: the other attributes of `JerichoSpec`, by name.

    Raises:
        StoryError: if the story file is missing or not playable.
        EnvError: for an option that `JerichoSpec` refuses.
    """
    path = str(find_story(story_file, folders))
    spec = JerichoSpec(path, max_steps, tuple(observe), **options)
    return GameSet(train=(spec,), heldout=())


class JerichoEnv(TextGame):
    """Plays a story file that Jericho knows.

    Reset seeds the game's chance: seeds are 1 or more, 0 counts as 1, and None is the seed of the walkthrough.

    Raises:
        StoryError: if the file is not playable or Jericho has no bindings for it.
    """

    def __init__(self, spec: JerichoSpec) -> None:
        self._game = _open(spec.story)
        self._actions = None if spec.valid_actions == "none" else self._action_cache(spec)
        self._observe = spec.observe
        self._room = self._carried = self._hash = ""
        self._scoring: list[str] = []  # commands that only ask, and make a point here
        super().__init__(spec, self._game.get_max_score())

    def close(self) -> None:
        """Closes the game; safe to call twice. A closed game cannot be stepped until it is reset."""
        self._game.close()
        if self._actions is not None:
            self._actions.close()
        self._last = None

    def peek(self, command: str) -> str:
        """The answer to a command that is undone: it costs no step and moves nothing, the game's chance included."""
        return self._ask(command)[0]

    def _ask(self, command: str) -> tuple[str, bool]:
        """As `peek`; and whether the command would make a point."""
        game = self._game
        before, score = game.get_state(), game.get_score()
        with ended_after(_COMMAND_S):
            text, _, _, _ = game.step(command)
        scores = game.get_score() > score
        if game._emulator_halted():
            game.reset()
        game.set_state(before)
        return tidy(text), scores

    def _begin(self, seed: int | None) -> Reply:
        if seed is not None and seed < 0:
            raise EnvError(f"seed={seed} is not valid for {self.name}: seeds are 1 or more.")
        self._game.seed(None if seed is None else max(seed, 1))
        if self._actions is not None:
            self._actions.seed(seed or 0)
        text, _ = self._game.reset()
        return self._reply(text)

    def _play(self, action: str) -> Reply:
        with ended_after(_COMMAND_S):
            text, _, _, _ = self._game.step(action)
        return self._reply(text)

    def _reply(self, text: str) -> Reply:
        game = self._game
        terminated = bool(game.game_over() or game.victory() or game._emulator_halted())
        self._hash = _world_hash(game)
        asked = {command: ("", False) if terminated else self._ask(command) for command in ("look", "inventory")}
        self._room, self._carried = (answer for answer, _ in asked.values())
        self._scoring = [command for command, (_, scores) in asked.items() if scores]
        observation = observed((tidy(text), self._room, self._carried), self._observe)
        return Reply(observation, float(game.get_score()), terminated)

    def _valid_actions(self) -> list[str]:
        if self._actions is None:
            return []
        found = self._actions.find(self._hash, self._room, self._carried)
        return sorted({*found, *self._scoring}) if self._scoring else list(found)

    def _info(self, reply: Reply) -> dict[str, Any]:
        """Adds ``info["counts"]``: what was counted since the last info, so that sums over workers stay right."""
        info = super()._info(reply)
        if self._actions is None:
            return info | {"counts": {}}
        counts = dict(self._actions.counts)
        self._actions.counts.clear()
        return info | {"counts": counts}

    def _action_cache(self, spec: JerichoSpec) -> ActionCache:
        finder = ActionFinder(self, self._game, spec.valid_actions == "exact", spec.valid_actions_audit)
        config = CacheConfig(
            memory=spec.valid_actions_cache,
            folder=spec.valid_actions_folder or "",
            entries=spec.valid_actions_entries,
            refresh=spec.valid_actions_refresh,
        )
        return ActionCache(finder, config, _md5(spec.story) + spec.valid_actions.encode())

    def _world_hash(self) -> str:
        return self._hash

    def _room_id(self) -> str:
        location = self._game.get_player_location()
        return "" if location is None else str(location.num)

    def _things(self) -> tuple[str, tuple[str, ...]]:
        objects, player = self._game.get_world_objects(), self._game.player_obj_num
        held = below(objects, player)
        # by name: one of many alike is as good as another; of what is carried also whether it burns, is open and such
        told = sorted(
            (objects[objects[n].parent].name, objects[n].name, bytes(objects[n]._attr).hex() if n in held else "")
            for n in below(objects, objects[player].parent)
        )
        carried = {
            (o.name if o.parent == player else f"{o.name} in {objects[o.parent].name}") + f"\n{bytes(o._attr).hex()}"
            for o in (objects[n] for n in held)
        }
        return "; ".join(f"{holder}: {name} {bits}" for holder, name, bits in told), tuple(sorted(carried))

    def _walkthrough(self) -> list[str] | None:
        return self._game.get_walkthrough()


def _open(story: str) -> Any:
    """Opens a story file with Jericho after checking everything that makes its interpreter end the process."""
    import jericho
    from jericho.defines import BINDINGS_DICT

    check_story(story)
    if _md5(story).hex() not in BINDINGS_DICT:
        raise StoryError(
            f"Jericho has no bindings for {story}: it recognises the contents of a file, and knows other releases of "
            "this game at most. Use the file of the Jericho game suite."
        )
    return jericho.FrotzEnv(story)


def _md5(story: str) -> bytes:
    return hashlib.md5(Path(story).read_bytes(), usedforsecurity=False).digest()


def _world_hash(game: Any) -> str:
    """Hash of the object tree and the watched memory; equal where Jericho's own hash is equal, and cheaper."""
    state = bytes(game.get_world_objects(clean=True)) + game._get_special_ram().tobytes()
    return hashlib.blake2b(state, digest_size=16).hexdigest()
