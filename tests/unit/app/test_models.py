"""Options of the planner, from the configuration to the planner that plays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from toy_runs import config

from priorzero.app.build import build_run
from priorzero.app.models import build_models
from priorzero.app.refusals import ConfigError
from priorzero.world_model.planner import DevicePlanner, Planner


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ([], Planner),
        (["world_model.planner.precision=int8"], Planner),
        (["world_model.planner.precision=float32", "world_model.planner.tree=host"], Planner),
        (["world_model.planner.precision=bfloat16", "world_model.planner.tree=device"], DevicePlanner),
        (["world_model.planner.kernels=compiled", "world_model.planner.tree=device"], DevicePlanner),
    ],
)
def test_the_player_plans_as_configured(changes: list[str], kind: type, tmp_path: Path, tiny_encoder: Path):
    models = build_models(config(tmp_path, tiny_encoder, ["llm=none", *changes]), np.random.default_rng(0))
    assert type(models.player.planner) is kind


WITHOUT_LLM = (  # ablation=no_prior, behind the helper's llm=tiny
    *("llm=none", "prior=none", "mode=world_model", "collector.policy=wm"),
    *("evaluation.policies=[wm]", "evaluation.final_policies=[wm]"),
)


def test_updates_are_not_recorded_on_a_cpu(tmp_path: Path, tiny_encoder: Path):
    run = build_run(config(tmp_path, tiny_encoder, WITHOUT_LLM))
    run.close()
    assert run.learners["world_model"].module._recorded is None


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("changes", "recorded"),
    [([], True), (["trainer.detect_anomaly=true"], False), (["world_model.record=false"], False)],
)
def test_updates_are_recorded_on_a_gpu(changes: list[str], recorded: bool, tmp_path: Path, tiny_encoder: Path):
    run = build_run(config(tmp_path, tiny_encoder, [*WITHOUT_LLM, "trainer=gpu", *changes]))
    run.close()
    assert (run.learners["world_model"].module._recorded is not None) == recorded


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["world_model.planner.precision=bfloat16"], r"planner\.precision=bfloat16 cannot be had on .*device=cpu"),
        (["world_model.planner.kernels=compiled"], r"planner\.kernels=compiled cannot be had on .*device=cpu"),
        (["world_model.planner.kernels=triton"], r"planner\.kernels=triton cannot be had on .*device=cpu"),
        (["world_model.planner.kernels=fast"], r"planner\.kernels=fast: use one of auto, plain, compiled, triton"),
        (["world_model.record=true"], r"world_model\.record=true .*accelerator=cpu .*set it to auto"),
        (["world_model.record=often"], r"world_model\.record=often: use auto, true or false"),
        (["world_model.planner.precision=half"], r"planner\.precision=half: use one of auto, float32, bfloat16, int8"),
        (["world_model.planner.tree=gpu"], r"planner\.tree=gpu: use one of auto, host, device"),
        (
            ["search.config.reuse=true", "world_model.planner.tree=device"],
            r"reuse=true reads the trees.*planner\.tree=host",
        ),
        (["data.policy_batch_size=6"], r"data\.policy_batch_size=6 samples cannot .*trainer\.policy_micro_batch=4:"),
        (["data.reanalysis_ratio=1.01"], r"data\.reanalysis_ratio=1\.01.*between 0 and 1"),
        (["data.reanalysis_ratio=0.5", "mode=llm"], r"reanalysis_ratio=0\.5 makes targets.*mode=llm trains none"),
        (["data.reanalysis_ratio=0.5", "collector.novelty.return_share=0.1"], r"every policy target, also of the ways"),
    ],
)  # fmt: skip
def test_refused_before_anything_is_loaded(changes: list[str], message: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=message):
        build_run(config(tmp_path, tmp_path / "no encoder is here", changes))
