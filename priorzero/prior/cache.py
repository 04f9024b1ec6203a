"""Remembers scores while the weights that gave them are in use."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

import numpy as np


class PriorCache:
    """Bounded least-recently-used store of ``[A]`` log-probabilities of one policy version. Not thread safe.

    Args:
        capacity: entries kept; 0 keeps none.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 0:
            raise ValueError(f"the capacity of a cache is 0 or more, not {capacity}")
        self.capacity = capacity
        self.version = 0
        self._entries: OrderedDict[Hashable, np.ndarray] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def use_version(self, version: int) -> None:
        """Entries of any other version are dropped."""
        if version != self.version:
            self._entries.clear()
            self.version = version

    def get(self, key: Hashable) -> np.ndarray | None:
        """The stored array (read only), or None."""
        found = self._entries.get(key)
        if found is not None:
            self._entries.move_to_end(key)
        return found

    def entries(self) -> list[tuple[Any, np.ndarray]]:
        """All keys and arrays, the least recently used first."""
        return list(self._entries.items())

    def put(self, key: Hashable, logprobs: np.ndarray) -> None:
        """Stores an array, and drops the one that was not used for the longest time."""
        logprobs.setflags(write=False)
        self._entries[key] = logprobs
        self._entries.move_to_end(key)
        while len(self._entries) > self.capacity:
            self._entries.popitem(last=False)
