"""CUDA graphs in a process of several threads.

While a thread records a graph, the device's random generator belongs to the recording. A graph that is replayed in
another thread then, or a random number that is drawn there on the device, ends in "Offset increment outside graph
capture encountered unexpectedly" (torch 2.11). So recordings wait until nothing of that goes on, and the other way
round. What neither replays nor draws need not ask.

A recording needs a cuBLAS workspace of its own. There is one for each stream, allocated when it is first needed: within
a recording it lies in the memory of that graph, and later recordings use it too. When the first graph is dropped, or
the workspaces are cleared (Lightning does so whenever a fit ends), the others go on writing to memory that is no longer
theirs. So the workspaces are forgotten before and after each recording, and every graph keeps its own.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Generator
from typing import Any

import torch


class Turns:
    """Either any number of users, or one that is alone. A thread may be both, one within the other."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._users: dict[int, int] = {}  # thread -> how deep
        self._alone: int | None = None  # thread
        self._waiting = 0  # for being alone

    @contextlib.contextmanager
    def shared(self) -> Generator[None]:
        """Not while another thread is alone, or waits for it."""
        me = threading.get_ident()
        with self._changed:
            inside = me in self._users or self._alone == me
            self._changed.wait_for(lambda: inside or (self._alone is None and not self._waiting))
            self._users[me] = self._users.get(me, 0) + 1
        try:
            yield
        finally:
            with self._changed:
                self._users[me] -= 1
                if not self._users[me]:
                    del self._users[me]
                self._changed.notify_all()

    @contextlib.contextmanager
    def alone(self) -> Generator[None]:
        """Once no other thread is a user, or alone."""
        me = threading.get_ident()
        with self._changed:
            self._waiting += 1
            self._changed.wait_for(lambda: self._alone is None and not self._users.keys() - {me})
            self._waiting -= 1
            self._alone = me
        try:
            yield
        finally:
            with self._changed:
                self._alone = None
                self._changed.notify_all()


_turns = Turns()
random_numbers = _turns.shared  # around code that may draw random numbers on a CUDA device while others record


@contextlib.contextmanager
def recording(graph: torch.cuda.CUDAGraph, pool: Any = None) -> Generator[None]:
    """Record what is launched within. Other threads may launch kernels meanwhile; only this one keeps to the rules."""
    with _turns.alone():
        _forget_workspaces()
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            yield
        _forget_workspaces()


def _forget_workspaces() -> None:
    torch._C._cuda_clearCublasWorkspaces()


def replay(graph: torch.cuda.CUDAGraph) -> None:
    """Launch what ``graph`` recorded."""
    with _turns.shared():
        graph.replay()
