"""Plays story files at random in game workers: does any crash or hang, and how fast are they?

Run from the root of the repository: ``python -m benchmarks.story_files FOLDER --workers 2 --json results.json``. Each
story file is played for so many steps; a command is a template of the game's grammar filled with words of its
dictionary, or a word alone. Most make no sense, which is the point. Every step also asks for the room and the
inventory, as in training; valid actions are not looked for. Prints a table, then the same as JSON. The rate counts the
start of the worker and the resets in.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium

from priorzero.envs.base import EnvError
from priorzero.envs.jericho import JerichoEnv, JerichoSpec
from priorzero.envs.stories import SUFFIXES
from priorzero.envs.vector import VectorEnv

COLUMNS = ("game", "steps", "episodes", "ended", "refused", "crash", "timeout", "slowest_ms", "steps_per_s", "error")


@dataclass(frozen=True)
class RandomPlaySpec(JerichoSpec):
    """A game whose only valid action is a random command."""

    valid_actions: str = "none"

    def build(self) -> gymnasium.Env:
        """Opens the story file. Worker processes only."""
        return RandomPlay(self)


class RandomPlay(JerichoEnv):
    """Offers one random command in every state; the seed of the episode draws them."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Starts an episode."""
        self._random = random.Random(seed)
        self._words = [word.word for word in self._game.get_dictionary()]
        return super().reset(seed=seed, options=options)

    def _valid_actions(self) -> list[str]:
        templates = self._game.act_gen.templates
        template = self._random.choice(templates) if self._random.random() < 0.9 else "OBJ"
        spoken = " ".join(self._random.choice(word.split("/")) for word in template.split())
        return [re.sub("OBJ", lambda _: self._random.choice(self._words), spoken)]


def play(spec: JerichoSpec, steps: int, timeout_s: float) -> dict[str, Any]:
    """The row of one story file."""
    row = dict.fromkeys(COLUMNS, 0) | {"game": spec.name, "error": ""}
    slowest, began = 0.0, time.perf_counter()
    with VectorEnv(1, timeout_s=timeout_s, reset_timeout_s=60) as envs:
        try:
            while row["steps"] < steps:
                row["episodes"] += 1
                (step,) = envs.reset([0], [spec], [row["episodes"]])
                while row["steps"] < steps and not step.done:
                    start = time.perf_counter()
                    (step,) = envs.step([0], [step.valid_actions[0]])
                    slowest = max(slowest, time.perf_counter() - start)
                    row["steps"] += 1
                    row["refused"] += step.observation.feedback.startswith("[priorzero: ")
                    row["ended"] += step.terminated
        except EnvError as error:
            row["error"] = str(error).split("\n", 1)[0]
        row |= {kind: envs.faults[kind] for kind in ("crash", "timeout")}
    seconds = time.perf_counter() - began
    return row | {"slowest_ms": round(1e3 * slowest, 1), "steps_per_s": round(row["steps"] / seconds)}


def main() -> None:
    """Prints the table and the JSON."""
    from benchmarks.story_files import RandomPlaySpec  # by the name under which a worker can import it

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with the story files")
    parser.add_argument("--steps", type=int, default=1500, help="of each story file")
    parser.add_argument("--episode-steps", type=int, default=300, help="limit of an episode")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--timeout-s", type=float, default=10, help="of one step")
    parser.add_argument("--json", type=Path, default="logs/benchmarks/story_files.json", help="file for the JSON")
    arguments = parser.parse_args()
    stories = sorted(path for path in arguments.folder.iterdir() if path.suffix in SUFFIXES)
    if not stories:
        parser.error(f"there are no story files ({' '.join(SUFFIXES)}) in {arguments.folder}")
    specs = [RandomPlaySpec(str(path), arguments.episode_steps) for path in stories]
    with ThreadPoolExecutor(arguments.workers) as pool:
        rows = list(pool.map(lambda spec: play(spec, arguments.steps, arguments.timeout_s), specs))
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    for row in rows:
        print("| " + " | ".join(str(row[column]) for column in COLUMNS) + " |")
    played = {column: sum(row[column] for row in rows) for column in ("steps", "crash", "timeout")}
    report = json.dumps({"workers": arguments.workers, "total": played, "games": rows}, indent=1)
    print(report)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(report + "\n")


if __name__ == "__main__":
    main()
