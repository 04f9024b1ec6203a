"""Trainings that are stopped from outside."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.slices import Conditions, Job, run_all


class Sleeper(Job):
    """Trains nothing, says that it was asked to stop, and would go on for ever."""

    def train(self, part: Path, more: Sequence[str]) -> list[str]:
        asked = f"open({str(self.folder / 'asked')!r}, 'w').close(); raise SystemExit(130)"
        body = f"import signal, time\ntry: print('on', flush=True); time.sleep(60)\nexcept KeyboardInterrupt: {asked}"
        return [sys.executable, "-c", body]

    def measurements(self, saved: Path) -> dict[Path, list[str]]:
        raise AssertionError("nothing is measured of a run that was stopped")


def kill_once(job: Job, number: int) -> None:
    """The signal, as soon as the run has begun."""
    log = job.folder / "part_00" / "output.txt"
    while not (log.is_file() and log.read_text()):
        threading.Event().wait(0.05)
    os.kill(os.getpid(), number)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_runs_in_order(number: signal.Signals, tmp_path: Path):
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a background job of a shell
    job = Sleeper("sleeper", 0, tmp_path)
    killer = threading.Thread(target=kill_once, args=(job, number))
    killer.start()
    try:
        stop = threading.Event()
        assert run_all([job], 1, Conditions(1.0, (), 0, stop)) == []
    finally:
        killer.join()
        for n, handler in before.items():
            signal.signal(n, handler)
    assert stop.is_set()
    assert (job.folder / "asked").is_file()
    assert 0 < job.seconds < 30
