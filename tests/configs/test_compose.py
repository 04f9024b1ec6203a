"""Every choice composes, ablations really change what they should, and refusals are sentences."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from priorzero.app.refusals import ConfigError, check_config
from priorzero.app.tokens import learns_from_answers

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def choices(group: str) -> list[str]:
    return sorted(file.stem for file in (CONFIGS / group).glob("*.yaml"))


def configuration(*overrides: str, name: str = "train") -> DictConfig:
    """A composed configuration with every interpolation resolved."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose(name, list(overrides), return_hydra_config=True)
    with open_dict(cfg):
        cfg.hydra.runtime.output_dir = "/nowhere"
        HydraConfig.instance().set_config(cfg)
        hydra = cfg.pop("hydra")
        cfg.paths.output_dir = hydra.runtime.output_dir
        cfg.paths.root = "/nowhere"
    OmegaConf.resolve(cfg)
    return cfg


GROUPS = ("encoder", "world_model", "prompt", "search", "collector", "objective", "logger", "debug")


@pytest.mark.parametrize(("group", "choice"), [(group, choice) for group in GROUPS for choice in choices(group)])
def test_every_choice_composes_and_is_allowed(group: str, choice: str):
    check_config(configuration(f"{group}={choice}"))


@pytest.mark.parametrize("env", [env for env in choices("env") if env != "jericho"])
def test_every_environment_composes_and_is_allowed(env: str):
    cfg = configuration(f"env={env}")
    check_config(cfg)
    assert cfg.env.max_steps > 0


FILE = ["experience.prompt_file=rows.jsonl"]
LEFT_TO_THE_USER = {"answers_grpo": FILE, "answers_ppo": FILE, "search_agent": FILE}


@pytest.mark.parametrize("experiment", choices("experiment"))
def test_experiments_are_allowed_and_carry_name_and_tags(experiment: str):
    cfg = configuration(f"experiment={experiment}", *LEFT_TO_THE_USER.get(experiment, ()))
    check_config(cfg)
    assert cfg.name == experiment
    assert cfg.tags
    assert cfg.optimized_metric.split("/")[1] in cfg.evaluation.policies


@pytest.mark.parametrize("experiment", choices("experiment"))
@pytest.mark.parametrize("mode", choices("mode"))
def test_a_mode_works_under_an_experiment_or_is_refused(experiment: str, mode: str):
    cfg = configuration(f"experiment={experiment}", f"mode={mode}", *LEFT_TO_THE_USER.get(experiment, ()))
    assert cfg.schedule.mode == mode
    if cfg.llm.source is None and mode != "world_model":
        with pytest.raises(ConfigError, match="llm=none"):
            check_config(cfg)
    elif mode == "llm" and learns_from_answers(cfg) and cfg.experience.prompt_file is None:
        with pytest.raises(ConfigError, match="no trained world model searches"):
            check_config(cfg)
    else:
        check_config(cfg)


ALREADY_SO = {("prior_rft", "no_sft")}


@functools.cache
def without_ablation(experiment: str) -> DictConfig:
    return configuration(f"experiment={experiment}")


def own_experiments() -> list[str]:
    """Those that do not begin as another one does, with little changed."""
    files = {name: OmegaConf.load(CONFIGS / "experiment" / f"{name}.yaml") for name in choices("experiment")}
    return [name for name, file in files.items() if not {*files} & {d for d in file.defaults if isinstance(d, str)}]


@pytest.mark.parametrize("experiment", own_experiments())
@pytest.mark.parametrize("ablation", [name for name in choices("ablation") if name != "none"])
def test_every_ablation_changes_every_experiment(experiment: str, ablation: str):
    plain = without_ablation(experiment)
    cut = configuration(f"experiment={experiment}", f"ablation={ablation}")
    assert (plain == cut) == ((experiment, ablation) in ALREADY_SO)


def test_the_command_line_has_the_last_word():
    cfg = configuration("experiment=zork_lora", "llm=tiny", "debug=tiny", "search.config.simulations=7")
    assert cfg.llm.source == "tiny-random"
    assert cfg.llm.peft.r == 16
    assert cfg.search.config.simulations == 7
    assert cfg.world_model.network.width == 32


def test_the_configuration_names_no_folder_of_this_machine():
    top = {f"/{folder.name}/" for folder in Path("/").iterdir() if folder.is_dir()}
    for file in CONFIGS.rglob("*.yaml"):
        named = [word for word in file.read_text().split() if word.startswith(tuple(top))]
        assert not named, (file, named)


@pytest.mark.parametrize("name", ["eval", "play"])
def test_the_other_commands_compose(name: str):
    assert configuration("ckpt=last", name=name).ckpt == "last"
