"""Whole runs for tests: the corridor game, a random encoder, a random language model, everything small."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from priorzero.app import cli
from priorzero.app.train import train

ROOT = Path(__file__).resolve().parents[2]
HELPERS = ROOT / "tests" / "helpers"


def overrides(encoder: Path) -> list[str]:
    """What makes any configuration small; also on a command line."""
    return [
        f"hydra.searchpath=[file://{HELPERS / 'configs'}]",
        "env=corridor",
        "llm=tiny",
        "debug=tiny",
        f"encoder.source={encoder}",
        "encoder.max_tokens=64",
        "prompt.max_tokens=512",
        "data.unroll=3",
        "data.td_steps=2",
        "trainer.threads=1",
        "logger=none",
    ]


def config(folder: Path, encoder: Path, more: Sequence[str] = (), name: str = "train") -> DictConfig:
    """The configuration of a small run whose folder is ``folder``."""
    return composed(folder, [*overrides(encoder), *more], name)


def composed(folder: Path, words: Sequence[str], name: str = "train") -> DictConfig:
    """What these words on a command line configure, with ``folder`` as the run's own."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [f"paths.output_dir={folder}", f"paths.log_dir={folder.parent}", f"paths.root={folder.parent}"]
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return compose(name, [*paths, *words])


def last_words(cfg: DictConfig, caplog: pytest.LogCaptureFixture) -> str:
    """The one error line of ``train.py`` with this configuration."""
    caplog.clear()
    with pytest.raises(SystemExit) as ended:
        cli._run(train, cfg)
    assert ended.value.code == 1
    (record,) = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert record.exc_info is None
    return record.getMessage()
