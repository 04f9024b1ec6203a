"""Many stored steps searched at once against single searches of the same states."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
import torch
from segment_factory import ACTIONS, WIDTH, encode, make_segment, make_vocabulary

from priorzero.app.reanalysis import Reanalyser, contexts
from priorzero.collect.player import RootPriorConfig
from priorzero.search import SearchConfig, masked_softmax, search
from priorzero.text.vocabulary import ActionVocabulary
from priorzero.types import Context, Root, Segment
from priorzero.world_model.model import UniZero, UniZeroConfig
from priorzero.world_model.planner import DevicePlanner, Planner, PlannerConfig

SEARCH = SearchConfig(simulations=6, c_init=1.25, c_base=19652, gamma=0.9, minmax_floor=0.01, reuse=False)
SIZES = UniZeroConfig(
    observation_width=3, action_width=3, width=16, layers=1, heads=2, dropout=0.0, latent_norm="layernorm",
    support_limit=5, window_steps=4, max_positions=40,
)  # fmt: skip


def network(seed: int) -> UniZero:
    """Its last layers are no longer 0, so that states differ."""
    torch.manual_seed(seed)
    model = UniZero(SIZES)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def planner(kind: type[Planner] = Planner) -> Planner:
    return kind(UniZero(SIZES), PlannerConfig(context_steps=3, top_k=4, simulations=6), device="cpu")


def segments() -> list[Segment]:
    prior = np.log(np.array([0.7, 0.1, 0.1, 0.1], np.float32))
    return [
        make_segment(5, episode=1, prior_logprobs=(None, prior, None, prior, None)),
        make_segment(4, episode=2, game="detective", valid=("east", "wait")),
    ]


def make_reanalyser(model: UniZero, states: int = 8, kind: type[Planner] = Planner, **mix) -> Reanalyser:
    weights = {"llm_weight": 0.5, "llm_weight_end": 0.5, "anneal_env_steps": 0, "llm_from_env_step": 0}
    return Reanalyser(
        planner=planner(kind),
        newest=model.state_dict,
        vocabulary=make_vocabulary(*segments()),
        search=SEARCH,
        root_prior=RootPriorConfig(**(weights | {"llm_weight_unsure": None} | mix)),
        env_steps=lambda: 50,
        states=states,
        seconds=defaultdict(float),
    )


def alone(model: UniZero, segment: Segment, step: int, llm_weight: float) -> np.ndarray:
    """One plain search of one state."""
    vocabulary, searcher = make_vocabulary(*segments()), planner()
    searcher.load_weights(model.state_dict())
    searcher.set_actions(vocabulary.vectors())
    actions = vocabulary.ids(segment.valid_actions[step])[None]
    known = np.zeros((1, len(vocabulary)), bool)
    known[0, vocabulary.members(segment.game)] = True
    said = searcher.root(contexts([segment], [step], 3, vocabulary), actions, known)
    probs = masked_softmax(said.logits, actions >= 0)
    prior = segment.prior_logprobs[step]
    if prior is not None:
        probs = ((1 - llm_weight) * probs + llm_weight * np.exp(prior)).astype(np.float32)
    return search(searcher, Root(actions, probs, said.value), SEARCH).visit_probs[0]


ASKED = [(0, 1), (1, 3), (0, 0), (0, 3), (1, 0)]


ANNEALED = {"llm_weight": 1.0, "llm_weight_end": 0.0, "anneal_env_steps": 200}


@pytest.mark.parametrize(
    ("mix", "weight", "kind", "states"),
    [({}, 0.5, Planner, 8), ({}, 0.5, Planner, 2), (ANNEALED, 0.75, Planner, 8), (ANNEALED, 0.75, DevicePlanner, 8)],
)
def test_equals_single_searches(mix, weight, kind, states):
    model, stored = network(1), segments()
    reanalyser = make_reanalyser(model, states, kind, **mix)
    found = reanalyser([stored[i] for i, _ in ASKED], [step for _, step in ASKED])
    for (i, step), policy in zip(ASKED, found, strict=True):
        np.testing.assert_array_equal(policy, alone(model, stored[i], step, weight))
    assert [len(policy) for policy in found] == [4, 2, 4, 4, 2]
    assert reanalyser.seconds["reanalyse"] > 0


def test_the_weights_are_those_of_now_and_the_prior_counts():
    model, other, (segment, _) = network(1), network(7), segments()
    reanalyser = make_reanalyser(model)
    before = reanalyser([segment] * 5, range(5))
    again = reanalyser([segment] * 5, range(5))
    np.testing.assert_array_equal(before, again)  # nothing is random
    model.load_state_dict(other.state_dict())
    after = reanalyser([segment] * 5, range(5))
    np.testing.assert_array_equal(after[2], alone(other, segment, 2, 0.5))
    assert not np.array_equal(before, after)
    without = make_reanalyser(other, llm_weight=0.0, llm_weight_end=0.0)([segment] * 5, range(5))
    differ = [t for t in range(5) if not np.array_equal(after[t], without[t])]
    assert differ
    assert set(differ) <= {1, 3}  # where the language model was asked


def test_actions_learned_meanwhile_do_no_harm():
    """The collector adds to the vocabulary in another thread, between two looks at it."""

    class Growing(ActionVocabulary):
        def vectors(self) -> np.ndarray:
            seen = super().vectors()
            self.add("zork", ["xyzzy"])
            return seen

    model, stored = network(1), segments()
    growing = Growing(encode, WIDTH)
    growing.load_state_dict(make_vocabulary(*stored).state_dict())
    reanalyser = replace(make_reanalyser(model), vocabulary=growing)
    np.testing.assert_array_equal(reanalyser([stored[0]], [1])[0], alone(model, stored[0], 1, 0.5))
    assert "xyzzy" in growing.state_dict()["texts"]


def test_contexts_reach_back_to_the_start_of_the_segment():
    (segment, _), vocabulary = segments(), make_vocabulary(*segments())
    context = contexts([segment] * 3, [0, 1, 4], 3, vocabulary)
    assert isinstance(context, Context)
    nothing = np.zeros(3)
    np.testing.assert_array_equal(context.length, [1, 2, 3])
    np.testing.assert_array_equal(
        context.vectors,
        [[nothing, nothing, [1, 0, 1]], [nothing, [1, 0, 1], [1, 1, 1]], [[1, 2, 1], [1, 3, 1], [1, 4, 1]]],
    )
    east, north, lamp, west = vocabulary.ids(ACTIONS)
    np.testing.assert_array_equal(context.actions, [[-1, -1], [-1, east], [lamp, west]])
    assert north not in context.actions
