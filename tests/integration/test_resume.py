"""A run that was interrupted goes on as if it had not been: to the bit, where the collector plays inline."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from toy_runs import config

from priorzero.app import checkpoint
from priorzero.app.build import build_run
from priorzero.app.train import _rounds, resume, train

DROPOUT = ["world_model.network.dropout=0.1", "llm.peft.dropout=0.1"]  # draws global random numbers
SETTINGS = {
    "parallel": ["data.prioritised=true", "collector.groups=2"],
    "sequential": ["schedule.policy_rounds=2", "trainer.max_rounds=2"],
    "alternating": [
        "schedule.phase_rounds=1",
        "schedule.wm_llm_ratio=2",
        "objective.kl_target=0.01",
        "data.reanalysis_ratio=0.4",
    ],
    "world_model": ["search=gumbel", "search.config.simulations=4", "data.reanalysis_ratio=1.0"],
    "llm": ["data.policy_batch_size=2", "trainer.policy_micro_batch=1", "data.advantage_normalisation=running"],
}


def settings(mode: str, *more: str) -> list[str]:
    return [
        f"mode={mode}", "trainer.max_rounds=4", "trainer.checkpoint_every_n_rounds=3", "trainer.checkpoints_kept=20",
        "evaluation.final_episodes=0", "evaluation.every_n_rounds=1", "logger=csv", *DROPOUT, *SETTINGS[mode], *more,
    ]  # fmt: skip


def differences(a: Any, b: Any, place: str = "") -> list[str]:
    """Where two nested containers differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            return [f"{place}: keys {sorted(map(str, a.keys() ^ b.keys()))}"]
        return [found for key in a for found in differences(a[key], b[key], f"{place}.{key}")]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        if len(a) != len(b):
            return [f"{place}: {len(a)} and {len(b)} items"]
        return [found for i, pair in enumerate(zip(a, b, strict=True)) for found in differences(*pair, f"{place}[{i}]")]
    if isinstance(a, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [place]
    return [] if a == b or (a != a and b != b) else [f"{place}: {a!r} and {b!r}"]


def state(folder: Path) -> dict[str, Any]:
    """Everything that the newest checkpoint of a run holds."""
    newest = checkpoint.find(str(folder), folder)
    files = {"run": newest / "run.pt", "replay": newest / "replay" / "replay.pt"}
    files |= {name: newest / file for name, file in checkpoint.FILES.items() if (newest / file).is_file()}
    found = {name: torch.load(file, weights_only=True) for name, file in files.items()}
    for model in ("world_model", "policy"):
        if model in found:
            found[model] = {
                key: found[model][key] for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step")
            }
    return found


def metrics(folder: Path) -> list[dict[str, str]]:
    """Rows of metrics.csv, without clocks."""
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    clocks = ("time/", "prior/seconds", "prior/states_per_s")
    return [{k: v for k, v in row.items() if v and not k.startswith(clocks)} for row in rows]


def evaluations(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]


def play_until(position: int, cfg: DictConfig) -> None:
    """What is left of a run that was interrupted after so many rounds."""
    run = build_run(cfg)
    run.schedule[:] = run.schedule[:position]
    try:
        _rounds(run)
    finally:
        run.close()


@pytest.mark.parametrize(
    ("mode", "stop"),
    [("parallel", 1), ("parallel", 2), ("sequential", 3), ("alternating", 3), ("world_model", 2), ("llm", 1)],
)
def test_goes_on_to_the_bit(mode: str, stop: int, tmp_path: Path, tiny_encoder: Path):
    train(config(tmp_path / "whole", tiny_encoder, settings(mode)))
    play_until(stop, config(tmp_path / "first", tiny_encoder, settings(mode)))
    train(config(tmp_path / "second", tiny_encoder, settings(mode, f"ckpt_path={tmp_path / 'first'}")))
    whole = state(tmp_path / "whole")
    assert differences(whole, state(tmp_path / "second")) == []
    assert (whole["replay"]["reanalysed"] > 0) == (mode in ("alternating", "world_model"))
    assert evaluations(tmp_path / "whole") == evaluations(tmp_path / "second")
    gone_on = metrics(tmp_path / "second")
    assert gone_on == metrics(tmp_path / "whole")[-len(gone_on) :]


def test_the_best_checkpoint_is_what_evaluation_played(tmp_path: Path, tiny_encoder: Path):
    """It holds these weights, and nothing to go on from; a run that goes on elsewhere takes it along."""
    folder = tmp_path / "run"
    play_until(3, config(folder, tiny_encoder, settings("parallel", "trainer.checkpoint_every_n_rounds=1")))
    rows = [row for row in evaluations(folder) if row["policy"] == "wm_prior"]
    scores = [sum(r["score"] / r["max_score"] for r in row["results"]) for row in rows]
    best = max(range(len(rows)), key=lambda i: (scores[i], i))
    kept = checkpoint.read(folder / "checkpoints" / "best")
    assert kept["actor"]["env_steps"] == rows[best]["env_step"]
    assert [kept["versions"][name] for name in ("world_model", "policy")] == rows[best]["versions"]
    assert (folder / "checkpoints" / "best" / "policy.ckpt").is_file() == (rows[best]["versions"][1] > 0)
    numbered = sorted((folder / "checkpoints").glob("0*"))
    of_then = next(at for at in numbered if checkpoint.read(at)["versions"] == kept["versions"])
    for name in ("world_model", "policy"):
        played, trained = (checkpoint.player_weights(at, name) for at in (folder / "checkpoints" / "best", of_then))
        assert (played is None) == (kept["versions"][name] == 0)
        assert played is None or played.keys() == trained.keys()
        assert all(torch.equal(weight, trained[key]) for key, weight in (played or {}).items())
    assert kept["versions"]["world_model"]
    cfg = config(tmp_path / "other", tiny_encoder, settings("parallel", f"ckpt_path={folder}/checkpoints/best"))
    with pytest.raises(checkpoint.CheckpointError, match="holds what plays, not what trains"):
        train(cfg)
    play_until(4, config(folder, tiny_encoder, settings("parallel", f"ckpt_path={folder}")))
    train(config(tmp_path / "second", tiny_encoder, settings("parallel", f"ckpt_path={folder}")))
    assert checkpoint.read(tmp_path / "second" / "checkpoints" / "best")["actor"]["env_steps"] >= rows[best]["env_step"]


def test_another_seed_is_another_run(tmp_path: Path, tiny_encoder: Path):
    """That the comparison above can fail."""
    for seed in (0, 1):
        play_until(1, config(tmp_path / str(seed), tiny_encoder, settings("world_model", f"seed={seed}")))
    places = {place.split(".")[1] for place in differences(state(tmp_path / "0"), state(tmp_path / "1"))}
    assert places == {"run", "replay", "world_model"}


def test_a_second_resume_keeps_what_was_not_trained_since(tmp_path: Path, tiny_encoder: Path):
    """Three processes, one folder, one round each: the untrained model's file has to travel along."""
    folder, more = tmp_path / "run", ["trainer.checkpoints_kept=1", "trainer.checkpoint_every_n_rounds=1"]
    for position in (2, 3, 4):
        continued = [f"ckpt_path={folder}"] if position > 2 else []
        cfg = config(folder, tiny_encoder, settings("sequential", *more, *continued))
        run = build_run(cfg)
        run.schedule[:] = run.schedule[:position]
        try:
            if continued:
                resume(run, cfg.ckpt_path)
            _rounds(run)
        finally:
            run.close()
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["000004", "best"]
    found = state(folder)
    assert (found["world_model"]["global_step"], found["policy"]["global_step"]) == (4, 2)
    assert found["run"]["rounds"] == {"world_model": 2, "policy": 2}


def test_a_finished_run_only_reports(tmp_path: Path, tiny_encoder: Path):
    more = ["evaluation.final_episodes=2"]
    train(config(tmp_path / "run", tiny_encoder, settings("world_model", *more)))
    before = state(tmp_path / "run")
    (tmp_path / "run" / "table.md").unlink()
    train(config(tmp_path / "run", tiny_encoder, settings("world_model", *more, "ckpt_path=last")))
    assert (tmp_path / "run" / "table.md").is_file()
    assert differences(before, state(tmp_path / "run")) == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("world_model.network.width=16", "world model"),
        ("env.lengths=[5]", "games"),
        ("mode=world_model", "mode"),
        ("llm.peft.r=2", "adapters"),
    ],
)
def test_another_configuration_is_refused(
    change: str, named: str, tmp_path: Path, tiny_encoder: Path, interrupted: Path
):
    cfg = config(tmp_path / "other", tiny_encoder, [*settings("parallel"), f"ckpt_path={interrupted}", change])
    with pytest.raises(checkpoint.CheckpointError, match=rf"another configuration.*{named}.*hydra/config.yaml"):
        train(cfg)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> Path:
    """A run that was stopped after its first round."""
    folder = tmp_path_factory.mktemp("interrupted") / "run"
    play_until(1, config(folder, tiny_encoder, settings("parallel")))
    return folder


