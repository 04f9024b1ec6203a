"""Evaluates a checkpoint, or models as they come, with any of the policies."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from priorzero.app import checkpoint, report
from priorzero.app.build import build_envs, fingerprint, history_steps
from priorzero.app.models import build_models
from priorzero.app.refusals import ConfigError, check_config, refusing
from priorzero.collect.evaluate import evaluate as play_episodes
from priorzero.collect.evaluate import tasks
from priorzero.collect.player import POLICIES, Player
from priorzero.envs.base import GameSet
from priorzero.envs.vector import VectorEnv
from priorzero.types import EpisodeResult
from priorzero.utils.launch import set_threads

log = logging.getLogger(__name__)

OWN_KEYS = (
    *("ckpt", "policies", "episodes", "games", "eval_seed", "output"),  # eval.py
    *("policy", "game", "play_seed", "steer", "rows"),  # play.py
)
OWN_GROUPS = ("env", "trainer", "evaluation", "search", "logger")  # chosen anew; the rest is the checkpoint's


@dataclass
class Session:
    """A player with games to play, without any training."""

    cfg: DictConfig
    player: Player
    games: GameSet
    envs: VectorEnv
    history_steps: int
    trained: bool


@contextlib.contextmanager
def open_session(cfg: DictConfig, num_envs: int | None = None) -> Generator[Session]:
    """Models (from ``cfg.ckpt``, where given) and worker processes; closed at the end.

    Raises:
        ConfigError: something in the configuration cannot work.
        CheckpointError: there is no such checkpoint, or it is damaged.
    """
    if cfg.ckpt_path:
        raise ConfigError(f"ckpt_path goes on with a training; what was trained is played with ckpt={cfg.ckpt_path}")
    folder = checkpoint.find(cfg.ckpt, Path(cfg.paths.log_dir)) if cfg.ckpt else None
    cfg = _saved_config(cfg, folder) if folder else cfg
    check_config(cfg)
    torch.manual_seed(cfg.seed)
    if cfg.trainer.threads:
        set_threads(cfg.trainer.threads)
    with refusing():
        games: GameSet = instantiate(cfg.env)
        models = build_models(cfg, np.random.default_rng(cfg.seed))
    if folder:
        _load(cfg, models.player, folder, games)
    envs = build_envs(cfg, num_envs or cfg.evaluation.num_envs)
    try:
        yield Session(cfg, models.player, games, envs, history_steps(cfg), folder is not None)
    finally:
        envs.close()


def _saved_config(cfg: DictConfig, folder: Path) -> DictConfig:
    """The configuration of the checkpoint's run, with what the command line changes in it."""
    file = folder.parents[1] / ".hydra" / "config.yaml"
    if not file.is_file():
        raise checkpoint.CheckpointError(f"{file} is missing: a checkpoint is read with the configuration of its run")
    saved = cast(DictConfig, OmegaConf.load(file))
    saved.paths, saved.trainer = cfg.paths, cfg.trainer  # where and how it runs is not the checkpoint's business
    saved.world_model.planner = cfg.world_model.planner
    for group in ("data", "collector", "world_model"):  # a version before this one knew less, or other names
        now = OmegaConf.create(OmegaConf.to_container(cfg[group]))
        saved[group] = OmegaConf.merge(now, saved[group])
    if saved.search.config._target_ == cfg.search.config._target_:
        saved.search.config = OmegaConf.merge(cfg.search.config, saved.search.config)
    for override in HydraConfig.get().overrides.task:
        key, _, value = override.lstrip("+").partition("=")
        if key in OWN_KEYS:
            continue
        if key in OWN_GROUPS:
            saved[key] = cfg[key]
            continue
        if key in HydraConfig.get().runtime.choices:
            raise ConfigError(
                f"{override}: a checkpoint keeps its own {key}; change single values, like {key}.NAME=VALUE"
            )
        OmegaConf.update(saved, key, OmegaConf.create({"value": _parse(value)}).value, force_add=False)
    return saved


def _parse(value: str) -> object:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_override(f"value={value}").value()


def _load(cfg: DictConfig, player: Player, folder: Path, games: GameSet) -> None:
    state = checkpoint.read(folder)
    own = fingerprint(cfg, games)
    saved = state["fingerprint"]
    network = {name: own["world model"].get(name) for name in saved["world model"]}  # older versions knew fewer
    checkpoint.check(state, own | {"games": saved["games"], "world model": network}, folder)
    player.vocabulary.load_state_dict(state["vocabulary"])
    player.env_steps = state["actor"]["env_steps"]
    world_model, policy = (checkpoint.player_weights(folder, name) for name in ("world_model", "policy"))
    if world_model is not None and player.planner is not None:
        player.planner.load_weights(world_model)
    if policy is not None and player.prior is not None:
        player.prior.load_weights(policy, state["versions"]["policy"])
    log.info("loaded %s, trained for %d environment steps", folder, player.env_steps)


def _policies(cfg: DictConfig, player: Player) -> list[str]:
    """Those asked for, or all that these models can play."""
    possible = [p for p in POLICIES if player.prior is not None or not p.endswith("prior")]
    asked = list(cfg.policies or possible)
    if impossible := [p for p in asked if p not in possible]:
        raise ConfigError(f"policies {impossible} need other models: use some of {', '.join(possible)}")
    return asked


def evaluate(cfg: DictConfig) -> float | None:
    """Play ``cfg.episodes`` episodes of each game set with each policy; print and write the table.

    Returns:
        The mean score of the last policy on the first game set.
    """
    with open_session(cfg) as session:
        sets = {"train": session.games.train, "heldout": session.games.heldout}
        if unknown := set(cfg.games) - sets.keys():
            raise ConfigError(f"unknown game sets {sorted(unknown)}: use train, heldout or both")
        policies = _policies(cfg, session.player)
        rows: dict[str, dict[str, list[EpisodeResult]]] = {}
        for name in cfg.games:
            if not sets[name]:
                log.warning("this environment has no %s games: left out", name)
                continue
            todo = tasks(sets[name], cfg.episodes, cfg.eval_seed)
            row = rows[report.GAME_SETS[name]] = {}
            for policy in policies:
                row[policy] = play_episodes(
                    session.player,
                    session.envs,
                    todo,
                    policy,
                    history_steps=session.history_steps,
                )
        if not rows:
            raise ConfigError(f"nothing to evaluate: no games in {list(cfg.games)}")
        output = Path(cfg.output)
        output.parent.mkdir(parents=True, exist_ok=True)
        about = {"ckpt": cfg.ckpt, "seed": cfg.eval_seed, "env_step": session.player.env_steps}
        report.save_results(output, rows, about)
        log.info("mean score [95 %% interval] over %d episodes:\n%s\n%s", cfg.episodes, report.table(rows), output)
        first = next(iter(rows.values()))
        return float(np.mean([r.score for r in first[policies[-1]]]))
