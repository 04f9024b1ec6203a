"""Processes: which one this is, what it may use, and how a job of a sweep starts more of its kind.

This is the only module that touches the environment variables.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, TypeVar, overload

T = TypeVar("T")

# What a distributed strategy leaves in the environment of the process that started the others.
_LEFT_BY_STRATEGY = (
    "LOCAL_RANK",
    "NODE_RANK",
    "GROUP_RANK",
    "WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "PL_GLOBAL_SEED",
    "PL_SEED_WORKERS",
)


@overload
def environment(name: str, default: str) -> str: ...
@overload
def environment(name: str, default: None = None) -> str | None: ...
def environment(name: str, default: str | None = None) -> str | None:
    """The environment variable ``name``; ``default`` where it is unset or empty."""
    return os.environ.get(name) or default


def rank() -> int:
    """The number of this process among those that train together; 0 in a process on its own."""
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"):
        value = environment(name)
        if value is not None:
            return int(value)
    return 0


def share_cores() -> None:
    """Let waiting OpenMP threads sleep. Call it before PyTorch is imported; a user's own setting stays.

    They spin by default, and where a game or another program holds one of two cores an update takes ten times as long.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def default_environment(**variables: str) -> None:
    """Set environment variables that a library reads, before it is imported; a user's own settings stay."""
    for name, value in variables.items():
        os.environ.setdefault(name, value)


def set_threads(count: int) -> None:
    """Let this process compute with ``count`` threads in PyTorch.

    Learner and collector share the cores: without a limit each takes all of them.

    Raises:
        ValueError: ``count`` is not positive.
    """
    if count < 1:
        raise ValueError(f"threads must be at least 1, not {count}: set it to the cores that this process may use")
    import torch

    torch.set_num_threads(count)


def own_processes(task: Callable[[Any], T]) -> Callable[[Any], T]:
    """Decorate a Hydra task so that the processes it starts run the same job, also in a sweep.

    Lightning starts the ranks of a job by running ``sys.argv`` again. In a sweep that is the command line of the whole
    sweep, so every rank would walk (or, with Optuna, draw) its own jobs: ranks that train together would have different
    settings (ashleve/lightning-hydra-template#639, Lightning#11300). For the length of one job, ``sys.argv`` becomes
    the command line of that job alone, in that job's output folder. Afterwards the command line, the environment and
    the process group are as they were, so that the next job of the sweep starts clean. Put it under ``hydra.main``.

    A single run, and a job started by ``torchrun``, are left as they are.
    """

    @functools.wraps(task)
    def run(cfg: Any) -> T:
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        job = HydraConfig.get()
        if job.mode != RunMode.MULTIRUN or environment("TORCHELASTIC_RUN_ID") is not None:
            return task(cfg)
        with _clean_after(), _job_folder(job):
            sys.argv[1:] = _job_arguments(job)
            return task(cfg)

    return run


def _job_arguments(job: Any) -> list[str]:
    """The command line that runs just this job: where its configuration is found, and its own overrides."""
    sources = {"main": "--config-path", "command-line": "--config-dir"}
    found = [
        f"{sources[s.provider]}={s.path}"
        for s in job.runtime.config_sources
        if s.provider in sources and s.schema == "file"
    ]
    return [*found, f"--config-name={job.job.config_name}", "hydra.mode=RUN", *search_path(job), *job.overrides.task]


def search_path(job: Any) -> list[str]:
    """The overrides of a job, Hydra's own node of its configuration, that say where more configuration files are."""
    return [override for override in job.overrides.hydra if override.lstrip("+").startswith("hydra.searchpath")]


@contextmanager
def _job_folder(job: Any) -> Generator[None]:
    """Let ``hydra.run.dir``, which Lightning hands to the ranks, be the folder of this job of the sweep."""
    from omegaconf import open_dict, read_write

    with read_write(job), open_dict(job):
        before, job.run.dir = job.run.dir, job.runtime.output_dir
    try:
        yield
    finally:
        with read_write(job), open_dict(job):
            job.run.dir = before


@contextmanager
def _clean_after() -> Generator[None]:
    """Give the command line and the environment back, and leave the process group, however the job ends."""
    arguments, variables = sys.argv[:], {name: os.environ.get(name) for name in _LEFT_BY_STRATEGY}
    try:
        yield
    finally:
        distributed = sys.modules.get("torch.distributed")
        if distributed is not None and distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()
        sys.argv[:] = arguments
        for name, value in variables.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
