"""Search over a trained world model finds what neither its prior nor its values say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.corridor import CONTEXT, LEFT, PRIZE, RIGHT, Corridor
from priorzero.search import GumbelConfig, SearchConfig, gumbel_search, search
from priorzero.types import Root
from priorzero.world_model.model import UniZero
from priorzero.world_model.planner import DevicePlanner, Planner, PlannerConfig

SIMULATIONS, LENGTH = 60, 4
GAME = Corridor(LENGTH)
PUCT = SearchConfig(SIMULATIONS, 1.25, 19652.0, 0.9, 0.1, False)
GUMBEL = GumbelConfig(SIMULATIONS, 3, 50.0, 0.1, 0.9, 0.1)
KINDS = {
    "host": lambda model, config: Planner(model, config),
    "int8": lambda model, config: Planner(model, config, precision="int8"),
    "device": lambda model, config: DevicePlanner(model, config, device="cpu"),
}


@pytest.fixture(scope="module")
def trained() -> UniZero:
    """Knows where actions lead and what they pay; knows no values: every state is worth 0."""
    torch.set_num_threads(1)
    model = GAME.train(width=64, updates=800, windows=32)
    nn.init.zeros_(model.value_head[-1].weight)
    nn.init.zeros_(model.value_head[-1].bias)
    return model


def decide(planner: Planner, history: list[int], places: list[int], config: object, prior: list[float]) -> int:
    context, actions, known = GAME.ask(planner, history, places)
    said = planner.root(context, actions, known)
    root = Root(actions, np.array([prior], np.float32), said.value)
    if isinstance(config, GumbelConfig):
        return int(gumbel_search(planner, root, config, None).action[0])
    assert isinstance(config, SearchConfig)
    return int(search(planner, root, config).visits[0].argmax())


def play(planner: Planner, config: object, prior: list[float], limit: int) -> float:
    places, history, score = [0], [], 0.0
    while places[-1] != LENGTH and len(history) < limit:
        action = decide(planner, history, places, config, prior)
        place, reward = GAME.step(places[-1], action)
        places, history, score = [*places, place], [*history, action], score + reward
    return score


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("config", [PUCT, GUMBEL], ids=["puct", "gumbel"])
def test_search_alone_finds_the_end_of_the_corridor(trained: UniZero, kind: str, config: object) -> None:
    # All values are 0, the prior prefers nothing, one step shows no reward before the last: only depth tells.
    planner = KINDS[kind](trained, PlannerConfig(context_steps=CONTEXT, top_k=3, simulations=SIMULATIONS))
    planner.set_actions(GAME.actions)
    assert play(planner, config, [1 / 3, 1 / 3, 1 / 3], limit=LENGTH) == PRIZE


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("config", [PUCT, GUMBEL], ids=["puct", "gumbel"])
def test_search_overrules_a_wrong_prior(trained: UniZero, kind: str, config: object) -> None:
    planner = KINDS[kind](trained, PlannerConfig(context_steps=CONTEXT, top_k=3, simulations=SIMULATIONS))
    planner.set_actions(GAME.actions)
    wrong = [0.90, 0.05, 0.05]
    assert wrong[LEFT] > wrong[RIGHT]
    places = [LENGTH - 1] if config is PUCT else [LENGTH - 1, LENGTH - 2]  # pUCT asks RIGHT late, and only one step far
    for place in places:
        assert decide(planner, [RIGHT], [place - 1, place], config, wrong) == RIGHT


def test_the_model_without_search_knows_nothing(trained: UniZero) -> None:
    """Guards the tests above: neither values nor policy lead to the prize."""
    planner = Planner(trained, PlannerConfig(context_steps=CONTEXT, top_k=3, simulations=1))
    planner.set_actions(GAME.actions)
    for place in range(LENGTH):
        said = planner.root(*GAME.ask(planner, [], [place]))
        assert said.value[0] == pytest.approx(0.0, abs=1e-6)
        assert np.ptp(said.logits[0]) < 1.5
