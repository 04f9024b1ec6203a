"""All action texts ever seen: a number and a sentence vector for each."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

_FIRST_CAPACITY = 256


class ActionVocabulary:
    """Gives every action text one id, for good, and knows which actions each game has shown.

    It only grows. Any number of threads may read while others add: what a reader was given never changes, and an id
    that a reader can get has its vector in place.

    Args:
        encode: sentence vectors ``[n, width]`` float32 of ``n`` texts.
        width: E, the width of a vector.
    """

    def __init__(self, encode: Callable[[Sequence[str]], np.ndarray], width: int) -> None:
        self._encode = encode
        self._width = width
        self._lock = threading.Lock()  # held by writers only
        self._clear()

    def _clear(self) -> None:
        self._ids: dict[str, int] = {}
        self._texts: list[str] = []
        self._members: dict[str, np.ndarray] = {}  # arrays are replaced, never written to
        self._member_sets: dict[str, set[int]] = {}
        self._vectors = np.zeros((_FIRST_CAPACITY, self._width), dtype=np.float32)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __contains__(self, action: str) -> bool:
        return action in self._ids

    def add(self, game: str, actions: Sequence[str]) -> np.ndarray:
        """Ids ``[n]`` int32 of ``n`` actions that ``game`` offers; texts never seen before are encoded and appended."""
        with self._lock:
            new = [text for text in dict.fromkeys(actions) if text not in self._ids]
            if new:
                self._append(new, self._encode(new))
            ids = np.array([self._ids[text] for text in actions], dtype=np.int32)
            self._join(game, ids)
        return ids

    def ids(self, actions: Sequence[str]) -> np.ndarray:
        """Ids ``[n]`` int32 of known actions.

        Raises:
            KeyError: an action was never added.
        """
        try:
            return np.array([self._ids[text] for text in actions], dtype=np.int32)
        except KeyError as error:
            raise KeyError(f"the action {error.args[0]!r} is not in the vocabulary: add it first") from None

    def text(self, id: int) -> str:
        """The action with this id.

        Raises:
            IndexError: no action has it.
        """
        if not 0 <= id < self._size:
            raise IndexError(f"no action has id {id}: the vocabulary has {self._size}")
        return self._texts[id]

    def vectors(self) -> np.ndarray:
        """Vectors ``[V, E]`` float32 of all actions so far, row = id. Read-only; later additions do not show in it."""
        size = self._size  # before the array: that one only ever grows
        view = self._vectors[:size]
        view.flags.writeable = False
        return view

    def members(self, game: str) -> np.ndarray:
        """Ids ``[v]`` int32 of the actions seen in ``game``, in the order of first sight; empty for an unknown game."""
        return self._members.get(game, np.zeros(0, dtype=np.int32))

    def state_dict(self) -> dict[str, Any]:
        """Everything, as plain containers and one tensor: texts, vectors ``[V, E]``, members by game."""
        with self._lock:
            return {
                "texts": list(self._texts),
                "vectors": torch.from_numpy(self._vectors[: self._size].copy()),
                "members": {game: ids.tolist() for game, ids in self._members.items()},
            }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the vocabulary that ``state_dict`` described.

        Raises:
            ValueError: its vectors have another width, so they come from another sentence encoder.
        """
        vectors = state["vectors"].numpy()
        if vectors.shape != (len(state["texts"]), self._width):
            raise ValueError(
                f"the saved action vectors have shape {vectors.shape}, expected {len(state['texts'])} x {self._width}: "
                "resume with the sentence encoder that the run was started with"
            )
        with self._lock:
            self._clear()
            self._append(state["texts"], vectors)
            for game, ids in state["members"].items():
                self._join(game, np.array(ids, dtype=np.int32))

    def _append(self, texts: Sequence[str], vectors: np.ndarray) -> None:
        """Publish new texts: vectors first, ids last, so that readers never meet an id without its vector."""
        size = self._size + len(texts)
        capacity = len(self._vectors)
        if size > capacity:
            while capacity < size:
                capacity *= 2
            grown = np.zeros((capacity, self._width), dtype=np.float32)
            grown[: self._size] = self._vectors[: self._size]
            self._vectors = grown
        self._vectors[self._size : size] = vectors
        first = self._size
        self._texts.extend(texts)
        self._size = size
        self._ids.update((text, first + i) for i, text in enumerate(texts))

    def _join(self, game: str, ids: np.ndarray) -> None:
        """Note that ``game`` offers ``ids``."""
        known = self._member_sets.setdefault(game, set())
        fresh = [number for number in dict.fromkeys(ids.tolist()) if number not in known]
        if fresh:
            known.update(fresh)
            joined = np.concatenate([self.members(game), np.array(fresh, dtype=np.int32)])
            joined.flags.writeable = False
            self._members[game] = joined
