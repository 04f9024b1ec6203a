import threading
import time

import lightning
import numpy as np
import pytest
import torch
from toy_games import CorridorSpec

from priorzero.callbacks.collector import valid_action_metrics

TRAINER, MODULE = lightning.Trainer, lightning.LightningModule  # the hooks do not look at them


def sample(collector, n: int, count: int) -> list[float]:
    """Draw ``count`` batches of ``n`` as a stream does, and note the balance after each."""
    balances, stop = [], threading.Event()
    for _ in range(count):
        assert collector.limiter.wait_sample(stop, n, 20)
        assert len(collector.replay.sample_ids(n).ids) == n
        collector.limiter.sample(n)
        balances.append(collector.limiter.balance)
    return balances


def test_inline_plays_before_the_first_update_and_before_every_round(make_collector):
    collector = make_collector()
    collector.on_train_start(TRAINER, MODULE)
    assert len(collector.replay) == collector.limiter.inserted >= 20
    before = collector.actor.env_steps
    collector.on_train_epoch_start(TRAINER, MODULE)
    assert collector.actor.env_steps == before + 10
    assert len(collector.replay) + collector.actor.pending == collector.actor.env_steps
    collector.collecting = False
    collector.on_train_epoch_start(TRAINER, MODULE)
    assert collector.actor.env_steps == before + 10


def test_returns_need_a_finished_episode(make_collector):
    long = CorridorSpec(60, max_steps=40)  # no episode of it is won by chance
    collector = make_collector(game=long, min_size=8, finish_first=True)
    collector.on_train_start(TRAINER, MODULE)
    assert collector.actor.finished > 0
    collector = make_collector(game=long, min_size=8)
    collector.on_train_start(TRAINER, MODULE)
    assert collector.actor.finished == 0


def test_a_thread_keeps_the_ratio_and_loses_nothing(make_collector):
    collector = make_collector("thread")
    collector.on_train_start(TRAINER, MODULE)
    balances = sample(collector, 8, 60)
    collector.close()
    limiter, actor = collector.limiter, collector.actor
    assert limiter.sampled == 480
    assert limiter.lower <= min(balances)
    assert max(balances) <= limiter.upper
    assert len(collector.replay) == collector.replay.steps_added == limiter.inserted
    assert limiter.inserted + actor.pending == actor.env_steps


def test_a_thread_waits_for_the_training(make_collector):
    collector = make_collector("thread")
    collector.on_train_start(TRAINER, MODULE)
    limiter, deadline = collector.limiter, time.monotonic() + 20
    while limiter.can_insert(collector.actor.pending + 2):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.2)
    played = collector.actor.env_steps
    time.sleep(0.2)
    assert collector.actor.env_steps == played
    assert limiter.balance <= limiter.upper
    sample(collector, 8, 4)
    deadline = time.monotonic() + 20
    while collector.actor.env_steps == played:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_nothing_is_played_while_paused(make_collector):
    collector = make_collector("thread", tolerance=1_000_000)
    collector.on_train_start(TRAINER, MODULE)
    for _ in range(5):
        with collector.paused():
            played = collector.actor.env_steps
            time.sleep(0.05)
            assert collector.actor.env_steps == played
    deadline = time.monotonic() + 20
    while collector.actor.env_steps == played:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_crash_in_the_thread_surfaces_with_its_cause(make_collector):
    collector = make_collector("thread", game=CorridorSpec(60, max_steps=40, breaks_at=15))
    collector.on_train_start(TRAINER, MODULE)
    with pytest.raises(RuntimeError, match="the corridor has collapsed") as caught:
        sample(collector, 8, 1000)
    assert type(caught.value.__cause__).__name__ == "EnvError"


def test_closing_twice_and_going_on(make_collector):
    collector = make_collector("thread")
    collector.close()
    collector.on_train_start(TRAINER, MODULE)
    sample(collector, 8, 5)
    collector.on_train_start(TRAINER, MODULE)  # the other trainer's, or the next phase's: one thread is enough
    assert [t.name for t in threading.enumerate()].count("collector") == 1
    collector.close()
    collector.close()
    assert "collector" not in [t.name for t in threading.enumerate()]


def test_priorities_go_back(make_collector):
    collector = make_collector()
    collector.on_train_start(TRAINER, MODULE)
    index = collector.replay.sample_ids(1).index
    outputs = {"priority": torch.tensor([1e6]), "index": torch.from_numpy(index)}
    collector.on_train_batch_end(TRAINER, MODULE, outputs, None, 0)
    drawn = collector.replay.sample_ids(50).index
    np.testing.assert_array_equal(drawn, np.repeat(index, 50))
    collector.on_train_batch_end(TRAINER, MODULE, torch.tensor(1.0), None, 0)  # the language model gives none


def test_metrics(make_collector):
    collector = make_collector()
    assert collector.metrics()["collect/env_step"] == 0
    collector.play(60)
    metrics = collector.metrics()
    results = list(collector.actor.results)
    assert metrics["collect/env_step"] == 60
    assert metrics["collect/episodes"] == len(results) > 0
    assert metrics["replay/steps"] == len(collector.replay)
    assert metrics["collect/return"] == np.mean([r.score for r in results])
    assert metrics["collect/score_fraction"] == np.mean([r.score / 2 for r in results])
    assert metrics["time/env_s"] > 0


def test_an_unknown_kind(make_collector):
    with pytest.raises(ValueError, match="must be inline or thread, not 'process'"):
        make_collector("process")


def test_nothing_is_played_where_training_needs_no_games(make_collector):
    for kind in ("inline", "thread"):
        collector = make_collector(kind, plays=False)
        collector.on_train_start(TRAINER, MODULE)
        collector.on_train_epoch_start(TRAINER, MODULE)
        assert (collector.actor.env_steps, len(collector.replay), collector._thread) == (0, 0, None)


def test_what_the_games_counted(make_collector):
    collector = make_collector()
    assert not [name for name in collector.metrics() if name.startswith("valid_actions/")]
    collector.actor.envs.counts.update(searches=5, audits=0, audit_effects=0, audit_found=0)
    try:
        metrics = collector.metrics()
    finally:
        collector.actor.envs.counts.clear()
    assert metrics["valid_actions/searches"] == 5
    assert "valid_actions/recall" not in metrics
    metrics = valid_action_metrics({"audits": 2, "audit_effects": 8, "audit_found": 6})
    assert metrics == {
        "valid_actions/audits": 2, "valid_actions/audit_effects": 8, "valid_actions/audit_found": 6,
        "valid_actions/recall": 0.75,
    }  # fmt: skip
