"""What does not go together is refused when the configuration is read, before anything is loaded or played."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Generator

import torch
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from priorzero.app.tokens import learns_from_answers
from priorzero.collect.player import POLICIES
from priorzero.data.prompt_source import GAME, unfit_sources
from priorzero.policy.load import TINY_RANDOM

log = logging.getLogger(__name__)


class ConfigError(ValueError):
    """The configuration asks for something that cannot work."""


@contextlib.contextmanager
def refusing() -> Generator[None]:
    """Around the building of objects: what their constructors refuse is a mistake in the configuration.

    Raises:
        ConfigError: instead of a ``ValueError``, of a value that is missing (``???``), or of a missing library or
            unknown setting where Hydra builds.
    """
    try:
        yield
    except MissingMandatoryValue as error:
        name = error.full_key or str(error).rpartition(": ")[2]
        raise ConfigError(f"{name} has no value: give it one on the command line, {name}=...") from error
    except InstantiationException as error:
        if not isinstance(error.__cause__, (ValueError, TypeError, ImportError)):
            raise
        place = str(error).rpartition("full_key: ")[2]
        raise ConfigError(f"{place}: {error.__cause__}") from error
    except ValueError as error:
        raise ConfigError(str(error)) from error


def check_config(cfg: DictConfig) -> None:
    """Raise a `ConfigError` that names both sides of a conflict and the way out."""
    _check_device(cfg)
    _check_sizes(cfg)
    _check_policies(cfg)
    _check_mode(cfg)
    _check_limiter(cfg)
    if cfg.schedule.mode != "world_model" and learns_from_answers(cfg):
        _check_sampling(cfg)
        _check_advantage(cfg)
        _check_dialogue(cfg)
        _check_given(cfg)
        if cfg.experience.prompt_file is None:
            _check_played_prompts(cfg)
            _check_game_dialogue(cfg)
        else:
            _check_file_prompts(cfg)
    _check_metric(cfg)


_AT_LEAST_ONE = (
    *(f"collector.{name}" for name in ("num_envs", "env_steps_per_round", "min_env_steps", "segment_steps")),
    *(f"data.{name}" for name in ("batch_size", "updates_per_round", "policy_updates_per_round")),
    *(f"data.{name}" for name in ("policy_batch_size", "unroll", "td_steps", "capacity_steps")),
    *(f"evaluation.{name}" for name in ("every_n_rounds", "episodes", "num_envs")),
    *(
        f"trainer.{name}"
        for name in ("max_rounds", "checkpoint_every_n_rounds", "checkpoints_kept", "policy_micro_batch")
    ),
    "search.config.simulations",
)


def _check_sizes(cfg: DictConfig) -> None:
    for name in _AT_LEAST_ONE:
        value = OmegaConf.select(cfg, name)
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name}={value}: it must be a whole number, 1 or more")


def _check_device(cfg: DictConfig) -> None:
    gpu = cfg.trainer.accelerator == "gpu" or str(cfg.trainer.device).startswith("cuda")
    if gpu and not torch.cuda.is_available():
        raise ConfigError("trainer=gpu needs a CUDA GPU and a CUDA build of torch, and there is none: use trainer=cpu")
    if cfg.trainer.devices != 1:
        raise ConfigError(
            f"trainer.devices={cfg.trainer.devices}: a run trains in one process so far, use trainer.devices=1 and a "
            "run on each device"
        )


def _check_policies(cfg: DictConfig) -> None:
    asked = {cfg.collector.policy, *cfg.evaluation.policies, *cfg.evaluation.final_policies}
    if unknown := asked - set(POLICIES):
        raise ConfigError(f"unknown policies {sorted(unknown)}: use some of {', '.join(POLICIES)}")
    if cfg.llm.source is not None and "cache_size" not in cfg.prior:
        raise ConfigError("prior=none goes with llm=none: use prior=llm, or ablation=no_prior for a run without both")
    llm = {p for p in asked if p.endswith("prior")}
    if llm and cfg.llm.source is None:
        raise ConfigError(
            f"policies {sorted(llm)} ask a language model, and llm=none loads none: choose another llm, or set "
            "collector.policy=wm, evaluation.policies=[wm], evaluation.final_policies=[random,wm] and "
            "optimized_metric=val/wm/score_fraction (ablation=no_prior does all this)"
        )


def _check_metric(cfg: DictConfig) -> None:
    """Say that there will be no best checkpoint; the run itself lacks nothing."""
    group, policy, *_ = cfg.optimized_metric.split("/")
    if group == "val" and policy not in cfg.evaluation.policies:
        log.warning(
            "optimized_metric=%s is never measured (evaluation.policies=%s): there will be no checkpoints/best, and a "
            "sweeper gets no value. optimized_metric=val/%s/score_fraction is measured",
            cfg.optimized_metric, list(cfg.evaluation.policies), cfg.evaluation.policies[0],
        )  # fmt: skip


def _check_mode(cfg: DictConfig) -> None:
    mode = cfg.schedule.mode
    if mode != "world_model" and cfg.llm.source is None:
        raise ConfigError(f"mode={mode} trains a language model, and llm=none loads none: use mode=world_model")
    if mode == "llm" and cfg.data.advantage == "world_model":
        raise ConfigError(
            "mode=llm trains no world model, so its advantages mean nothing: use data.advantage=returns, or another "
            "mode"
        )
    if str(cfg.strategy.name).startswith("deepspeed") and mode in ("parallel", "alternating"):
        raise ConfigError(
            f"strategy={cfg.strategy.name} cannot leave and re-enter training, which mode={mode} does every phase: "
            "use strategy=auto, or mode=sequential or llm"
        )
    if cfg.collector.policy in ("prior", "random") and mode != "llm" and cfg.objective.get("sft_weight", 0) > 0:
        raise ConfigError(
            f"collector.policy={cfg.collector.policy} does not search, so there are no visits to learn from: use "
            "objective=rft, or collector.policy=wm_prior"
        )


def _check_limiter(cfg: DictConfig) -> None:
    """A background collector and the training must not wait for each other; the bound is the limiter's."""
    if cfg.collector.kind != "thread":
        return
    data = cfg.data
    sample = data.policy_batch_size if cfg.schedule.mode == "llm" else data.batch_size
    insert = cfg.collector.num_envs * cfg.collector.segment_steps
    needed = (insert * data.samples_per_insert + sample) / 2
    if data.tolerance < needed:
        raise ConfigError(
            f"collector=thread stores up to {insert} steps at once and a batch takes {sample} samples, so "
            f"data.tolerance={data.tolerance} could lock up both sides: set it to {needed:g} or more, or lower "
            "collector.segment_steps"
        )


