"""How well a trained language model answers a file of prompts: the rewards of its most likely answers.

python -m benchmarks.prompt_score logs/train/runs/DATE/TIME_search_agent --prompts logs/questions/heldout.jsonl
python -m benchmarks.prompt_score RUN --prompts FILE --untrained             the model as it was before the training

Configuration (agent, tools, rewards) and weights are those of the run; values of the configuration may be changed
behind it, for example tool.search.url=http://127.0.0.1:8001/retrieve. Prints a table, and writes JSON with --out.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from priorzero.app import checkpoint
from priorzero.app.models import load_copy, plain
from priorzero.data.prompts import read_prompts
from priorzero.rollout.agent import AgentLoop
from priorzero.rollout.dialogue import written_text
from priorzero.rollout.transformers_backend import TransformersGenerator
from priorzero.text.parse import parse_answer
from priorzero.types import Answer, Dialogue

AT_ONCE = 16  # prompts in a call of the generator


def play(cfg: DictConfig, folder: Path | None, prompts: Path, limit: int) -> tuple[list[Dialogue], list[Answer]]:
    """The most likely answers to the first ``limit`` prompts, by the model of the checkpoint or as it came."""
    model = load_copy(cfg)
    generator = TransformersGenerator(model, **plain(cfg.rollout.generator))
    weights = None if folder is None else checkpoint.player_weights(folder, "policy")
    if weights is not None:
        generator.load_weights(weights, 1)
    tools = [instantiate(tool) for tool in cfg.tool.values()]
    loop = AgentLoop(generator, model.tokenizer, tools, instantiate(cfg.agent.loop), instantiate(cfg.agent.calls))
    loop.check()
    sampling = replace(instantiate(cfg.rollout.sampling, _convert_="all"), temperature=0.0)
    rows = [replace(row, group_id=f"{i}") for i, row in enumerate(read_prompts(prompts, plain(cfg.experience.columns)))]
    last = []
    for at in range(0, min(limit, len(rows)), AT_ONCE):
        last += [turns[-1] for turns in loop.run(rows[at : min(at + AT_ONCE, limit)], sampling, 1)]
    answers = []
    for dialogue in last:
        text = written_text(model.tokenizer, dialogue)
        action = parse_answer(text, dialogue.row.valid_actions, cfg.prompt.format).action
        answers.append(Answer(dialogue.row, text, action if dialogue.row.valid_actions else None, dialogue.finish))
    return last, answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=100, help="prompts (default %(default)s)")
    parser.add_argument("--untrained", action="store_true", help="with the weights as they came")
    parser.add_argument("--show", type=int, default=0, help="so many answers")
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_intermixed_args()
    cfg = cast(DictConfig, OmegaConf.load(arguments.run / ".hydra" / "config.yaml"))
    cfg = cast(DictConfig, OmegaConf.merge(cfg, OmegaConf.from_dotlist(arguments.overrides)))
    folder = None if arguments.untrained else checkpoint.find(str(arguments.run), arguments.run)
    dialogues, answers = play(cfg, folder, arguments.prompts, arguments.limit)
    grades = instantiate(cfg.reward)(answers)
    means = {name: float(np.nanmean(part)) for name, part in grades.parts.items()}
    means |= {"total": float(grades.totals.mean()), "prompts": len(answers)}
    for dialogue in dialogues[: arguments.show]:
        question = dialogue.row.messages[-1].content
        print(f"{question}\n{dialogue.row.answer_prefix}{dialogue.text}\n[{dialogue.row.answer}]\n")
    for name, value in means.items():
        print(f"{name:12} {value:.3f}")
    if arguments.out:
        record = {"run": arguments.run.name, "prompts_file": arguments.prompts.name, "untrained": arguments.untrained}
        arguments.out.write_text(json.dumps(record | {"means": means}, indent=1))


if __name__ == "__main__":
    main()
