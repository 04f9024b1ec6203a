"""Prompts with right answers from TextWorld games: what the game's own solution does in each of its states.

python -m benchmarks.game_prompts --env coin_collector --out logs/prompts/coin_collector

Writes train.jsonl (the training games) and heldout.jsonl (other games of the family); train on them with
python train.py experiment=answers_grpo experience.prompt_file=logs/prompts/coin_collector/train.jsonl
"""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import replace
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from transformers import AutoTokenizer

from priorzero.data.prompt_source import GAME
from priorzero.data.prompts import write_prompts
from priorzero.envs.base import GameSpec
from priorzero.envs.vector import VectorEnv
from priorzero.text.prompt import PromptBuilder
from priorzero.types import PromptRow, Situation, Turn
from priorzero.utils.models import resolve

ROOT = Path(__file__).resolve().parents[1]


def rows_of(envs: VectorEnv, spec: GameSpec, prompts: PromptBuilder) -> list[PromptRow]:
    """The states of one game along its solution."""
    actions = envs.walkthrough(spec) or []
    (step,) = envs.reset([0], [spec], [0])
    rows, turns = [], []
    for action in actions:
        situation = Situation(step.observation, step.valid_actions, tuple(turns), step.goal)
        row = prompts.row(situation)
        state = hashlib.blake2b(row.messages[-1].content.encode(), digest_size=8).hexdigest()
        if action in step.valid_actions:  # not so for "look" and "inventory", which change nothing
            rows.append(replace(row, answer=action, data_source=GAME, state_id=state))
        before = step
        (step,) = envs.step([0], [action])
        turns.append(Turn(before.observation, action, step.reward))
    if not step.done or step.score < step.max_score:
        raise SystemExit(f"{spec.name}: its solution reaches {step.score:g} of {step.max_score:g} points")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="coin_collector", help="a TextWorld family of configs/env")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("overrides", nargs="*", help="of the configuration, for example prompt.history_steps=0")
    arguments = parser.parse_args()
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = compose("train", [f"env={arguments.env}", "prompt.show_valid_actions=true", *arguments.overrides])
    games = instantiate(cfg.env)
    prompts = PromptBuilder(AutoTokenizer.from_pretrained(resolve(cfg.llm.source)), instantiate(cfg.prompt))
    arguments.out.mkdir(parents=True, exist_ok=True)
    with VectorEnv(1, timeout_s=60, reset_timeout_s=300) as envs:
        for name in ("train", "heldout"):
            rows = [row for spec in getattr(games, name) for row in rows_of(envs, spec, prompts)]
            write_prompts(arguments.out / f"{name}.jsonl", rows)
            print(f"{arguments.out / name}.jsonl: {len(rows)} prompts of {len(getattr(games, name))} games")


if __name__ == "__main__":
    main()