# ------------------------------------------------------------------ a language model that learns from its own answers

_CRITIC = ("gae", "bilevel_gae")
_COMPARING = ("grpo", "dr_grpo", "rloo", "reinforce_pp_baseline", "gigpo")  # samples of one prompt
_WHOLE_SAMPLES = (*_CRITIC, "grpo", "dr_grpo", "rloo", "reinforce_pp", "reinforce_pp_baseline", "remax")


def _name(node: DictConfig) -> str:
    """The last word of what a node builds, if that is ours; what others wrote is not judged."""
    package, _, name = str(node["_target_"]).rpartition(".")
    return name if package.startswith("priorzero.") else ""


def _check_sampling(cfg: DictConfig) -> None:
    """Losses take the samples for those of the policy itself, afresh in every round."""
    sampling, samples = cfg.rollout.sampling, cfg.rollout.samples_per_prompt
    if not isinstance(samples, int) or samples < 1:
        raise ConfigError(f"rollout.samples_per_prompt={samples}: it must be a whole number, 1 or more")
    if sampling.top_p < 1:
        raise ConfigError(
            f"rollout.sampling.top_p={sampling.top_p} leaves tokens out, and objective trains the policy over all of "
            "them, so the log-probabilities would not be those that the answers were drawn with: use "
            "rollout.sampling.top_p=1 (a lower rollout.sampling.temperature also keeps unlikely tokens away)"
        )
    if sampling.temperature <= 0:
        raise ConfigError(
            f"rollout.sampling.temperature={sampling.temperature} writes the same answer every time, and objective "
            "learns from differences between answers: use a temperature above 0"
        )
    if sampling.seed is not None:
        raise ConfigError(
            f"rollout.sampling.seed={sampling.seed} would draw the same random numbers in every round: use "
            "rollout.sampling.seed=null; the seed of the run makes its rounds repeatable"
        )
    if cfg.rollout.backend == "vllm" and cfg.llm.source == TINY_RANDOM:
        raise ConfigError(
            f"rollout=vllm loads models from files, and llm.source={TINY_RANDOM} has none: use rollout=transformers, "
            "or another llm"
        )


def _check_advantage(cfg: DictConfig) -> None:
    """The estimator gets what it needs, and what is made for an estimator is used."""
    name, critic = _name(cfg.advantage.estimate), cfg.objective.critic
    if name in _CRITIC and critic == "none":
        raise ConfigError(
            f"advantage={name} needs the values of a critic, and objective.critic=none trains none: use objective=ppo "
            "(or objective.critic=shared, detached or own), or an advantage without a critic, like advantage=grpo"
        )
    if name in _WHOLE_SAMPLES + _COMPARING and name not in _CRITIC and critic != "none":
        raise ConfigError(
            f"objective.critic={critic} trains a critic, and advantage={name} gives it no targets and never asks it: "
            "use advantage=gae, or objective.critic=none"
        )
    if name in _COMPARING and cfg.rollout.samples_per_prompt < 2:
        raise ConfigError(
            f"advantage={name} compares the answers to one prompt with each other, and rollout.samples_per_prompt="
            f"{cfg.rollout.samples_per_prompt} leaves nothing to compare: use 2 or more (8 is usual), or "
            "advantage=reinforce_pp, remax or gae"
        )
    if (name == "remax") != cfg.experience.greedy_baseline and name in _WHOLE_SAMPLES + _COMPARING:
        wanted = str(name == "remax").lower()
        raise ConfigError(
            f"advantage={name} goes with experience.greedy_baseline={wanted}: the greedy answers are the baseline of "
            "advantage=remax, which cannot do without, and nothing else reads them"
        )


