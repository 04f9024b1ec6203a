import os
import signal
import threading
from types import SimpleNamespace

import pytest

from priorzero.callbacks.rounds import GracefulStop, LiveProgress, RoundReport, StopNow


def trainer(epoch: int = 3) -> SimpleNamespace:
    done = SimpleNamespace(current=SimpleNamespace(completed=8))
    loop = SimpleNamespace(max_epochs=10, epoch_loop=SimpleNamespace(batch_progress=done))
    return SimpleNamespace(
        current_epoch=epoch, fit_loop=loop, num_training_batches=8, accumulate_grad_batches=2,
        callback_metrics={"wm/loss": 1.5},
    )  # fmt: skip


@pytest.fixture
def stop():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job starts with Ctrl-C ignored
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    stop = GracefulStop()
    stop.install()
    yield stop
    stop.uninstall()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_after_the_round(stop, caplog, number):
    running = trainer(epoch=3)
    stop.on_train_epoch_end(running, None)
    assert running.fit_loop.max_epochs == 10
    os.kill(os.getpid(), number)
    assert stop.requested
    for thread in (thread for thread in threading.enumerate() if thread.name == "stopping"):
        thread.join()
    assert "stopping after this round with a checkpoint" in caplog.text
    stop.on_train_epoch_end(running, None)
    assert running.fit_loop.max_epochs == 4


def test_ctrl_c_twice_ends_at_once(stop):
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(StopNow):
        os.kill(os.getpid(), signal.SIGINT)


def test_uninstalled_it_leaves_ctrl_c_alone(stop):
    stop.uninstall()
    stop.uninstall()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    assert not stop.requested


def test_a_line_for_every_round(caplog, monkeypatch):
    actor = SimpleNamespace(env_steps=100, results=[SimpleNamespace(score=1.0), SimpleNamespace(score=2.0)])
    logged: dict[str, float] = {}
    module = SimpleNamespace(log_dict=lambda values, batch_size: logged.update(values))
    report = RoundReport(SimpleNamespace(actor=actor), "world_model", LiveProgress(5))
    clock = SimpleNamespace(perf_counter=iter([10.0, 12.0, 13.0, 13.5]).__next__)  # start, first batch, last, end
    monkeypatch.setattr("priorzero.callbacks.rounds.time", clock)
    with caplog.at_level("INFO"):
        report.on_train_epoch_start(trainer(), module)
        actor.env_steps = 160  # an inline collector plays
        report.on_train_batch_start(trainer(), module, None, 0)
        report.on_train_batch_end(trainer(), module, None, None, 7)
        report.on_train_epoch_end(trainer(), module)
    assert "world_model round 3 | env_step 160 | return 1.50 | loss 1.500 | updates/s 4.0" in caplog.text
    assert "| 3.5 s: play 2.0, train 1.0, evaluate 0.5" in caplog.text
    assert logged == {
        "time/play_s": 2.0, "time/wm_train_s": 1.0, "time/evaluate_s": 0.5,
        "time/wm_updates_per_s": 4.0,  # 8 micro-batches
        "time/env_steps_per_s": 60 / 3.5,
    }  # fmt: skip
