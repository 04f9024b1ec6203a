import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_games import FakeSpec

from priorzero.envs.base import EnvError
from priorzero.envs.stories import StoryError
from priorzero.envs.vector import VectorEnv
from priorzero.types import Observation


@pytest.fixture(scope="module")
def envs() -> Iterator[VectorEnv]:
    with VectorEnv(2, timeout_s=20, reset_timeout_s=30) as vector:
        yield vector


@pytest.fixture
def marks(tmp_path: Path) -> str:
    folder = tmp_path / "marks"
    folder.mkdir()
    return str(folder)


def test_steps_carry_what_the_games_say(envs: VectorEnv):
    steps = envs.reset([0, 1], [FakeSpec(), FakeSpec("other")], [4, None])
    assert [s.game for s in steps] == ["fake", "other"]
    assert isinstance(steps[0].observation, Observation)
    assert [s.observation.feedback for s in steps] == ["seed 4", "seed None"]
    assert steps[0].observation.look != steps[1].observation.look  # two processes
    assert steps[0].valid_actions == ("up", "win")
    assert (steps[0].reward, steps[0].max_score, steps[0].goal, steps[0].done) == (0, 3, "count", False)
    before = envs.counts["infos"]
    first, second = envs.step([1, 0], ["up", "win"])
    assert envs.counts["infos"] == before + 2
    assert (first.game, first.reward, first.score, first.world_hash) == ("other", 1, 1, "1.0")
    assert (second.terminated, second.valid_actions) == (True, ())


def test_send_returns_before_the_answer(envs: VectorEnv):
    envs.reset([0, 1], [FakeSpec()] * 2, [1, 1])
    envs.send([0, 1], ["up", "wait"])
    with pytest.raises(EnvError, match="answer waiting"):
        envs.send([0], ["up"])
    assert [s.reward for s in envs.receive([1])] == [0]
    assert [s.reward for s in envs.receive([0])] == [1]
    with pytest.raises(EnvError, match=r"Nothing was sent to the slots \[0\]"):
        envs.receive([0])


def test_resets_and_steps_are_received_together(envs: VectorEnv, marks: str):
    envs.reset([0], [FakeSpec()], [1])
    before = dict(envs.seconds)
    envs.send([0], ["up"])
    envs.send_reset([1], [FakeSpec(trouble="exit", times=1, marks=marks)], [7])
    stepped, fresh = envs.receive([0, 1])
    assert (stepped.reward, stepped.fault) == (1, "")
    assert (fresh.observation.feedback, fresh.reward, fresh.fault) == ("seed 7", 0, "")
    spent = {name: envs.seconds[name] - before[name] for name in before}
    assert spent["step"] > spent["valid_actions"] > 0
    with pytest.raises(EnvError, match=r"Nothing was sent to the slots \[1\]"):
        envs.receive([1])


def test_reset_drops_an_answer_that_nobody_fetched(envs: VectorEnv):
    envs.reset([0], [FakeSpec()], [1])
    envs.send([0], ["up"])
    (step,) = envs.reset([0], [FakeSpec()], [2])
    assert (step.observation.feedback, step.score) == ("seed 2", 0)


def test_misuse_is_refused_before_anything_is_sent(envs: VectorEnv):
    envs.reset([0], [FakeSpec()], [1])
    for slots in ([2], [-1], [0, 0]):
        with pytest.raises(EnvError, match="distinct, from 0 to 1"):
            envs.step(slots, ["up"] * len(slots))
    envs.step([0], ["win"])
    with pytest.raises(EnvError, match="of fake is over: call reset"):
        envs.step([0], ["up"])


@pytest.mark.parametrize(
    ("action", "fault"),
    [
        ("exit", "crash: the process ended with status 3"),
        ("segfault", "crash: the process was killed by SIGSEGV"),
        ("bug", "crash: ZeroDivisionError: a bug"),
    ],
)
def test_crash_truncates_the_step_and_the_next_reset_works(
    envs: VectorEnv, caplog: pytest.LogCaptureFixture, action: str, fault: str
):
    before = envs.faults["crash"]
    envs.reset([0, 1], [FakeSpec()] * 2, [1, 1])
    envs.step([0], ["up"])
    with caplog.at_level(logging.WARNING):
        lost, other = envs.step([0, 1], [action, "up"])
    assert (lost.fault, lost.truncated, lost.terminated, lost.reward, lost.score) == (fault, True, False, 0, 1)
    assert lost.valid_actions == ()
    assert lost.observation.feedback == "you up"  # the last that was seen
    assert (other.fault, other.reward) == ("", 1)  # the neighbour goes on
    assert envs.faults["crash"] == before + 1
    assert fault in caplog.text
    (step,) = envs.reset([0], [FakeSpec()], [5])
    assert step.observation.feedback == "seed 5"


