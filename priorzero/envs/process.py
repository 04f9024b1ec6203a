"""The parent's end of a worker process: starts it, asks it, and kills it when it does not answer.

A worker is a fresh interpreter started with `subprocess` (not `multiprocessing`: it never imports the caller's main
module, works under any caller and may start compilers of its own). It has a process group, a scratch folder and a log
file of its own, so that neither Ctrl-C nor what a game prints reaches or blocks anything else.
"""

from __future__ import annotations

import logging
import os
import pickle
import select
import signal
import subprocess
import sys
import time
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from priorzero.envs.base import EnvError
from priorzero.envs.hang import HUNG
from priorzero.envs.stories import StoryError

log = logging.getLogger(__name__)

EXIT_GRACE_S = 1.0
_LOG_TAIL_BYTES = 2000
_ERRORS = {"EnvError": EnvError, "StoryError": StoryError}
_BOOT = "import sys; sys.path[:] = sys.argv[3:]; from priorzero.envs.worker import main; main(*map(int, sys.argv[1:3]))"


class WorkerLost(Exception):
    """A worker crashed, hung or met a bug. ``kind`` is "crash" or "timeout"."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind


class Worker:
    """The parent's handle of one child process.

    Args:
        folder: scratch folder, made here; the child's working directory. Its output goes to ``worker.log`` in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self._connection, theirs = Pipe()
        self._ready = select.poll()  # made once: the connection's own poll makes a new selector each time
        self._ready.register(self._connection.fileno(), select.POLLIN)
        arguments = [str(theirs.fileno()), str(os.getpid()), *map(os.path.abspath, sys.path)]
        with theirs, open(folder / "worker.log", "wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BOOT, *arguments],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def send(self, message: tuple[Any, ...], timeout_s: float) -> None:
        """Sends a request whose answer is due after ``timeout_s`` seconds. A dead child shows at `receive`."""
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        try:
            self._connection.send_bytes(pickle.dumps(message))
        except OSError:
            log.debug("worker %s is gone; receive will say why", self._process.pid)

    def receive(self) -> tuple[Any, ...]:
        """Waits for the answer.

        Returns:
            What `Games.reset` or `Games.step` returned.

        Raises:
            EnvError: (or StoryError) raised by the game for a mistake of the caller.
            WorkerLost: if the child crashed, hung or met a bug; it has been killed.
        """
        try:
            if not self._ready.poll(1e3 * max(0.0, self._deadline - time.monotonic())):
                self.stop(grace_s=0)
                raise WorkerLost("timeout", f"no answer within {self._timeout_s:g} s")
            kind, payload = pickle.loads(self._connection.recv_bytes())
        except (EOFError, OSError) as error:
            self.stop(grace_s=EXIT_GRACE_S)
            if self._process.returncode == -HUNG:
                raise WorkerLost("timeout", "the game did not come back from a command") from error
            raise WorkerLost("crash", _exit_text(self._process.returncode)) from error
        if kind == "crash":
            self.stop(grace_s=0)
            raise WorkerLost("crash", ": ".join(payload))
        if kind == "error":
            name, message = payload
            raise _ERRORS.get(name, EnvError)(message)
        return payload

    def log_tail(self) -> str:
        """The end of what the child printed."""
        with open(self.folder / "worker.log", "rb") as output:
            output.seek(max(0, output.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
            return output.read().decode(errors="replace").strip()

    def hang_up(self) -> None:
        """Closes the pipe, at which an idle child ends."""
        self._connection.close()

    def stop(self, grace_s: float) -> None:
        """Hangs up and, after ``grace_s`` seconds, kills the child and all that it started."""
        self.hang_up()
        try:
            self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def _exit_text(returncode: int) -> str:
    if returncode < 0:
        return f"the process was killed by {signal.Signals(-returncode).name}"
    return f"the process ended with status {returncode}"
