"""Ends a worker process whose game does not come back from a command.

Some story files loop for ever: in Zork I, a sack that lies in a nest in hand takes "all", and with it what it lies in.
Nobody can call an interpreter in C back, and to wait for `collector.timeout_s` holds up all other games.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Generator

HUNG = signal.SIGVTALRM  # ends a process that does not handle it, Python or not


@contextlib.contextmanager
def ended_after(seconds: float) -> Generator[None]:
    """`HUNG` ends this process if the code within takes more than so many seconds of its own processor time.

    What waits for a busy machine or for a file is not counted. Main thread of a worker process only; not to be nested.
    """
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