def test_hanging_worker_is_killed(tmp_path: Path):
    with VectorEnv(1, timeout_s=0.5, reset_timeout_s=30, scratch_dir=tmp_path / "scratch") as envs:
        (step,) = envs.reset([0], [FakeSpec()], [1])
        process = int(step.observation.look.split()[1])
        (step,) = envs.step([0], ["hang"])
        assert (step.fault, step.truncated) == ("timeout: no answer within 0.5 s", True)
        assert dict(envs.faults) == {"timeout": 1}
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)
        assert envs.reset([0], [FakeSpec()], [2])[0].observation.feedback == "seed 2"
    assert len(list((tmp_path / "scratch").glob("*/worker-1/worker.log"))) == 1  # the lost one's log stays


def test_slow_caller_is_not_a_timeout():
    with VectorEnv(1, timeout_s=0.2, reset_timeout_s=30) as envs:
        envs.reset([0], [FakeSpec()], [1])
        envs.send([0], ["up"])
        time.sleep(0.5)
        assert envs.receive([0])[0].fault == ""


def test_reset_is_tried_again_with_a_fresh_worker(envs: VectorEnv, marks: str):
    before = envs.faults["crash"]
    (step,) = envs.reset([0], [FakeSpec(trouble="exit", times=2, marks=marks)], [3])
    assert (step.observation.feedback, step.fault) == ("seed 3", "")
    assert envs.faults["crash"] == before + 2


def test_reset_gives_up_after_three_workers_and_shows_their_output(envs: VectorEnv, marks: str):
    with pytest.raises(EnvError, match=r"(?s)in 3 attempts \(crash: ZeroDivisionError: a bug\).*Traceback"):
        envs.reset([0], [FakeSpec(trouble="bug", times=9, marks=marks)], [1])
    assert envs.reset([0], [FakeSpec()], [1])[0].score == 0


@pytest.mark.parametrize(("trouble", "error"), [("bad option", EnvError), ("bad story", StoryError)])
def test_mistakes_of_the_caller_are_raised_at_once(envs: VectorEnv, marks: str, trouble: str, error: type):
    before = sum(envs.faults.values())
    with pytest.raises(error, match=f"the {trouble.split()[1]} is bad"):
        envs.reset([0, 1], [FakeSpec(trouble=trouble, times=9, marks=marks), FakeSpec()], [1, 1])
    assert len(os.listdir(marks)) == 1
    assert sum(envs.faults.values()) == before
    assert envs.step([1], ["up"])[0].reward == 1  # the other slot was reset


def test_spec_that_a_worker_cannot_import_is_explained(
    envs: VectorEnv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "elsewhere.py").write_text("import fake_games\nclass Spec(fake_games.FakeSpec): pass\n")
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        from elsewhere import Spec
    with pytest.raises(EnvError, match="elsewhere"):
        envs.reset([0], [Spec()], [1])


def test_output_of_a_game_goes_to_its_scratch_folder(envs: VectorEnv):
    (step,) = envs.reset([0], [FakeSpec()], [1])
    assert envs.step([0], ["shout"])[0].fault == ""  # 16 MB, and nobody reads them
    printed = (Path(step.observation.inventory) / "worker.log").read_bytes()
    assert (printed.count(b"x"), printed.count(b"y")) == (8_000_000, 8_000_000)


def test_nothing_stays_of_a_lost_worker_in_a_temporary_folder(envs: VectorEnv):
    (step,) = envs.reset([0], [FakeSpec()], [1])
    folder = Path(step.observation.inventory)
    assert folder.is_dir()
    assert envs.step([0], ["exit"])[0].fault
    assert not folder.exists()


def test_output_of_a_lost_worker_is_in_the_log(envs: VectorEnv, caplog: pytest.LogCaptureFixture):
    envs.reset([0], [FakeSpec()], [1])
    envs.step([0], ["shout"])
    with caplog.at_level(logging.WARNING):
        envs.step([0], ["exit"])
    assert caplog.text.rstrip().endswith("yyy")
    assert len(caplog.text) < 3000  # its end, not all 16 MB


def test_games_stay_open_until_four_others_were_played(envs: VectorEnv, marks: str):
    specs = [FakeSpec(f"game {n}", trouble="none", marks=marks) for n in range(5)]
    for number, builds in ((0, 1), (1, 2), (0, 2), (2, 3), (3, 4), (4, 5), (0, 5), (1, 6)):
        envs.reset([0], [specs[number]], [1])
        assert len(os.listdir(marks)) == builds


def test_walkthrough_does_not_disturb_the_slots(envs: VectorEnv):
    envs.reset([0], [FakeSpec()], [1])
    assert envs.walkthrough(FakeSpec()) == ["up", "up", "win"]
    assert envs.step([0], ["up"])[0].reward == 1


def test_close_twice_is_fine_and_leaves_nothing(tmp_path: Path):
    envs = VectorEnv(1, timeout_s=5, reset_timeout_s=30, scratch_dir=tmp_path)
    (step,) = envs.reset([0], [FakeSpec()], [1])
    envs.send([0], ["hang"])
    started = time.monotonic()
    envs.close()
    envs.close()
    assert time.monotonic() - started < 5
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.kill(int(step.observation.look.split()[1]), 0)
    with pytest.raises(EnvError, match="closed"):
        envs.step([0], ["up"])
