"""Zork with the real language model: two rounds of `experiment=zork_lora` lower both losses and leave a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning import LightningModule
from toy_runs import composed

from priorzero.app import checkpoint
from priorzero.app.build import build_run
from priorzero.app.train import _rounds
from priorzero.types import PolicyBatch, WorldModelBatch


def loss(module: LightningModule, batch: WorldModelBatch | PolicyBatch) -> float:
    module.trainer = None  # outside of a training loop nothing can be logged
    with torch.no_grad():
        out = module.training_step(batch, 0)
    return float(out["loss"] if isinstance(out, dict) else out)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
def test_two_rounds_lower_both_losses(games_dir: Path, llm_path: Path, encoder_path: Path, tmp_path: Path) -> None:
    overrides = [
        "experiment=zork_lora",
        f"env.story_file={games_dir / 'zork1.z5'}",
        "trainer.max_rounds=2",
        "logger=none",
    ]
    cfg = composed(tmp_path / "runs" / "a", overrides)
    run = build_run(cfg)
    try:
        run.collector.play(2 * cfg.collector.min_env_steps)
        held = {name: next(learner.data.stream) for name, learner in run.learners.items()}
        before = {name: loss(learner.module, held[name]) for name, learner in run.learners.items()}
        _rounds(run)
        after = {name: loss(learner.module, held[name]) for name, learner in run.learners.items()}
        assert before.keys() == {"world_model", "policy"}
        assert all(after[name] < before[name] for name in before), (before, after)
        folder = checkpoint.find(str(run.folder), tmp_path)
        assert checkpoint.read(folder)["position"] == len(run.schedule) == 4
        assert checkpoint.player_weights(folder, "policy")
    finally:
        run.close()
