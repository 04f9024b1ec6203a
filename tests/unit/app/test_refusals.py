from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
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


@pytest.mark.parametrize("metric", ["val/prior/return", "val/wm/return"])
def test_a_metric_that_nobody_measures_is_told(metric, tmp_path, tiny_encoder, caplog):
    check_config(config(tmp_path, tiny_encoder, ["evaluation.policies=[wm]", f"optimized_metric={metric}"]))
    told = "there will be no checkpoints/best" in caplog.text
    assert told == (metric == "val/prior/return")
    assert told == ("optimized_metric=val/wm/score_fraction is measured" in caplog.text)


@pytest.mark.parametrize("mode", ["parallel", "sequential", "alternating", "world_model", "llm"])
@pytest.mark.parametrize("collector", ["inline", "thread"])
def test_the_modes_are_allowed(mode, collector, tmp_path, tiny_encoder):
    check_config(config(tmp_path, tiny_encoder, [f"mode={mode}", f"collector={collector}"]))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there(tmp_path, tiny_encoder):
    with pytest.raises(ConfigError, match=r"needs a CUDA GPU.*there is none: use trainer=cpu"):
        check_config(config(tmp_path, tiny_encoder, ["trainer=gpu"]))


# ------------------------------------------------------------------ a language model that learns from its own answers


@pytest.fixture(scope="module")
def answers(tmp_path_factory, tiny_encoder) -> Callable[..., DictConfig]:
    """GRPO on prompts from play, with some values changed; composed once."""
    composed = config(tmp_path_factory.mktemp("run"), tiny_encoder, ["objective=grpo"])

    def changed(changes: dict[str, object]) -> DictConfig:
        cfg = composed.copy()
        with open_dict(cfg):
            for name, value in changes.items():
                OmegaConf.update(cfg, name, value, merge=False)
        return cfg

    return changed


def estimator(name: str) -> dict[str, object]:
    module = "gae" if "gae" in name else "group_advantages"
    return {"advantage.estimate._target_": f"priorzero.rl.{module}.{name}"}


