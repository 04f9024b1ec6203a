"""What does not go together is refused when the configuration is read, before anything is loaded or played."""

from __future__ import annotations

import torch
from omegaconf import DictConfig

from priorzero.collect.player import POLICIES


class ConfigError(ValueError):
    """The configuration asks for something that cannot work."""


def check_config(cfg: DictConfig) -> None:
    """Raise a `ConfigError` that names both sides of a conflict and the way out."""
    _check_device(cfg)
    _check_policies(cfg)
    _check_mode(cfg)
    if cfg.collector.num_envs < 1 or cfg.collector.env_steps_per_round < 1:
        raise ConfigError("collector.num_envs and collector.env_steps_per_round must be 1 or more")
    if cfg.search.config.simulations < 1:
        raise ConfigError("search.config.simulations must be 1 or more")


def _check_device(cfg: DictConfig) -> None:
    gpu = cfg.trainer.accelerator == "gpu" or str(cfg.trainer.device).startswith("cuda")
    if gpu and not torch.cuda.is_available():
        raise ConfigError("trainer=gpu needs a CUDA GPU and a CUDA build of torch, and there is none: use trainer=cpu")


def _check_policies(cfg: DictConfig) -> None:
    asked = {cfg.collector.policy, *cfg.evaluation.policies, *cfg.evaluation.final_policies}
    if unknown := asked - set(POLICIES):
        raise ConfigError(f"unknown policies {sorted(unknown)}: use some of {', '.join(POLICIES)}")
    llm = {p for p in asked if p.endswith("prior")}
    if llm and cfg.llm.source is None:
        raise ConfigError(
            f"policies {sorted(llm)} ask a language model, and llm=none loads none: choose another llm, or set "
            "collector.policy=wm and evaluation.policies=[wm] (ablation=no_prior does both)"
        )


def _check_mode(cfg: DictConfig) -> None:
    mode = cfg.schedule.mode
    if mode != "world_model" and cfg.llm.source is None:
        raise ConfigError(f"mode={mode} trains a language model, and llm=none loads none: use mode=world_model")
    if mode == "llm" and cfg.data.advantage == "world_model":
        raise ConfigError(
            "mode=llm trains no world model, so its advantages mean nothing: use data.advantage=returns, or another mode"
        )
    if str(cfg.strategy.name).startswith("deepspeed") and mode in ("parallel", "alternating"):
        raise ConfigError(
            f"strategy={cfg.strategy.name} cannot leave and re-enter training, which mode={mode} does every phase: "
            "use strategy=ddp or fsdp2, or mode=sequential or llm"
        )
    if cfg.collector.policy in ("prior", "random") and mode != "llm" and cfg.objective.sft_weight > 0:
        raise ConfigError(
            f"collector.policy={cfg.collector.policy} does not search, so there are no visits to learn from: use "
            "objective=rft, or collector.policy=wm_prior"
        )
