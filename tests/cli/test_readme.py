"""What the README tells people to type works: commands compose, named files exist, the example environment plays."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import OmegaConf

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
SWEEPS = (ROOT / "sweeps" / "README.md").read_text()
GROUPS = {"policy_optim", "schedule", "strategy", "paths", "hydra"}  # groups whose choices the table need not list


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[str]:  # of the README and of sweeps/README.md
    lines = [line.split("  #")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    inline = re.findall(r"`(python train\.py [^`]*)`", README + SWEEPS)
    found = dict.fromkeys([*lines, *inline])
    return [line for line in found if re.match(r"python (train|eval|play)\.py", line) and "env=lock" not in line]


def overrides_of(command: str) -> tuple[str, list[str]]:
    """The name of the primary configuration, and what is set on top of it, without Hydra's own flags."""
    words = shlex.split(command)
    script, rest = Path(words[1]).stem, words[2:]
    if "-cn" in rest:
        at = rest.index("-cn")
        script, rest = rest[at + 1], rest[:at] + rest[at + 2 :]
    flags = {"-m", "-cd", "sweeps", "--help", "--cfg", "job"}
    return script, [word for word in rest if word not in flags]


def composed(command: str) -> object:
    name, overrides = overrides_of(command)
    sweep = (ROOT / "sweeps" / f"{name}.yaml").is_file()
    first = [override.split(",")[0] if "[" not in override and "," in override else override for override in overrides]
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return compose("train" if sweep else name, first, return_hydra_config=True)


def test_there_are_commands_of_every_kind():
    assert {Path(shlex.split(command)[1]).stem for command in commands()} == {"train", "eval", "play"}
    assert len(commands()) > 20


@pytest.mark.parametrize("command", commands())
def test_command_composes(command: str, tmp_path: Path):
    cfg = composed(command)
    OmegaConf.set_readonly(cfg.hydra, False)
    cfg.hydra.runtime.output_dir, cfg.paths.root = str(tmp_path), str(ROOT)
    cfg.hydra.job.num = 0
    HydraConfig.instance().set_config(cfg)
    OmegaConf.set_struct(cfg, False)
    del cfg["hydra"]
    OmegaConf.resolve(cfg)
    assert cfg.gamma < 1


def test_every_choice_of_the_table_exists_and_every_experiment_is_listed():
    named = set(re.findall(r"`([\w.]+)`", README))
    for group in (ROOT / "configs").iterdir():
        if group.is_dir() and group.name not in GROUPS:
            choices = {file.stem for file in group.glob("*.yaml")} - {"default"}
            assert choices <= named, f"{group.name}: the README does not name {sorted(choices - named)}"
    for group, _, choices in re.findall(r"^\| `(\w+)` \| (.*?) \| (.*) \|$", README, re.MULTILINE):
        folder = ROOT / "configs" / group
        for choice in re.findall(r"`([\w.]+)`", choices) if folder.is_dir() else []:
            assert (folder / f"{choice}.yaml").is_file(), f"the README names {group}={choice}"


def test_the_package_table_is_complete():
    packages = {p.name for p in (ROOT / "priorzero").iterdir() if (p / "__init__.py").is_file()}
    assert packages == set(re.findall(r"^\| `(\w+)/` \|", README, re.MULTILINE))


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_example_environment_plays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "mygames.py").write_text(blocks("python")[0])
    monkeypatch.syspath_prepend(tmp_path)
    games = instantiate(yaml.safe_load(blocks("yaml")[0]))
    sys.modules.pop("mygames")
    assert games.heldout
    env = games.train[0].build()
    observation, info = env.reset(seed=1)
    assert len(observation) == 3
    assert info["valid_actions"] == sorted(info["valid_actions"])
    rewards = [env.step(action) for action in env.unwrapped._walkthrough()]
    assert rewards[-1][2]
    assert rewards[-1][-1]["score"] == info["max_score"]
