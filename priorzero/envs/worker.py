"""The child process of a worker: plays games and answers over a pipe.

Started by `priorzero.envs.process.Worker` as a fresh interpreter. Messages are plain tuples; `Answer`
is the reply.
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import resource
import signal
import tempfile
import threading
import time
import traceback
from collections import OrderedDict
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import gymnasium

from priorzero.envs.base import EnvError, GameSpec, TextGame

OPEN_GAMES = 4
_MAX_FILE_BYTES = 1 << 26  # a game that prints without end must not fill the disk
_PARENT_CHECK_S = 1.0
_STUCK_S = 60.0


class Answer(NamedTuple):
    """What the child sends back. ``kind`` is "ok", "error" (the caller's mistake) or "crash" (a bug)."""

    kind: str
    payload: tuple[Any, ...]  # ok: (observation, reward, terminated, truncated, info); else: (class name, message)


class Games:
    """The open games of one worker, and the episode that is being played."""

    def __init__(self) -> None:
        self._open: OrderedDict[GameSpec, gymnasium.Env] = OrderedDict()
        self._current: gymnasium.Env | None = None

    def reset(self, pickled_spec: bytes, seed: int | None) -> tuple[Any, ...]:
        """Starts an episode of a game, opening the game if it is not open yet."""
        self._current = None  # a failed reset must not leave the old episode playable
        env = self._env(pickle.loads(pickled_spec))
        clock = _Clock(env)
        observation, info = env.reset(seed=seed)
        self._current = env
        return tuple(observation), 0.0, False, False, info | {"seconds": clock.seconds()}

    def step(self, action: str) -> tuple[Any, ...]:
        """Plays one action.

        Raises:
            EnvError: if no episode has begun in this worker.
        """
        if self._current is None:
            raise EnvError("No episode has begun in this worker: call reset before step.")
        clock = _Clock(self._current)
        observation, *rest, info = self._current.step(action)
        return tuple(observation), *rest, info | {"seconds": clock.seconds()}

    def _env(self, spec: GameSpec) -> gymnasium.Env:
        if spec not in self._open:
            self._open[spec] = spec.build()
            if len(self._open) > OPEN_GAMES:
                _, oldest = self._open.popitem(last=False)
                oldest.close()
        self._open.move_to_end(spec)
        return self._open[spec]


class _Clock:
    """Processor time since it was made: all of it, and what the game spent on valid actions."""

    def __init__(self, env: gymnasium.Env) -> None:
        self._env = env
        self._start, self._valid = time.process_time(), self._valid_actions_s()

    def _valid_actions_s(self) -> float:
        return self._env.valid_actions_s if isinstance(self._env, TextGame) else 0.0

    def seconds(self) -> dict[str, float]:
        return {"step": time.process_time() - self._start, "valid_actions": self._valid_actions_s() - self._valid}


def serve(connection: Connection) -> None:
    """Answers requests until the other end of the pipe closes."""
    games = Games()
    while True:
        try:
            command, *arguments = pickle.loads(connection.recv_bytes())
        except EOFError:
            return
        connection.send_bytes(pickle.dumps(tuple(_answer(games, command, arguments))))


def _answer(games: Games, command: str, arguments: list[Any]) -> Answer:
    try:
        return Answer("ok", {"reset": games.reset, "step": games.step}[command](*arguments))
    except EnvError as error:
        return Answer("error", (type(error).__name__, str(error)))
    except Exception as error:  # reported to the parent, which counts it and replaces this process
        traceback.print_exc()
        return Answer("crash", (type(error).__name__, str(error)))


def main(descriptor: int, parent: int) -> None:
    """Runs a worker. Its working directory is its own scratch folder and its output goes to a file in it.

    Args:
        descriptor: file descriptor of the pipe.
        parent: process id of the parent; the worker ends when it does, even in the middle of a hanging game.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, _MAX_FILE_BYTES)
    tempfile.tempdir = os.getcwd()
    threading.Thread(target=_exit_with_parent, args=(parent,), daemon=True).start()
    serve(Connection(descriptor))


def _limit(what: int, most: int) -> None:
    _, hard = resource.getrlimit(what)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(what, (most, hard))  # `ActionStore` lifts it for its own file


def _exit_with_parent(parent: int) -> None:
    """Ends this process, and the compilers that it started, within moments of the parent's end.

    Code that never lets another Python thread run stops this loop too; then the watchdog of `faulthandler`, which needs
    no turn, ends the process.
    """
    while os.getppid() == parent:
        faulthandler.dump_traceback_later(_STUCK_S, exit=True)
        time.sleep(_PARENT_CHECK_S)
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(0)
