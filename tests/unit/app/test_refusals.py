from __future__ import annotations

import pytest
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from toy_runs import config

from priorzero.app.refusals import ConfigError, check_config, refusing


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["llm=none"], r"policies \['prior', 'wm_prior'\] ask a language model, and llm=none.*ablation=no_prior"),
        (["llm=none", "collector.policy=wm", "evaluation.policies=[wm]", "evaluation.final_policies=[wm]"],
         "mode=parallel trains a language model, and llm=none loads none: use mode=world_model"),
        (["prior=none"], "prior=none goes with llm=none: use prior=llm"),
        (["collector.policy=mcts"], r"unknown policies \['mcts'\]: use some of random, prior, wm, wm_prior"),
        (["mode=llm", "data.advantage=world_model"], "mode=llm trains no world model.*use data.advantage=returns"),
        (["strategy.name=deepspeed_2"], "strategy=deepspeed_2 cannot leave and re-enter.*mode=parallel.*use strategy"),
        (["collector.policy=random"], "collector.policy=random does not search.*use objective=rft"),
        (["collector.num_envs=0"], "collector.num_envs=0: it must be a whole number, 1 or more"),
        (["search.config.simulations=0"], "search.config.simulations=0"),
        (["data.batch_size=2.5"], "data.batch_size=2.5"),
        (["trainer.devices=2"], "trainer.devices=2: a run trains in one process so far, use trainer.devices=1"),
        (["collector=thread", "data.tolerance=10"], "up to 20 steps at once.*data.tolerance=10 could lock up.*to 127"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(changes, message, tmp_path, tiny_encoder):
    with pytest.raises(ConfigError, match=message):
        check_config(config(tmp_path, tiny_encoder, changes))


@pytest.mark.parametrize("mode", ["parallel", "sequential", "alternating", "world_model", "llm"])
@pytest.mark.parametrize("collector", ["inline", "thread"])
def test_the_modes_are_allowed(mode, collector, tmp_path, tiny_encoder):
    check_config(config(tmp_path, tiny_encoder, [f"mode={mode}", f"collector={collector}"]))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there(tmp_path, tiny_encoder):
    with pytest.raises(ConfigError, match=r"needs a CUDA GPU.*there is none: use trainer=cpu"):
        check_config(config(tmp_path, tiny_encoder, ["trainer=gpu"]))


def test_what_constructors_refuse_is_a_configuration_error():
    with pytest.raises(ConfigError, match="gamma must"), refusing():
        raise ValueError("gamma must be positive")
    node = OmegaConf.create({"search": {"_target_": "priorzero.search.SearchConfig", "simulation": 3}})
    with pytest.raises(ConfigError, match=r"search: .*unexpected keyword argument 'simulation'"), refusing():
        instantiate(node.search)
    node = OmegaConf.create({"logger": {"_target_": "no_such_library.Logger"}})
    with pytest.raises(ConfigError, match="no_such_library"), refusing():
        instantiate(node.logger)


def test_other_errors_stay_what_they_are():
    with pytest.raises(KeyError), refusing():
        raise KeyError("x")
    node = OmegaConf.create({"_target_": "builtins.open", "file": "/no/such/file"})
    with pytest.raises(InstantiationException), refusing():
        instantiate(node)
