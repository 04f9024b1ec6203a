"""What a plain import costs: the libraries that are slow to load, or copyleft, wait until they are used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("deepspeed", "jericho", "lightning", "matplotlib", "peft", "textworld", "transformers", "vllm", "wandb")
LIGHT = [
    "priorzero",
    "priorzero.collect",
    "priorzero.data.replay",
    "priorzero.envs",
    "priorzero.envs.vector",
    "priorzero.policy.logprobs",
    "priorzero.prior",
    "priorzero.rl.returns",
    "priorzero.search",
    "priorzero.text.encoder",
    "priorzero.text.prompt",
    "priorzero.text.vocabulary",
    "priorzero.types",
    "priorzero.world_model.model",
]


def loaded(*imports: str) -> set[str]:
    """The top-level modules in memory after importing ``imports`` in a new interpreter."""
    code = f"import sys, {', '.join(imports)}; sys.stdout.write(' '.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_light_packages_load_nothing_heavy() -> None:
    assert loaded(*LIGHT) & set(HEAVY) == set()


@pytest.mark.parametrize("module", ["priorzero.utils.models", "priorzero.utils.launch", "priorzero.utils.logging"])
def test_utils_load_without_torch(module: str) -> None:
    assert loaded(module) & {*HEAVY, "torch", "numpy", "hydra", "gguf"} == set()
