"""What it is worth to start a search from the one before: python -m benchmarks.reuse RUN [OVERRIDES].

RUN is the folder of a run; its newest checkpoint is taken. Plays episodes of its training games with pUCT, some
steps at random so that many states come. In each state the same model searches with few simulations, once afresh and
once from what the last search found there (``search.config.reuse``), and with many. Printed: in how many states each of
the small searches chooses the action of the large one.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.decisions import Several, trained
from benchmarks.timing import machine, show, write_json
from priorzero.collect.player import Player
from priorzero.search import SearchConfig

PUCT = {"c_init": 1.25, "c_base": 19652.0, "minmax_floor": 0.5}


def main() -> None:
    """Prints one row for each number of simulations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--simulations", type=int, nargs="+", default=[8, 16, 25, 50])
    parser.add_argument("--many", type=int, default=400, help="simulations of the large search (default %(default)s)")
    parser.add_argument("--random", type=float, default=0.1, help="share of random steps (default %(default)s)")
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_intermixed_args()
    rows = [_compare(options, simulations) for simulations in options.simulations]
    print(machine())
    show([{name: f"{x:.1%}" if isinstance(x, float) and x <= 1 else x for name, x in row.items()} for row in rows])
    write_json("reuse", rows)


def _compare(options: argparse.Namespace, simulations: int) -> dict[str, str | float]:
    large = f"search.config.simulations={options.many}"  # trees are made for the largest search
    with trained(options.run, [large, *options.overrides]) as session:
        small = SearchConfig(simulations=simulations, gamma=session.cfg.gamma, reuse=False, **PUCT)
        configs = (replace(small, simulations=options.many), small, replace(small, reuse=True))
        three = Several(session.player, [partial(_search_with, config) for config in configs], options.random)
        three.play(session, options.episodes)
        game = session.games.train[0].name
    many, afresh, again = np.array([[decision.index for decision in answers] for answers in three.answers]).T
    return {
        "game": game,
        "decisions": len(many),
        "simulations": simulations,
        "visits behind the played action, mean": round(float(np.mean(three.carried)), 1),
        "afresh": float((afresh == many).mean()),
        "with re-use": float((again == many).mean()),
    }


def _search_with(config: SearchConfig, player: Player) -> None:
    player.search_config = config


if __name__ == "__main__":
    main()
