"""Several ways to decide in the same states: what `benchmarks.precision` and `benchmarks.reuse` share."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig

from priorzero.app.evaluate import Session, open_session
from priorzero.collect.episode import Decision, Episode
from priorzero.collect.evaluate import evaluate, tasks
from priorzero.collect.player import Player

ROOT = Path(__file__).resolve().parents[1]


@contextmanager
def trained(run: Path, overrides: Sequence[str]) -> Generator[Session]:
    """A player from the newest checkpoint of a run's folder."""
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        words = [f"ckpt={run.absolute()}", f"paths.root={ROOT}", *overrides]
        cfg = compose("eval", words, return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
    with open_session(cfg) as session:
        yield session


class Several:
    """Asks a player in several ways, and plays the last answer, or at random so that many states come.

    Args:
        player: who is asked.
        ways: each changes the player before it is asked.
        random_share: of the steps.
    """

    def __init__(self, player: Player, ways: Sequence[Callable[[Player], None]], random_share: float) -> None:
        self.player, self.ways, self.random_share = player, ways, random_share
        self.answers: list[tuple[Decision, ...]] = []  # in the order of the ways, where there is something to decide
        self.carried: list[int] = []  # visits that the last search spent behind the played action, there
        self._decide, self._rng = player.decide, np.random.default_rng(0)

    def play(self, session: Session, episodes: int) -> None:
        """Play episodes of the training games."""
        self.player.decide = self
        todo = tasks(session.games.train, episodes, 0)
        evaluate(self.player, session.envs, todo, "wm", history_steps=session.history_steps)

    def __call__(self, policy: str, episodes: Sequence[Episode], *, explore: bool) -> list[Decision]:
        """As `Player.decide`."""
        asked = []
        for change in self.ways:
            change(self.player)
            asked.append(self._decide(policy, episodes, explore=explore))
        for answers, episode in zip(zip(*asked, strict=True), episodes, strict=True):
            if len(answers[0].visit_probs) > 1:
                self.answers.append(answers)
                self.carried.append(0 if episode.subtree is None else int(episode.subtree.visits.sum()))
        return [self._play(decision) for decision in asked[-1]]

    def _play(self, decision: Decision) -> Decision:
        if self._rng.random() >= self.random_share:
            return decision
        return replace(decision, index=int(self._rng.integers(len(decision.visit_probs))), subtree=None)
