"""Whole small runs: every mode, inline and in a thread."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from toy_runs import config

from priorzero.app import checkpoint
from priorzero.app.build import Run, build_run
from priorzero.app.refusals import ConfigError
from priorzero.app.train import _rounds, train
from priorzero.envs.base import EnvError

ROUNDS = {
    "parallel": {"world_model": 3, "policy": 3},
    "sequential": {"world_model": 3, "policy": 2},
    "alternating": {"world_model": 3, "policy": 2},
    "world_model": {"world_model": 3},
    "llm": {"policy": 3},
}
LENGTHS = [
    "trainer.max_rounds=3", "schedule.policy_rounds=2", "schedule.phase_rounds=2", "schedule.wm_llm_ratio=4",
    "trainer.checkpoint_every_n_rounds=2",
]  # fmt: skip


def play(run: Run) -> Run:
    """All rounds of a run; it is closed afterwards."""
    try:
        _rounds(run)
    finally:
        run.close()
    return run


def evaluations(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("mode", ROUNDS)
def test_every_mode_trains_what_it_says(mode: str, tmp_path: Path, tiny_encoder: Path):
    more = [f"mode={mode}", *LENGTHS, "logger=csv", "evaluation.at_start=true"]
    train(config(tmp_path, tiny_encoder, more))
    newest = checkpoint.find(str(tmp_path), tmp_path)
    state = checkpoint.read(newest)
    rounds = ROUNDS[mode]
    assert state["rounds"] == rounds
    assert state["position"] == sum(rounds.values())
    assert newest.name == f"{state['position']:06d}"
    assert not list(newest.parent.glob("*.part"))
    updates = {"world_model": 2, "policy": 1}
    for name, file in checkpoint.FILES.items():
        assert (newest / file).is_file() == (name in rounds)
        if name in rounds:
            saved = torch.load(newest / file, weights_only=True)
            assert saved["global_step"] == rounds[name] * updates[name]
            (optimizer,) = saved["optimizer_states"]
            assert {float(s["step"]) for s in optimizer["state"].values()} == {saved["global_step"]}
    collected = rounds["world_model"] if "world_model" in rounds else rounds["policy"]
    assert 40 + collected * 20 <= state["actor"]["env_steps"] <= 70 + collected * 20
    versions = {"world_model": rounds.get("world_model", 0), "policy": rounds.get("policy", 0)}
    assert state["versions"] == versions  # posted with the last update of every round
    points = Counter(row["policy"] for row in evaluations(tmp_path))
    evaluated = ["prior"] if mode == "llm" else ["wm", "wm_prior", "prior"]
    after = 2 if mode == "sequential" else 1  # every second round of a trainer that evaluates
    assert points == dict.fromkeys(evaluated, 1 + after)
    columns = set((tmp_path / "metrics.csv").read_text().splitlines()[0].split(","))
    assert {"collect/env_step", "replay/steps", f"val/{evaluated[0]}/return"} <= columns
    assert ("wm/loss" in columns, "policy/loss" in columns) == ("world_model" in rounds, "policy" in rounds)
    table = (tmp_path / "table.md").read_text()
    assert "held-out games" in table
    assert (tmp_path / "curve.png").stat().st_size > 1000
    assert len(json.loads((tmp_path / "results.json").read_text())["results"]["training games"]["random"]) == 1


def test_the_metric_for_a_sweeper(tmp_path: Path, tiny_encoder: Path):
    metric = train(config(tmp_path, tiny_encoder, ["mode=world_model", "evaluation.final_episodes=0"]))
    last = evaluations(tmp_path)[-2]
    assert last["policy"] == "wm_prior"
    assert metric == pytest.approx(sum(r["score"] / r["max_score"] for r in last["results"]) / len(last["results"]))


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path, tiny_encoder: Path):
    more = ["mode=world_model", "trainer.max_rounds=4", "trainer.checkpoint_every_n_rounds=1"]
    play(build_run(config(tmp_path, tiny_encoder, more)))
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["000003", "000004", "best"]


THREAD = [
    "collector=thread", "collector.min_env_steps=40", "collector.segment_steps=5", "trainer.max_rounds=12",
    "trainer.checkpoint_every_n_rounds=12", "evaluation.every_n_rounds=6",
]  # fmt: skip


@pytest.mark.parametrize("mode", ["world_model", "parallel", "llm"])
def test_a_thread_holds_the_ratio_in_whole_runs(mode: str, tmp_path: Path, tiny_encoder: Path):
    """Also where the language model alone trains: its samples are what the limiter counts there."""
    more = [f"mode={mode}", *THREAD, "data.samples_per_insert=0.5", "data.tolerance=10", "evaluation.at_start=false"]
    run = play(build_run(config(tmp_path, tiny_encoder, more)))
    limiter, actor, replay = run.limiter, run.collector.actor, run.replay
    assert limiter.sampled == (12 * 1 if mode == "llm" else 12 * 2 * 4)
    assert limiter.lower <= limiter.balance <= limiter.upper
    assert limiter.inserted == replay.steps_added
    assert limiter.inserted + actor.pending == actor.env_steps
    assert actor.versions[1] == {"world_model": 0, "parallel": 12, "llm": 12}[mode]


def test_a_resumed_thread_goes_on_counting(tmp_path: Path, tiny_encoder: Path):
    more = ["mode=parallel", *THREAD, "data.samples_per_insert=0.5", "data.tolerance=10"]
    play(build_run(config(tmp_path / "first", tiny_encoder, [*more, "trainer.max_rounds=4"])))
    before = checkpoint.read(checkpoint.find(str(tmp_path / "first"), tmp_path))
    train(config(tmp_path / "second", tiny_encoder, [*more, "trainer.max_rounds=8", f"ckpt_path={tmp_path / 'first'}"]))
    after = checkpoint.read(checkpoint.find(str(tmp_path / "second"), tmp_path))
    assert after["limiter"]["sampled"] == 2 * before["limiter"]["sampled"] == 8 * 2 * 4
    assert after["limiter"]["inserted"] > before["limiter"]["inserted"]
    assert after["actor"]["env_steps"] > before["actor"]["env_steps"]
    pending = sum(len(e["actions"]) - e["start"] for e in after["actor"]["episodes"])
    assert after["actor"]["env_steps"] == after["limiter"]["inserted"] + pending


@pytest.mark.parametrize("kind", ["inline", "thread"])
@pytest.mark.parametrize("mode", ["world_model", "llm"])
def test_a_crash_of_the_collector_ends_the_run_with_its_cause(kind: str, mode: str, tmp_path: Path, tiny_encoder: Path):
    more = [f"mode={mode}", f"collector={kind}", "env.breaks_at=8", "env.lengths=[30]", "evaluation.at_start=false"]
    cfg = config(tmp_path, tiny_encoder, [*more, "trainer.max_rounds=100", "evaluation.every_n_rounds=200"])
    with pytest.raises((EnvError, RuntimeError), match="the corridor has collapsed") as caught:
        train(cfg)
    error: BaseException | None = caught.value
    while error is not None and not isinstance(error, EnvError):
        error = error.__cause__
    assert isinstance(error, EnvError)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("objective.sft_kind=both", "objective: sft_kind is 'both': choose one of listwise, text"),
        ("+objective.sft=1", "objective: .*unexpected keyword argument 'sft'"),
        ("search.config.gamma=2", "search.config: gamma"),
        ("prompt.format=xml", "prompt: unknown prompt format 'xml'"),
        ("data.samples_per_insert=0", "need samples_per_insert > 0"),
        ("prior.temperature=0", "the temperature of a prior is positive"),
        ("world_model.network.heads=5", "heads"),
        ("encoder.pooling=max", "encoder: pooling must be 'mean' or 'cls'"),
        ("data.newest_share=2", "newest_share is a share of the batch"),
        ("llm.attn_implementation=flash", "choose sdpa or eager"),
    ],
)
def test_what_a_constructor_refuses_is_a_sentence(change: str, message: str, tmp_path: Path, tiny_encoder: Path):
    with pytest.raises(ConfigError, match=message):
        build_run(config(tmp_path, tiny_encoder, [change])).close()
