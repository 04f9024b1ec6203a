"""What int8 changes in the decisions of a trained world model: python -m benchmarks.precision RUN [OVERRIDES].

RUN is the folder of a run, of which the newest checkpoint is taken. Plays episodes of its training games, some steps at
random so that many states come; in each of them float32 and int8 search. Printed: in how many both choose the same
action, in how many all visits are equal, and how far the values of the roots lie apart.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.decisions import Several, trained
from benchmarks.timing import machine, show, write_json
from priorzero.app.models import build_planner, planner_options
from priorzero.collect.player import Player
from priorzero.world_model.planner import Planner

TARGET = 0.95


def main() -> None:
    """Prints the row; ends with 1 where fewer than 95 % of the decisions are the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--random", type=float, default=0.2, help="share of random steps (default %(default)s)")
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_intermixed_args()
    with trained(options.run, options.overrides) as session:
        planner = session.player.planner
        assert planner is not None
        other = build_planner(
            session.cfg, planner.model.config, replace(planner_options(session.cfg), precision="int8")
        )
        other.load_weights(planner.model.state_dict())
        both = Several(session.player, [partial(_plan_with, other), partial(_plan_with, planner)], options.random)
        both.play(session, options.episodes)
    same = float(np.mean([one.index == two.index for one, two in both.answers]))
    equal = float(np.mean([np.array_equal(one.visits, two.visits) for one, two in both.answers]))
    apart = float(np.median([abs(one.root_value - two.root_value) for one, two in both.answers]))
    found = {"game": session.games.train[0].name, "width": planner.model.config.width, "decisions": len(both.answers)}
    print(machine())
    show([found | {"same action": f"{same:.1%}", "equal visits": f"{equal:.1%}",
                   "value apart, median": f"{apart:.3g}"}])  # fmt: skip
    write_json("precision", [found | {"what": "int8 beside float32", "same": same, "equal": equal}])
    if same < TARGET:
        sys.exit(f"FAILED: int8 chooses the same action in only {same:.1%} of the decisions")


def _plan_with(planner: Planner, player: Player) -> None:
    player.planner = planner


if __name__ == "__main__":
    main()
