"""A run that learns from its own answers goes on after an interruption as if there had been none: to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from toy_runs import config

from priorzero.app import checkpoint
from priorzero.app.build import build_run
from priorzero.app.train import _rounds, train

SETTINGS = [
    "mode=llm", "objective=ppo", "data.advantage=returns", "objective.kl_place=loss", "objective.kl_target=0.01",
    "llm.peft.dropout=0.1", "experience.epochs=2", "trainer.max_rounds=3", "trainer.checkpoint_every_n_rounds=3",
    "evaluation.every_n_rounds=100", "evaluation.final_episodes=0",
]  # fmt: skip


def trained(folder: Path) -> dict[str, Any]:
    """What the newest checkpoint of a run holds of its language model and critic."""
    file = checkpoint.find(str(folder), folder) / checkpoint.FILES["policy"]
    return torch.load(file, weights_only=True)


def answers(folder: Path) -> list[str]:
    return (folder / "generations.jsonl").read_text().splitlines()


def test_goes_on_to_the_bit(tmp_path: Path, tiny_encoder: Path):
    row = {"answer": "go east", "valid_actions": ["go east", "wait"], "data_source": "game"}
    rows = [json.dumps({"prompt": f"Where to, {name}?", **row}) for name in ("Ann", "Bob", "Eve")]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    settings = [*SETTINGS, f"experience.prompt_file={tmp_path / 'rows.jsonl'}"]
    train(config(tmp_path / "whole", tiny_encoder, settings))
    run = build_run(config(tmp_path / "first", tiny_encoder, settings))
    run.schedule[:] = run.schedule[:1]
    try:
        _rounds(run)
    finally:
        run.close()
    train(config(tmp_path / "second", tiny_encoder, [*settings, f"ckpt_path={tmp_path / 'first'}"]))
    whole, second = trained(tmp_path / "whole"), trained(tmp_path / "second")
    assert whole["global_step"] == second["global_step"] == 6
    assert whole["kl"] == second["kl"]
    assert "scorer.critic.output.weight" in whole["state_dict"]
    for name, weight in whole["state_dict"].items():
        assert torch.equal(weight, second["state_dict"][name]), name
    assert answers(tmp_path / "whole")[4:] == answers(tmp_path / "second")
    assert answers(tmp_path / "whole")[:4] == answers(tmp_path / "first")
