"""What does not go together is refused when the configuration is read, before anything is loaded or played."""

from __future__ import annotations

import contextlib
from collections.abc import Generator

import torch
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from priorzero.collect.player import POLICIES


class ConfigError(ValueError):
    """The configuration asks for something that cannot work."""


@contextlib.contextmanager
def refusing() -> Generator[None]:
    """Around the building of objects: what their constructors refuse is a mistake in the configuration.

    Raises:
        ConfigError: instead of a ``ValueError``, or of a missing library or unknown setting where Hydra builds.
    """
    try:
        yield
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


_AT_LEAST_ONE = (
    *(f"collector.{name}" for name in ("num_envs", "env_steps_per_round", "min_env_steps", "segment_steps")),
    *(f"data.{name}" for name in ("batch_size", "updates_per_round", "policy_updates_per_round")),
    *(f"data.{name}" for name in ("policy_micro_batch", "policy_accumulate", "unroll", "td_steps", "capacity_steps")),
    *(f"evaluation.{name}" for name in ("every_n_rounds", "episodes", "num_envs")),
    *(f"trainer.{name}" for name in ("max_rounds", "checkpoint_every_n_rounds", "checkpoints_kept")),
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
            "collector.policy=wm, evaluation.policies=[wm] and evaluation.final_policies=[random,wm] "
            "(ablation=no_prior does all this)"
        )


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
    sample = data.policy_micro_batch * data.policy_accumulate if cfg.schedule.mode == "llm" else data.batch_size
    insert = cfg.collector.num_envs * cfg.collector.segment_steps
    needed = (insert * data.samples_per_insert + sample) / 2
    if data.tolerance < needed:
        raise ConfigError(
            f"collector=thread stores up to {insert} steps at once and a batch takes {sample} samples, so "
            f"data.tolerance={data.tolerance} could lock up both sides: set it to {needed:g} or more, or lower "
            "collector.segment_steps"
        )
