"""Remembers the valid actions of states, in memory and in a file that the workers of all runs share.

The key is the world hash with the texts of the room and the inventory. It leaves out hidden timers and chance, so
remembered actions may be missing or without effect; a small share of the answers is therefore computed again, and the
counts say how many had changed.
"""

from __future__ import annotations

import logging
import random
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from sys import intern
from typing import TypeVar

from priorzero.envs.action_store import ActionStore
from priorzero.envs.actions import ALGORITHM, ActionFinder
from priorzero.envs.base import EnvError

log = logging.getLogger(__name__)

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class CacheConfig:
    """How much is remembered.

    Attributes:
        memory: states in the memory of a process; 0 keeps none there.
        folder: folder of the shared file; "" for no file.
        entries: states in the file.
        refresh: share of the answers that are computed again.
    """

    memory: int
    folder: str
    entries: int
    refresh: float


class ActionCache:
    """Answers for an `ActionFinder` where it can.

    Args:
        finder: finds the actions of a state that is not remembered.
        config: how much is remembered.
        game: names the game and everything that the actions of a state depend on.

    Attributes:
        counts: the finder's, and ``memory_hits``, ``disk_hits``, ``refreshed`` (hits that were computed again),
            ``refresh_differs`` (those of them whose actions had changed), ``rebuilt`` (damaged files replaced),
            ``file_lost`` (1 once the file has failed in use: from then on this process plays without it).

    Raises:
        EnvError: the file cannot be used to begin with.
    """

    def __init__(self, finder: ActionFinder, config: CacheConfig, game: bytes) -> None:
        self._finder, self._config = finder, config
        self._game = blake2b(game + ALGORITHM.to_bytes(4, "big"), digest_size=16).digest()
        self._memory: OrderedDict[bytes, tuple[str, ...]] = OrderedDict()
        self._chance = random.Random(0)
        self.counts: Counter[str] = finder.counts
        self._store: ActionStore | None = None
        if config.folder:
            self._store = ActionStore(Path(config.folder), self._game, config.entries, self.counts)

    def seed(self, seed: int) -> None:
        """Which answers are audited or computed again depends on the seed of the episode."""
        self._chance.seed(f"refresh {seed}")
        self._finder.seed(seed)

    def find(self, world_hash: str, room: str, carried: str) -> tuple[str, ...]:
        """The valid actions of the finder's current state, sorted; arguments as in `ActionFinder.find`."""
        seen = "\0".join((world_hash, room, carried)).encode()
        key = blake2b(self._game + seen, digest_size=16).digest()
        found = self._recall(key)
        if found is not None and self._chance.random() >= self._config.refresh:
            return found
        fresh = self._search(key, room, carried)
        if found is not None:
            self.counts.update(refreshed=1, refresh_differs=fresh != found)
        return fresh

    def close(self) -> None:
        """Closes the file."""
        if self._store is not None:
            self._store.close()

    def _recall(self, key: bytes) -> tuple[str, ...] | None:
        if key in self._memory:
            self._memory.move_to_end(key)
            self.counts["memory_hits"] += 1
            return self._memory[key]
        found = self._use(lambda store: store.get(key))
        if found is None:
            return None
        self.counts["disk_hits"] += 1
        return self._remember(key, found)

    def _search(self, key: bytes, room: str, carried: str) -> tuple[str, ...]:
        self._use(lambda store: store.catch_up(self._finder.known))
        actions, tried, useful = self._finder.find(room, carried)
        self._use(lambda store: store.put(key, actions, tried, useful))
        return self._remember(key, tuple(actions))

    def _use(self, what: Callable[[ActionStore], _Result]) -> _Result | None:
        """Ask the file; None where there is none. One that fails in use is left: it only saves time."""
        if self._store is None:
            return None
        try:
            return what(self._store)
        except EnvError as error:
            log.warning("%s Going on without it; finding valid actions takes longer from here.", error)
            self.counts["file_lost"] = 1
            self._store = None
            return None

    def _remember(self, key: bytes, actions: tuple[str, ...]) -> tuple[str, ...]:
        actions = tuple(map(intern, actions))
        if self._config.memory:
            self._memory[key] = actions
            self._memory.move_to_end(key)
            if len(self._memory) > self._config.memory:
                self._memory.popitem(last=False)
        return actions
