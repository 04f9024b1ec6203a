"""What it is worth to start a search from the one before: python -m benchmarks.reuse RUN [OVERRIDES].

RUN is the folder of a run; its newest checkpoint is taken. Plays episodes of its training games with pUCT, some
steps at random so that many states come. In each state the same model searches with few simulations, once afresh and
once from what the last search found there (``search.config.reuse``), and with many. Printed: in how many states each of
the small searches chooses the action of the large one.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig

from benchmarks.timing import machine, show, write_json
from priorzero.app.evaluate import open_session
from priorzero.collect.episode import Decision, Episode
from priorzero.collect.evaluate import evaluate, tasks
from priorzero.collect.player import Player
from priorzero.search import SearchConfig

ROOT = Path(__file__).resolve().parents[1]
PUCT = {"c_init": 1.25, "c_base": 19652.0, "minmax_floor": 0.5}


class Three:
    """Lets three searches decide, and plays what the one with re-use says, or at random."""

    def __init__(self, player: Player, configs: Sequence[SearchConfig], random_share: float) -> None:
        self.player, self.configs, self.random_share = player, configs, random_share
        self.chosen: list[list[int]] = []  # large, afresh, again
        self.carried: list[int] = []  # visits that the last one starts from
        self._decide, self._rng = player.decide, np.random.default_rng(0)

    def __call__(self, policy: str, episodes: Sequence[Episode], *, explore: bool) -> list[Decision]:
        """As `Player.decide`."""
        asked = []
        for config in self.configs:
            self.player.search_config = config
            asked.append(self._decide(policy, episodes, explore=explore))
        for several, episode in zip(zip(*asked, strict=True), episodes, strict=True):
            if len(several[0].visit_probs) > 1:  # otherwise there is nothing to decide
                self.chosen.append([decision.index for decision in several])
                self.carried.append(0 if episode.subtree is None else int(episode.subtree.visits.sum()))
        return [self._play(decision) for decision in asked[-1]]

    def _play(self, decision: Decision) -> Decision:
        if self._rng.random() >= self.random_share:
            return decision
        return replace(decision, index=int(self._rng.integers(len(decision.visit_probs))), subtree=None)


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
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        overrides = [
            f"ckpt={options.run.absolute()}",
            f"paths.root={ROOT}",
            f"search.config.simulations={options.many}",
        ]
        cfg = compose("eval", [*overrides, *options.overrides], return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
    with open_session(cfg) as session:
        small = SearchConfig(simulations=simulations, gamma=session.cfg.gamma, reuse=False, **PUCT)
        three = Three(
            session.player,
            [replace(small, simulations=options.many), small, replace(small, reuse=True)],
            options.random,
        )
        session.player.decide = three
        todo = tasks(session.games.train, options.episodes, 0)
        evaluate(session.player, session.envs, todo, "wm", history_steps=session.history_steps)
        game = session.games.train[0].name
    large, afresh, again = np.array(three.chosen).T
    return {
        "game": game,
        "decisions": len(large),
        "simulations": simulations,
        "visits carried over, mean": round(float(np.mean(three.carried)), 1),
        "afresh": float((afresh == large).mean()),
        "with re-use": float((again == large).mean()),
    }


if __name__ == "__main__":
    main()