def _check_dialogue(cfg: DictConfig) -> None:
    """Turns that are samples of their own have no score each; tools need turns."""
    name, loop = _name(cfg.advantage.estimate), cfg.agent.loop
    if name == "gigpo" and loop.mode != "step":
        raise ConfigError(
            f"advantage=gigpo compares the steps of dialogues, and agent.loop.mode={loop.mode} makes one sample of a "
            "whole dialogue: use agent=step, or another advantage, like advantage=grpo"
        )
    if name in _WHOLE_SAMPLES and loop.mode == "step" and loop.max_turns:
        raise ConfigError(
            f"agent.loop.mode=step makes a sample of each turn, of which only the last one gets the score, and "
            f"advantage={name} would take that for the score of the turn alone: use advantage=gigpo, which credits the "
            "turns before, or agent=tools, where a dialogue is one sample"
        )
    if cfg.tool and not loop.max_turns:
        raise ConfigError(
            f"tool={list(cfg.tool)} is offered to the model, and agent.loop.max_turns=0 leaves no turn to call it: use "
            "agent=tools or agent=step, or tool=none"
        )


def _check_played_prompts(cfg: DictConfig) -> None:
    """Prompts from play need a search that means something, and rewards for games."""
    searching = "use collector.policy=wm_prior or wm" + " and mode=parallel" * (cfg.schedule.mode == "llm")
    if cfg.schedule.mode == "llm" or cfg.collector.policy in ("prior", "random"):
        raise ConfigError(
            "experience.prompt_file=null makes prompts of what was played, whose right answers are what the search "
            f"chose, and with mode={cfg.schedule.mode} and collector.policy={cfg.collector.policy} no trained world "
            f"model searches: {searching}, or name a file in experience.prompt_file"
        )
    if problem := unfit_sources({GAME}, cfg.reward.sources):
        raise ConfigError(f"prompts from play are of data source {GAME!r}, and {problem}")
    for name, weight in cfg.reward.sources[GAME].items():
        if weight and name in cfg.reward.rewards and _name(cfg.reward.rewards[name]) == "ProgressShaping":
            raise ConfigError(
                f"reward.sources.{GAME}.{name} pays for progress, and prompts from play know no potentials, so no "
                "answer could be judged: use reward=search_value, or name a file in experience.prompt_file whose rows "
                "have the columns potential and next_potentials"
            )


def _check_game_dialogue(cfg: DictConfig) -> None:
    """A dialogue about a game ends in an action that can be found, and there is room for it."""
    if cfg.agent.loop.max_turns and cfg.prompt.format != "think_answer":
        raise ConfigError(
            f"agent.loop.max_turns={cfg.agent.loop.max_turns} ends a dialogue at </{cfg.agent.loop.answer_tag}>, and "
            f"prompt.format={cfg.prompt.format} asks for an action that is written otherwise, so no action would be "
            "found: use prompt=think_answer, or agent=plain"
        )
    turn, room = cfg.rollout.sampling.max_tokens, cfg.agent.loop.max_tokens
    if cfg.prompt.max_tokens + turn > room:
        raise ConfigError(
            f"agent.loop.max_tokens={room} is too little for a prompt of prompt.max_tokens={cfg.prompt.max_tokens} and "
            f"a turn of rollout.sampling.max_tokens={turn}: use {cfg.prompt.max_tokens + turn} or more, or shorter "
            "prompts"
        )


def _check_file_prompts(cfg: DictConfig) -> None:
    """What is in a file was never played."""
    if imagining := [name for name, tool in cfg.tool.items() if _name(tool) == "ImagineTool"]:
        raise ConfigError(
            f"tool={imagining} asks the world model about the situation of a prompt, and the prompts of "
            "experience.prompt_file have none: use experience.prompt_file=null in a mode that trains the world model, "
            "or another tool"
        )


def _check_given(cfg: DictConfig) -> None:
    """What only a program can give to a reward."""
    for name, reward in cfg.reward.rewards.items():
        if _name(reward) == "ScoreDelta" and OmegaConf.is_missing(reward, "play"):
            raise ConfigError(
                f"reward.rewards.{name} plays the action in the game, and train.py cannot give it a `play`: a prompt "
                f"is no game that goes on from there. Use reward=search_value, or reward.rewards.{name}.play with a "
                "function of your own"
            )
