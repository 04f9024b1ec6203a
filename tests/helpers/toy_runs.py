"""Whole runs for tests: the corridor game, a random encoder, a random language model, everything small."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

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
    folder.mkdir(parents=True, exist_ok=True)
    paths = [f"paths.output_dir={folder}", f"paths.log_dir={folder.parent}", f"paths.root={folder.parent}"]
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return compose(name, [*overrides(encoder), *paths, *more])