STEPS = {"agent.loop.mode": "step", "agent.loop.max_turns": 4, "prompt.format": "think_answer"}
CRITIC = {"objective.critic": "shared"}
ONE = {"rollout.samples_per_prompt": 1}
IMAGINE = {"tool": {"imagine": {"_target_": "priorzero.rollout.tools.ImagineTool"}}, "agent.loop.max_turns": 4}
TAGS = {"prompt.format": "think_answer"}
FILE = {"experience.prompt_file": "rows.jsonl"}
QUESTIONS = {"reward.sources.qa": {"exact": 1.0}}
SCORE_DELTA = {"_target_": "priorzero.rl.asked_rewards.ScoreDelta", "play": "???"}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        estimator("gigpo") | STEPS,
        estimator("gigpo") | {"agent.loop.mode": "step"},  # an episode of one step
        estimator("grpo") | {"agent.loop.mode": "step"},
        estimator("gae") | CRITIC | ONE,
        estimator("bilevel_gae") | CRITIC | TAGS | {"agent.loop.max_turns": 4},
        estimator("reinforce_pp") | ONE,
        estimator("remax") | ONE | {"experience.greedy_baseline": True},
        {"advantage.estimate._target_": "mine.grpo"} | ONE | STEPS,  # not ours: it may know better
        IMAGINE | TAGS,
        FILE | {"collector.policy": "prior"},
        FILE | QUESTIONS,  # what is in the file is not known yet
        {"reward.sources.qa": {"exact": 0.0}},
        {"rollout.backend": "vllm", "llm.source": "smollm2-135m-instruct"},
        {"schedule.mode": "world_model", "rollout.sampling.top_p": 0.5},  # nobody writes
        {"objective": {"_target_": "priorzero.policy.module.PolicyLossConfig"}, "rollout.sampling.top_p": 0.5},
    ],
)
def test_what_can_be_learnt_from_answers(changes, answers):
    check_config(answers(changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"rollout.sampling.top_p": 0.9},
            r"rollout\.sampling\.top_p=0\.9 leaves tokens out.*use rollout\.sampling\.top_p=1",
        ),
        ({"rollout.sampling.temperature": 0}, "temperature=0 writes the same answer every time.*a temperature above 0"),
        ({"rollout.sampling.seed": 3}, "seed=3 would draw the same random numbers in every round.*seed=null"),
        ({"rollout.samples_per_prompt": 0}, "samples_per_prompt=0: it must be a whole number, 1 or more"),
        ({"rollout.backend": "vllm"}, "rollout=vllm loads models from files.*tiny-random has none.*=transformers"),
        (FILE | {"collector.policy": "prior", "rollout.backend": "vllm"}, "rollout=vllm loads models from files"),
    ],
)
def test_how_answers_are_drawn(changes, message, answers):
    with pytest.raises(ConfigError, match=message):
        check_config(answers(changes))


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo", "reinforce_pp_baseline", "gigpo"])
def test_a_group_of_one(name, answers):
    steps = STEPS if name == "gigpo" else {}
    with pytest.raises(ConfigError, match=rf"advantage={name} compares .*samples_per_prompt=1 .*use 2 or more"):
        check_config(answers(estimator(name) | ONE | steps))
    check_config(answers(estimator(name) | {"rollout.samples_per_prompt": 2} | steps))


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo", "reinforce_pp", "reinforce_pp_baseline", "remax", "gae"])
def test_turns_as_samples_have_no_score_of_their_own(name, answers):
    more = {"experience.greedy_baseline": name == "remax", "objective.critic": "shared" if name == "gae" else "none"}
    check_config(answers(estimator(name) | more))
    with pytest.raises(ConfigError, match=rf"agent\.loop\.mode=step .*advantage={name} would.*use advantage=gigpo"):
        check_config(answers(estimator(name) | more | STEPS))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (estimator("gae"), "advantage=gae needs the values of a critic.*critic=none trains none: use objective=ppo"),
        (estimator("bilevel_gae"), "advantage=bilevel_gae needs the values of a critic"),
        (CRITIC, "critic=shared trains a critic, and advantage=grpo gives it no targets.*use advantage=gae, or"),
        (CRITIC | estimator("gigpo") | STEPS, "advantage=gigpo gives it no targets"),
        (estimator("gigpo"), "advantage=gigpo compares the steps.*mode=dialogue makes one sample.*use agent=step"),
        (estimator("remax"), "advantage=remax goes with experience.greedy_baseline=true"),
        ({"experience.greedy_baseline": True}, "advantage=grpo goes with experience.greedy_baseline=false"),
        (IMAGINE | {"agent.loop.max_turns": 0}, r"tool=\['imagine'\] is offered.*max_turns=0 leaves no turn.*=tools"),
        (IMAGINE, r"max_turns=4 ends a dialogue at </answer>, and prompt\.format=plain.*use prompt=think_answer"),
        (
            {"agent.loop.max_tokens": 527},
            r"max_tokens=527 is too little .*prompt\.max_tokens=512 .*=16: use 528 or more",
        ),
        (IMAGINE | FILE, r"tool=\['imagine'\] asks the world model.*experience.prompt_file have none"),
        (
            {"collector.policy": "prior"},
            "collector.policy=prior no trained world model searches: use collector.policy=wm",
        ),
        ({"collector.policy": "random"}, "policy=random no trained .*or name a file in experience.prompt_file"),
        ({"schedule.mode": "llm", "data.advantage": "returns"}, "mode=llm and .* no trained.*wm and mode=parallel"),
        (QUESTIONS, r"reward\.sources\.qa gives weight to rewards of prompts that never occur.*~reward\.sources\.qa"),
        ({"reward.sources": {"qa": {"exact": 1.0}}}, r"no rewards for \['game'\], it has some for \['qa'\]: choose an"),
        ({"reward.rewards.delta": SCORE_DELTA}, r"reward\.rewards\.delta plays the action.*reward=search_value"),
    ],
)
def test_answers_that_teach_nothing(changes, message, answers):
    with pytest.raises(ConfigError, match=message):
        check_config(answers(changes))


def test_what_constructors_refuse_is_a_configuration_error():
    with pytest.raises(ConfigError, match="gamma must"), refusing():
        raise ValueError("gamma must be positive")
    node = OmegaConf.create({"search": {"_target_": "priorzero.search.SearchConfig", "simulation": 3}})
    with pytest.raises(ConfigError, match=r"search: .*unexpected keyword argument 'simulation'"), refusing():
        instantiate(node.search)
    node = OmegaConf.create({"logger": {"_target_": "no_such_library.Logger"}})
    with pytest.raises(ConfigError, match="no_such_library"), refusing():
        instantiate(node.logger)


def test_a_value_that_is_missing_is_named():
    node = OmegaConf.create({"reward": {"_target_": "priorzero.rl.grading.load_reward", "path": "???", "name": "f"}})
    with pytest.raises(ConfigError, match=r"reward\.path has no value: give it one .*reward\.path=\.\.\."), refusing():
        instantiate(node.reward)
    with pytest.raises(ConfigError, match=r"reward\.path has no value"), refusing():
        _ = node.reward.path


def test_other_errors_stay_what_they_are():
    with pytest.raises(KeyError), refusing():
        raise KeyError("x")
    node = OmegaConf.create({"_target_": "builtins.open", "file": "/no/such/file"})
    with pytest.raises(InstantiationException), refusing():
        instantiate(node)