@pytest.mark.parametrize("file", ["run.pt", "world_model.ckpt", "replay/replay.pt"])
@pytest.mark.parametrize("damage", ["cut", "empty", "garbled"])
def test_a_damaged_checkpoint_is_named(file: str, damage: str, tmp_path: Path, tiny_encoder: Path, interrupted: Path):
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint.find(str(interrupted), interrupted), copy)
    whole = (copy / file).read_bytes()
    (copy / file).write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "garbled": b"x" * len(whole)}[damage])
    cfg = config(tmp_path / "other", tiny_encoder, settings("parallel", f"ckpt_path={copy}"))
    with pytest.raises(checkpoint.CheckpointError, match=r"cannot read .*damaged: use an older"):
        train(cfg)


def test_a_checkpoint_of_another_version_is_refused(tmp_path: Path, tiny_encoder: Path, interrupted: Path):
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint.find(str(interrupted), interrupted), copy)
    state = checkpoint.read(copy)
    del state["layout"]  # as before there was one
    torch.save(state, copy / "run.pt")
    cfg = config(tmp_path / "other", tiny_encoder, settings("parallel", f"ckpt_path={copy}"))
    with pytest.raises(checkpoint.CheckpointError, match=r"another version of priorzero: go on with that version"):
        train(cfg)


def test_other_numbers_of_games_start_their_episodes_anew(
    tmp_path: Path, tiny_encoder: Path, interrupted: Path, caplog
):
    cfg = config(
        tmp_path / "more", tiny_encoder, settings("parallel", f"ckpt_path={interrupted}", "collector.num_envs=3")
    )
    train(cfg)
    assert "its 2 running episodes start anew" in caplog.text
