"""Zork I, the hybrid: search plays, both models learn, the language model from its answers, and the prior follows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from toy_runs import composed

from priorzero.app.build import build_run
from priorzero.app.train import _rounds

ROUNDS = {"parallel": 2, "sequential": 1, "alternating": 2}  # of the language model


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("experiment", "mode"),
    [("zork_grpo", "parallel"), ("zork_grpo", "sequential"), ("zork_grpo", "alternating"), ("zork_ppo", "alternating")],
)
def test_answers_teach_the_prior(experiment: str, mode: str, games_dir: Path, encoder_path: Path, tmp_path: Path):
    overrides = [
        f"experiment={experiment}",
        f"mode={mode}",
        "debug=tiny",
        "llm=tiny",
        f"env.story_file={games_dir / 'zork1.z5'}",
        "evaluation.every_n_rounds=100",
        "logger=none",
    ]
    cfg = composed(tmp_path / "runs" / "a", overrides)
    run = build_run(cfg)
    try:
        _rounds(run)
        assert run.learners["policy"].rounds == ROUNDS[mode]
        with run.collector.paused():
            assert run.collector.actor.versions[1] > 0
        prior = run.collector.actor.player.prior
        assert prior is not None
        for name, weight in run.learners["policy"].module.trainable_state().items():
            assert torch.equal(weight, dict(prior.language_model.model.named_parameters())[name])
        records = [json.loads(line) for line in (run.folder / "generations.jsonl").read_text().splitlines()]
        assert {"exact", "search_value", "valid", "invalid", "format"} <= records[0]["parts"].keys()
        assert all(record["right"] in record["prompt"] for record in records)  # one of the valid actions
    finally:
        run.close()
