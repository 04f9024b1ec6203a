import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from fake_games import FakeGame, FakeSpec

from priorzero.envs.base import EnvError
from priorzero.envs.process import Worker, WorkerLost
from priorzero.envs.worker import OPEN_GAMES, Games


def request(spec: FakeSpec, seed: int = 1) -> tuple[bytes, int]:
    return pickle.dumps(spec), seed


def test_game_that_was_not_played_for_longest_is_closed(monkeypatch: pytest.MonkeyPatch):
    closed = []
    monkeypatch.setattr(FakeGame, "close", lambda game: closed.append(game.name))
    games = Games()
    for name in ["first", *(f"game {n}" for n in range(OPEN_GAMES - 1)), "first", "one too many"]:
        games.reset(*request(FakeSpec(name)))
    assert closed == ["game 0"]


def test_step_needs_an_episode_and_a_failed_reset_leaves_none(tmp_path: Path):
    games = Games()
    with pytest.raises(EnvError, match="No episode has begun"):
        games.step("up")
    games.reset(*request(FakeSpec()))
    assert games.step("up")[1] == 1
    with pytest.raises(EnvError, match="option is bad"):
        games.reset(*request(FakeSpec(trouble="bad option", times=1, marks=str(tmp_path))))
    with pytest.raises(EnvError, match="No episode has begun"):
        games.step("up")


@pytest.fixture
def worker(tmp_path: Path):
    worker = Worker(tmp_path / "worker")
    yield worker
    worker.stop(grace_s=0)


def play(worker: Worker, action: str, timeout_s: float = 20) -> tuple:
    worker.send(("reset", *request(FakeSpec())), 30)
    worker.receive()
    worker.send(("step", action), timeout_s)
    return worker.receive()


def test_worker_answers_from_its_own_folder_and_process_group(worker: Worker):
    (_, look, inventory), *_ = play(worker, "up")
    assert (look, inventory) == ("", "")
    (_, process, folder), *_ = _reset(worker)
    number = int(process.split()[1])
    assert Path(folder) == worker.folder.absolute()
    assert os.getpgid(number) == number != os.getpgrp()


def _reset(worker: Worker) -> tuple:
    worker.send(("reset", *request(FakeSpec())), 30)
    return worker.receive()


def test_files_of_a_game_are_limited(worker: Worker):
    with pytest.raises(WorkerLost, match=r"crash: OSError: .*File too large"):
        play(worker, "fill the disk")
    assert (worker.folder / "big").stat().st_size <= 1 << 26


def test_code_that_lets_no_thread_run_is_ended_by_the_watchdog(worker: Worker):
    with pytest.raises(WorkerLost, match="crash: the process ended with status 1"):
        play(worker, "let no other thread run", timeout_s=40)
    assert "Timeout (0:00:01.5" in worker.log_tail()


def test_programs_that_a_game_started_end_with_its_time(worker: Worker):
    with pytest.raises(WorkerLost, match="timeout: no answer within 1 s"):
        play(worker, "compile", timeout_s=1)
    assert _ends(int((worker.folder / "compiler").read_text()))


@pytest.mark.parametrize(
    ("sent", "action"),
    [
        (signal.SIGTERM, ""),
        (signal.SIGINT, ""),
        (signal.SIGTERM, "hang"),
        (signal.SIGINT, "hang"),
        (signal.SIGKILL, "compile"),
    ],
)
def test_workers_end_with_their_parent(sent: signal.Signals, action: str, tmp_path: Path):
    script = textwrap.dedent(
        f"""
        import sys, os, signal, time
        from pathlib import Path
        sys.path[:] = {sys.path!r}
        signal.signal(signal.SIGINT, signal.default_int_handler)
        from fake_games import FakeSpec
        from priorzero.envs.vector import VectorEnv
        envs = VectorEnv(2, timeout_s=50, reset_timeout_s=50, scratch_dir=Path("scratch"))
        steps = envs.reset([0, 1], [FakeSpec()] * 2, [1, 1])
        if {action!r}:
            envs.send([0], [{action!r}])
            while {action!r} == "compile" and not list(Path("scratch").glob("*/*/compiler")):
                time.sleep(0.05)
        found = [step.observation.look.split()[1] for step in steps]
        found += [file.read_text() for file in Path("scratch").glob("*/*/compiler")]
        sys.stdout.write(" ".join(found))
        sys.stdout.flush()
        os.kill(os.getpid(), {int(sent)})
        time.sleep(30)
        """
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    processes = [int(number) for number in run.stdout.split()]
    assert len(processes) == (3 if action == "compile" else 2), run.stderr
    assert all(_ends(number) for number in processes)


def _ends(process: int, within_s: float = 10) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state in "ZX":
            return True
        time.sleep(0.05)
    return False
