from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from priorzero.rollout.agent import AgentConfig
from priorzero.rollout.calls import CallConfig
from priorzero.rollout.tools import ImagineTool, SearchTool

CONFIGS = Path(__file__).resolve().parents[3] / "configs"


def composed(name: str):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose(name)


@pytest.mark.parametrize(
    ("name", "mode", "max_turns"),
    [("plain", "dialogue", 0), ("tools", "dialogue", 4), ("one_search", "dialogue", 1), ("step", "step", 4)],
)
def test_agents(name: str, mode: str, max_turns: int):
    agent = composed(f"agent/{name}").agent
    loop = instantiate(agent.loop)
    assert isinstance(loop, AgentConfig)
    assert (loop.mode, loop.max_turns) == (mode, max_turns)
    assert isinstance(instantiate(agent.calls), CallConfig)


def test_tools():
    search = instantiate(composed("tool/search").tool.search)
    assert isinstance(search, SearchTool)
    assert instantiate(composed("tool/search_top1").tool.search).topk == 1 < search.topk
    imagine = instantiate(composed("tool/imagine").tool.imagine)
    assert isinstance(imagine(imagine=lambda rows, actions: []), ImagineTool)
    assert OmegaConf.to_container(composed("tool/none")) in ({}, {"tool": {}})


def test_every_file_is_tested():
    assert {file.stem for file in (CONFIGS / "agent").glob("*.yaml")} == {"plain", "tools", "one_search", "step"}
    assert {file.stem for file in (CONFIGS / "tool").glob("*.yaml")} == {"none", "search", "search_top1", "imagine"}
