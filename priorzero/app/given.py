"""What rewards and tools get from the program: the world model that plays, and the model that writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from priorzero.collect.imagine import Scene, imagine, scene_of
from priorzero.data.prompt_source import Extras
from priorzero.types import Imagined, Message, PromptRow, Segment

if TYPE_CHECKING:
    from priorzero.app.build import Run

Reply = Callable[[Sequence[Sequence[Message]]], Sequence[str]]

IMAGINED_AT_ONCE = 256  # actions in one batch of the world model


def scenes(run: Run) -> Extras:
    """The situation of each prompt as the world model sees it; where a reward wants it, the value of its actions."""
    steps = run.cfg.world_model.context_steps
    valued = any(str(reward["_target_"]).endswith("SearchValue") for reward in run.cfg.reward.rewards.values())

    def extras(segments: Sequence[Segment], at: Sequence[int]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = [
            {"scene": scene_of(segment, step, steps)} for segment, step in zip(segments, at, strict=True)
        ]
        if valued:
            _add_values(run, found, [segment.valid_actions[step] for segment, step in zip(segments, at, strict=True)])
        return found

    return extras


def _add_values(run: Run, extras: list[dict[str, Any]], valid: Sequence[Sequence[str]]) -> None:
    asked = [(extra["scene"], action) for extra, actions in zip(extras, valid, strict=True) for action in actions]
    imagined = iter(_imagine(run, [scene for scene, _ in asked], [action for _, action in asked]))
    for extra, actions in zip(extras, valid, strict=True):
        found = {action: next(imagined) for action in actions}
        extra["action_values"] = {action: i.reward + run.cfg.gamma * i.value for action, i in found.items()}


def _imagine(run: Run, scenes: Sequence[Scene], actions: Sequence[str]) -> list[Imagined]:
    player = run.collector.actor.player
    with run.collector.paused():  # nobody else searches with the same planner
        return [
            found
            for i in range(0, len(scenes), IMAGINED_AT_ONCE)
            for found in imagine(
                player,
                scenes[i : i + IMAGINED_AT_ONCE],
                actions[i : i + IMAGINED_AT_ONCE],
                run.cfg.world_model.context_steps,
            )
        ]


def for_tool(run: Run, tool: DictConfig) -> dict[str, Any]:
    """What a tool of the configuration gets: the world model, for `imagine`."""
    if not str(tool["_target_"]).endswith("ImagineTool"):
        return {}

    def ask(rows: Sequence[PromptRow], actions: Sequence[str]) -> list[Imagined]:
        return _imagine(run, [row.extra["scene"] for row in rows], actions)

    return {"imagine": ask, "_partial_": False}  # it is whole now


def for_rewards(cfg: DictConfig, reply: Reply) -> dict[str, dict[str, Any]]:
    """What rewards of the configuration get: a judge without a ``generate`` of its own gets ``reply``."""

    def generate(chats: Sequence[Sequence[Message]]) -> Sequence[str]:  # Hydra copies methods with all they belong to
        return reply(chats)

    return {
        str(name): {"generate": generate}
        for name, reward in cfg.reward.rewards.items()
        if str(reward["_target_"]).endswith("Judge") and OmegaConf.is_missing(reward, "generate")
    }
