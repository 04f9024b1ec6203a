import logging
import threading

import lightning
import numpy as np
import pytest
import torch
from segment_factory import make_segment
from test_streams import copy_of, make_policy_stream, make_source, make_world_model_stream

from priorzero.data.datamodule import PriorZeroData
from priorzero.types import EpisodeResult, PolicyBatch, WorldModelBatch

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*GPU available but not used.*"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning"),  # lightning on torch 2.13
]


class Module(lightning.LightningModule):
    """Learns nothing; notes what it was given."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.events, self.seen = [], []

    def on_train_epoch_start(self):
        self.events.append("start")

    def training_step(self, batch, batch_idx):
        self.events.append("update")
        self.seen.append(batch.index.tolist() if isinstance(batch, WorldModelBatch) else batch.advantage.tolist())
        return self.weight * 0.0

    def on_validation_start(self):
        self.events.append("validate")

    def validation_step(self, results, batch_idx, dataloader_idx=0):
        self.events.append((dataloader_idx, batch_idx, results, self.training))
        values = [r.score for r in results]
        self.log(f"val/{dataloader_idx}", float(np.mean(values)), batch_size=1, add_dataloader_idx=False)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def make_trainer(tmp_path, rounds: int, **changes) -> lightning.Trainer:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    arguments = {
        "max_epochs": rounds,
        "limit_train_batches": 3,
        "num_sanity_val_steps": 0,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": tmp_path,
    }
    return lightning.Trainer(**(arguments | changes))


def test_batches_are_drawn_when_they_are_used(tmp_path):
    """R1: with a prefetch the first batch came from the empty replay, and every batch was one round late."""
    source = make_source(0)
    module = Module()
    stream = make_world_model_stream(source)

    class Collect(lightning.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            source.replay.add(make_segment(5, episode=trainer.current_epoch, terminated=True))
            source.limiter.insert(5)
            assert stream.batches == 3 * trainer.current_epoch

    make_trainer(tmp_path, 3, callbacks=[Collect()]).fit(module, datamodule=PriorZeroData(stream))
    assert module.events == ["start", "update", "update", "update"] * 3
    assert stream.batches == 9
    segments = [{i >> 20 for row in module.seen[3 * r : 3 * r + 3] for i in row} for r in range(3)]
    assert segments[0] == {0}
    assert segments[1] <= {0, 1}
    assert 2 in segments[2] or 1 in segments[2]


def test_a_round_without_an_integer_length_is_refused(tmp_path):
    trainer = make_trainer(tmp_path, 1, limit_train_batches=1.0)
    with pytest.raises(ValueError, match="set it to the number of updates a round"):
        trainer.fit(Module(), datamodule=PriorZeroData(make_world_model_stream(make_source())))


def test_two_trainers_share_one_replay(tmp_path):
    source = make_source()
    world_model, policy = make_world_model_stream(source), make_policy_stream(source)
    batches = {}
    for name, stream in (("world_model", world_model), ("policy", policy), ("again", world_model)):
        module = Module()
        make_trainer(tmp_path, 1).fit(module, datamodule=PriorZeroData(stream))
        batches[name] = len(module.seen)
    assert batches == {"world_model": 3, "policy": 3, "again": 3}
    assert (world_model.batches, policy.batches) == (6, 3)
    assert isinstance(next(world_model), WorldModelBatch)
    assert isinstance(next(policy), PolicyBatch)


def episodes(policy: str, score: float, played: list[str]):
    def evaluate() -> list[EpisodeResult]:
        played.append(policy)
        return [EpisodeResult("zork", seed, policy, score + seed, 350.0, 5, False) for seed in range(2)]

    return evaluate


def test_evaluations_run_in_order_inside_the_validation_loop(tmp_path):
    module, played = Module(), []
    evaluations = {name: episodes(name, 10.0 * i, played) for i, name in enumerate(("wm", "wm_prior", "prior"))}
    data = PriorZeroData(make_world_model_stream(make_source()), evaluations=evaluations)
    assert data.names == ["wm", "wm_prior", "prior"]
    trainer = make_trainer(tmp_path, 2, check_val_every_n_epoch=2)
    trainer.fit(module, datamodule=data)
    assert played == ["wm", "wm_prior", "prior"]
    steps = [e for e in module.events if isinstance(e, tuple)]
    assert [(i, j, r[0].policy, training) for i, j, r, training in steps] == [
        (0, 0, "wm", False),
        (1, 0, "wm_prior", False),
        (2, 0, "prior", False),
    ]
    assert {k: v.item() for k, v in trainer.callback_metrics.items()} == {"val/0": 0.5, "val/1": 10.5, "val/2": 20.5}


def test_nothing_is_played_before_validation_starts(tmp_path):
    module = Module()

    def evaluate():
        module.events.append("play")
        return [EpisodeResult("zork", 0, "wm", 1.0, 350.0, 5, False)]

    data = PriorZeroData(make_world_model_stream(make_source()), evaluations={"wm": evaluate, "prior": evaluate})
    make_trainer(tmp_path, 1).validate(module, datamodule=data, verbose=False)
    assert [e if isinstance(e, str) else "step" for e in module.events] == ["validate", "play", "step", "play", "step"]


@pytest.mark.parametrize("make_stream", [make_world_model_stream, make_policy_stream])
def test_a_checkpoint_continues_identically(tmp_path, make_stream):
    source = make_source()

    def fit(stream, rounds, ckpt_path=None):
        module, trainer = Module(), make_trainer(tmp_path, rounds, limit_train_batches=2)
        trainer.fit(module, datamodule=PriorZeroData(stream), ckpt_path=ckpt_path)
        return module, trainer

    first = make_stream(source)
    _, trainer = fit(first, 1)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert saved["PriorZeroData"]["batches"] == 2
    replay = copy_of(source.replay)
    object.__setattr__(source, "replay", copy_of(replay))
    straight, _ = fit(first, 1)
    object.__setattr__(source, "replay", replay)
    resumed, _ = fit(make_stream(source), 2, ckpt_path=tmp_path / "a.ckpt")
    assert resumed.seen == straight.seen
    assert len(resumed.seen) == 2


def test_a_background_collector_holds_the_ratio(tmp_path):
    source = make_source(0, limited=True, stall_s=20.0, samples_per_insert=0.5, min_size=50)

    def collect():
        for episode in range(10_000):
            if not source.limiter.wait_insert(source.stop, 5):
                return
            source.replay.add(make_segment(5, episode=episode, terminated=True))
            source.limiter.insert(5)

    thread = threading.Thread(target=collect, daemon=True)
    thread.start()
    data = PriorZeroData(make_world_model_stream(source))
    try:
        make_trainer(tmp_path, 10, limit_train_batches=20).fit(Module(), datamodule=data)
    finally:
        source.stop.set()
        thread.join(20)
    assert source.limiter.sampled == 800
    assert source.limiter.lower <= source.limiter.balance <= source.limiter.upper
    assert len(source.replay) == 1000


def test_a_failing_collector_stops_the_fit(tmp_path):
    source = make_source(0, stall_s=20.0)
    threading.Timer(0.1, source.limiter.fail, [ValueError("env crashed")]).start()
    with pytest.raises(RuntimeError) as caught:
        make_trainer(tmp_path, 1).fit(Module(), datamodule=PriorZeroData(make_world_model_stream(source)))
    assert repr(caught.value.__cause__) == "ValueError('env crashed')"
