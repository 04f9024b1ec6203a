"""Times the tree search alone: a model that costs nothing, so what is left is selection, new nodes and backup.

Run from the root of the repository, on an idle machine, on one thread: ``python -m benchmarks.search_tree``. Prints
microseconds for one simulation of the whole batch, making the trees included: the fastest of several samples and
their median; ``--json FILE`` writes them. The first lines say what the first search of a process costs; with an empty
``NUMBA_CACHE_DIR`` that is compilation, later it is loading.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np

from benchmarks.timing import write_json
from priorzero.search import GumbelConfig, SearchConfig, gumbel_search, search
from priorzero.types import Expansion, Root

BATCHES = (1, 8, 64, 512)
CASES = ((20, 25), (60, 50))  # actions, simulations
SAMPLES = 7
SAMPLE_S = 0.2


class FreeModel:
    """Answers with expansions that were drawn beforehand."""

    def __init__(self, batch: int, actions: int, simulations: int) -> None:
        """Draws one expansion a simulation, and the root."""
        rng = np.random.default_rng(0)
        ids = np.tile(np.arange(actions, dtype=np.int32), (batch, 1))

        def probs() -> np.ndarray:
            return rng.dirichlet(np.full(actions, 0.3), batch).astype(np.float32)

        def numbers() -> np.ndarray:
            return rng.normal(size=batch).astype(np.float32)

        self.root = Root(ids, probs(), numbers())
        self.expansions = [Expansion(numbers(), numbers(), ids, probs()) for _ in range(simulations)]

    def expand(self, node: int, parent: np.ndarray, action: np.ndarray) -> Expansion:
        """Looks the expansion up."""
        return self.expansions[node - 1]


def puct(model: FreeModel, simulations: int) -> None:
    """One pUCT search."""
    search(
        model,
        model.root,
        SearchConfig(simulations, c_init=1.25, c_base=19652.0, gamma=0.997, minmax_floor=0.01, reuse=False),
    )


def gumbel(model: FreeModel, simulations: int) -> None:
    """One Gumbel search."""
    config = GumbelConfig(simulations, max_considered=16, c_visit=50.0, c_scale=0.1, gamma=0.997, minmax_floor=0.01)
    gumbel_search(model, model.root, config, None)


def sample_us(run: Callable[[], None], simulations: int) -> list[float]:
    """Microseconds a simulation, one number a sample."""
    samples = []
    for _ in range(SAMPLES):
        searches, start = 0, time.perf_counter()
        while (passed := time.perf_counter() - start) < SAMPLE_S:
            run()
            searches += 1
        samples.append(passed / searches / simulations * 1e6)
    return samples


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", default="", help="where to write the rows, if not to logs/benchmarks")
    path, rows = parser.parse_args().json, []
    write = sys.stdout.write
    algorithms = {"puct": puct, "gumbel": gumbel}
    for name, run in algorithms.items():
        model = FreeModel(1, 4, 2)
        start = time.perf_counter()
        run(model, 2)
        write(f"first {name} search of this process: {time.perf_counter() - start:.2f} s\n")
    write(f"{'search':8}{'A':>4}{'sims':>6}{'B':>6}{'us min':>10}{'median':>10}\n")
    for name, run in algorithms.items():
        for actions, simulations in CASES:
            for batch in BATCHES:
                model = FreeModel(batch, actions, simulations)
                us = sample_us(lambda run=run, model=model, n=simulations: run(model, n), simulations)
                row = f"{name:8}{actions:>4}{simulations:>6}{batch:>6}"
                case = {"search": name, "actions": actions, "simulations": simulations, "B": batch}
                rows.append({**case, "us_min": min(us), "us_median": statistics.median(us)})
                write(f"{row}{min(us):>10.1f}{statistics.median(us):>10.1f}\n")
    write_json(path or "search_tree", rows)


if __name__ == "__main__":
    main()
