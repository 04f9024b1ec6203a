"""The commands. Light to import, so that ``--help`` and shell completion answer at once."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from priorzero.utils.launch import own_processes, share_cores
from priorzero.utils.logging import quiet_libraries

log = logging.getLogger(__name__)

INTERRUPTED = 130  # exit status after Ctrl-C, as shells have it
_STARTED_IN = os.getcwd()

# ${hydra:runtime.cwd} is the same for a job, and is not known where Hydra makes the folder of a sweep
OmegaConf.register_new_resolver("cwd", lambda: _STARTED_IN, replace=True)


def _configs() -> str:
    root = Path(__file__).resolve().parents[2] / "configs"  # a checkout; an installed wheel carries its own copy
    return str(root if root.is_dir() else Path(__file__).resolve().parents[1] / "_configs")


def _expected() -> tuple[type[Exception], ...]:
    """Errors that a user can mend from their message alone: shown without a traceback."""
    from priorzero.app.checkpoint import CheckpointError
    from priorzero.app.refusals import ConfigError
    from priorzero.data.prompts import PromptFileError
    from priorzero.envs.base import EnvError
    from priorzero.policy.experience import NoExperienceError
    from priorzero.rl.grading import RewardError
    from priorzero.rollout.probe import WeightSyncError
    from priorzero.rollout.retry import RequestFailedError
    from priorzero.rollout.web import ToolError
    from priorzero.text.chat import ChatTemplateError
    from priorzero.text.prompt import PromptTooLongError
    from priorzero.utils.models import ModelSourceError

    ours = CheckpointError, ConfigError, EnvError, ModelSourceError
    prompts = ChatTemplateError, PromptFileError, PromptTooLongError
    return *ours, *prompts, NoExperienceError, RequestFailedError, RewardError, ToolError, WeightSyncError


def _checked(verb: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """The same, behind a look at the kinds of the values on the command line."""

    def check_first(cfg: DictConfig) -> Any:
        from priorzero.app.kinds import check_kinds, command_line

        check_kinds(cfg, *command_line())
        return verb(cfg)

    return check_first


def _run(verb: Callable[[DictConfig], Any], cfg: DictConfig) -> Any:
    """Do it; what the user did wrong, or wanted to end, ends in a sentence instead of a traceback."""
    from priorzero.app.train import Interrupted
    from priorzero.callbacks.rounds import StopNow

    quiet_libraries()
    try:
        return verb(cfg)
    except Interrupted as stop:
        log.warning("%s", stop)
        sys.exit(INTERRUPTED)
    except (KeyboardInterrupt, StopNow):
        log.warning("interrupted; what was done since the last checkpoint is lost, the checkpoint is not")
        sys.exit(INTERRUPTED)
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, _expected()):
            cause = cause.__cause__
        if cause is None:
            raise
        log.error("%s", cause)
        log.debug("where it came from", exc_info=error)  # shown with hydra.verbose=true
        sys.exit(1)


@hydra.main(version_base="1.3", config_path=_configs(), config_name="train")
@own_processes
def train_main(cfg: DictConfig) -> float | None:
    """``python train.py``."""
    share_cores()
    from priorzero.app.train import train

    return _run(_checked(train), cfg)


@hydra.main(version_base="1.3", config_path=_configs(), config_name="eval")
def eval_main(cfg: DictConfig) -> float | None:
    """``python eval.py``."""
    share_cores()
    from priorzero.app.evaluate import evaluate

    return _run(_checked(evaluate), cfg)


@hydra.main(version_base="1.3", config_path=_configs(), config_name="play")
def play_main(cfg: DictConfig) -> None:
    """``python play.py``."""
    share_cores()
    from priorzero.app.play import play

    return _run(_checked(play), cfg)
