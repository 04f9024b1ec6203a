"""What int8 changes in the decisions of a trained world model: python -m benchmarks.precision RUN [OVERRIDES].

RUN is the folder of a run, of which the newest checkpoint is taken. Plays episodes of its training games, some steps at
random so that many states come; in each of them float32 and int8 search. Printed: in how many both choose the same
action, in how many all visits are equal, and how far the values of the roots lie apart.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig

from benchmarks.timing import machine, show, write_json
from priorzero.app.evaluate import open_session
from priorzero.app.models import build_planner, planner_options
from priorzero.collect.episode import Decision, Episode
from priorzero.collect.evaluate import evaluate, tasks
from priorzero.collect.player import Player
from priorzero.world_model.planner import Planner

ROOT = Path(__file__).resolve().parents[1]
TARGET = 0.95


class Both:
    """Lets two planners decide, and plays what the first one says, or at random."""

    def __init__(self, player: Player, other: Planner, random_share: float) -> None:
        self.player, self.planners, self.random_share = player, (player.planner, other), random_share
        self.same: list[bool] = []
        self.equal: list[bool] = []
        self.apart: list[float] = []
        self._decide, self._rng = player.decide, np.random.default_rng(0)

    def __call__(self, policy: str, episodes: Sequence[Episode], *, explore: bool) -> list[Decision]:
        """As `Player.decide`."""
        asked = []
        for planner in self.planners:
            self.player.planner = planner
            asked.append(self._decide(policy, episodes, explore=explore))
        for one, two in zip(*asked, strict=True):
            if len(one.visit_probs) > 1:  # otherwise there is nothing to decide
                self.same.append(one.index == two.index)
                self.equal.append(np.array_equal(one.visits, two.visits))
                self.apart.append(abs(one.root_value - two.root_value))
        return [self._play(decision) for decision in asked[0]]

    def _play(self, decision: Decision) -> Decision:
        if self._rng.random() >= self.random_share:
            return decision
        return replace(decision, index=int(self._rng.integers(len(decision.visit_probs))))


def main() -> None:
    """Prints the row; ends with 1 where fewer than 95 % of the decisions are the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--random", type=float, default=0.2, help="share of random steps (default %(default)s)")
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_intermixed_args()
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        overrides = [f"ckpt={options.run.absolute()}", f"paths.root={ROOT}", *options.overrides]
        cfg = compose("eval", overrides, return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
    with open_session(cfg) as session:
        planner = session.player.planner
        assert planner is not None
        other = build_planner(
            session.cfg, planner.model.config, replace(planner_options(session.cfg), precision="int8")
        )
        other.load_weights(planner.model.state_dict())
        both = Both(session.player, other, options.random)
        session.player.decide = both
        todo = tasks(session.games.train, options.episodes, 0)
        evaluate(session.player, session.envs, todo, "wm", history_steps=session.history_steps)
    same, equal = float(np.mean(both.same)), float(np.mean(both.equal))
    found = {"game": session.games.train[0].name, "width": planner.model.config.width, "decisions": len(both.same)}
    print(machine())
    show([found | {"same action": f"{same:.1%}", "equal visits": f"{equal:.1%}",
                   "value apart, median": f"{np.median(both.apart):.3g}"}])  # fmt: skip
    write_json("precision", [found | {"what": "int8 beside float32", "same": same, "equal": equal}])
    if same < TARGET:
        sys.exit(f"FAILED: int8 chooses the same action in only {same:.1%} of the decisions")


if __name__ == "__main__":
    main()
