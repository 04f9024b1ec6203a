"""Times searches of stored states with new weights: what ``data.reanalysis_ratio`` adds to an update.

From the root of the repository: ``OMP_NUM_THREADS=1 python -m benchmarks.reanalysis`` (one core: milliseconds of
processor time) or ``python -m benchmarks.reanalysis --device cuda``. With 64 windows of 11 steps and a ratio of a
quarter there are 176 states, with 8 windows 22. Loading the weights is part of it. Exits with 1 where states searched
in smaller parts come out otherwise.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from typing import Any

import numpy as np
import torch

from benchmarks.search import PUCT, Decisions, make_model, make_planner
from benchmarks.timing import cpu_ms, machine, row, show, wall_ms, write_json
from priorzero.search import Reanalysis, SearchConfig, StoredStates, reanalyse
from priorzero.world_model.planner import DevicePlanner, Planner


def stored(count: int) -> StoredStates:
    """So many states, half of them with a prior."""
    states = Decisions(count)
    prior = np.random.default_rng(0).dirichlet(np.ones(states.actions.shape[1]), count).astype(np.float32)
    return StoredStates(states.context, states.actions, states.known, prior)


class Again:
    """One reanalysis, from new weights to policies."""

    def __init__(self, options: argparse.Namespace, precision: str, states: StoredStates, at_once: int) -> None:
        kind = DevicePlanner if options.device == "cuda" else Planner
        self.planner = make_planner(
            options.width, options.simulations, kind, device=options.device, precision=precision
        )
        self.weights = make_model(options.width, options.simulations).to(options.device).state_dict()
        self.states, self.at_once, self.config = states, at_once, SearchConfig(options.simulations, **PUCT)
        self.weight = np.where(np.arange(len(states.actions)) % 2, 0.5, 0.0)

    def __call__(self) -> Reanalysis:
        self.planner.load_weights(self.weights)
        return reanalyse(self.planner, self.states, self.config, llm_weight=self.weight, batch=self.at_once)


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each precision, number of states and number that is searched at once."""
    rows, device = [], torch.device(options.device)
    for precision in ("float32", "bfloat16" if options.device == "cuda" else "int8"):
        for count in options.states:
            states, best = stored(count), None
            for at_once in options.at_once:
                again = Again(options, precision, states, at_once)
                if options.device == "cuda":
                    samples = wall_ms(again, options.samples, 2, device)
                else:
                    samples = cpu_ms(again, options.samples)
                found = again().policy.argmax(-1)
                best = found if best is None else best
                if np.mean(found == best) < 0.95:  # near ties fall either way with rounding
                    sys.exit(f"FAILED: {precision}, {count} states: {at_once} at once choose other actions")
                per_state = statistics.median(samples) / count
                sizes = {"d": options.width, "simulations": options.simulations, "states": count, "at_once": at_once}
                rows.append(row(f"reanalysis {precision}", samples, **sizes, ms_per_state=per_state))
    return rows


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--simulations", type=int, default=50)
    parser.add_argument("--states", type=int, nargs="+", default=[22, 176])
    parser.add_argument("--at-once", type=int, nargs="+", default=[32, 256])
    parser.add_argument("--samples", type=int, default=3)
    parser.add_argument("--json", default="", help="where to write the rows, if not to logs/benchmarks")
    options = parser.parse_args()
    if options.device == "cpu":
        torch.set_num_threads(1)
    rows = measure(options)
    print(machine())
    show(rows)
    command = " ".join(["python -m benchmarks.reanalysis", *sys.argv[1:]])
    write_json(options.json or f"reanalysis-{options.device}", rows, command=command)


if __name__ == "__main__":
    main()
