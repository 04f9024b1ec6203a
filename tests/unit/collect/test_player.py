import numpy as np
import pytest
from toy_games import CorridorSpec

from priorzero.collect.episode import Episode
from priorzero.collect.player import POLICIES, RootPriorConfig
from priorzero.search import GumbelConfig

GUMBEL = GumbelConfig(simulations=8, max_considered=4, c_visit=50, c_scale=0.1, gamma=0.9, minmax_floor=0.01)


@pytest.fixture
def episodes(envs, make_player) -> list[Episode]:
    """Both are in the middle of a corridor: three valid actions."""
    specs = [CorridorSpec(3), CorridorSpec(4)]
    steps = envs.reset([0, 1], specs, [1, 1])
    vectors = make_player().encode([step.observation for step in steps])
    return [Episode(spec, 1, 0, *pair, 2) for spec, *pair in zip(specs, steps, vectors, strict=True)]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("explore", [False, True])
def test_decisions_of_every_policy(policy, explore, make_player, episodes):
    for decision, episode in zip(make_player().decide(policy, episodes, explore=explore), episodes, strict=True):
        n = len(episode.step.valid_actions)
        assert n == 3
        assert 0 <= decision.index < n
        assert decision.visit_probs.shape == (n,)
        np.testing.assert_allclose(decision.visit_probs.sum(), 1, rtol=1e-5)
        assert (decision.prior_logprobs is not None) == policy.endswith("prior")
        assert (decision.visits is not None) == policy.startswith("wm")
        if decision.prior_logprobs is not None:
            np.testing.assert_allclose(np.exp(decision.prior_logprobs).sum(), 1, rtol=1e-5)
        if decision.visits is not None:
            assert decision.visits.sum() == 8
            np.testing.assert_allclose(decision.visit_probs, decision.visits / 8)


@pytest.mark.parametrize("policy", ["prior", "wm", "wm_prior"])
def test_without_exploration_nothing_is_drawn(policy, make_player, episodes):
    choices = [[d.index for d in make_player(seed).decide(policy, episodes, explore=False)] for seed in range(4)]
    assert choices == [choices[0]] * 4


@pytest.mark.parametrize("policy", POLICIES)
def test_exploration_follows_the_random_numbers(policy, make_player, episodes):
    def choices(seed: int) -> list[int]:
        player = make_player(seed)
        return [d.index for _ in range(10) for d in player.decide(policy, episodes, explore=True)]

    assert choices(0) == choices(0)
    assert choices(0) != choices(1)


def test_the_prior_alone_plays_its_best_action_or_draws_from_it(make_player, episodes):
    player = make_player()
    (best, _) = player.decide("prior", episodes, explore=False)
    assert best.index == best.prior_logprobs.argmax()
    drawn = [player.decide("prior", episodes[:1], explore=True)[0].index for _ in range(400)]
    share = np.bincount(drawn, minlength=3) / 400
    np.testing.assert_allclose(share, np.exp(best.prior_logprobs), atol=0.1)  # 4 standard deviations


def test_gumbel_search_gives_a_policy_to_learn(make_player, episodes):
    for decision in make_player(search=GUMBEL).decide("wm_prior", episodes, explore=True):
        np.testing.assert_allclose(decision.visit_probs.sum(), 1, rtol=1e-5)
        assert decision.visit_probs.min() > 0
        assert decision.visits.sum() == 8


def root_prior(**changes) -> RootPriorConfig:
    settings = {"llm_weight": 0.4, "llm_weight_end": 0.4, "anneal_env_steps": 0, "llm_weight_unsure": None}
    settings["llm_from_env_step"] = 0
    return RootPriorConfig(**(settings | changes))


WM, LLM = np.array([[0.5, 0.5, 0.0]]), [np.log(np.array([0.9, 0.1]))]
LEGAL = np.array([[True, True, False]])


@pytest.mark.parametrize(
    ("changes", "env_steps", "weight"),
    [
        ({}, 0, 0.4),
        ({"llm_weight": 0.0}, 0, 0.0),
        ({"llm_weight": 1.0}, 0, 1.0),
        ({"llm_weight_end": 0.0, "anneal_env_steps": 100}, 0, 0.4),
        ({"llm_weight_end": 0.0, "anneal_env_steps": 100}, 25, 0.3),
        ({"llm_weight_end": 0.0, "anneal_env_steps": 100}, 500, 0.0),
    ],
)
def test_the_weight_of_the_language_model(changes, env_steps, weight, make_player):
    player = make_player(root_prior=root_prior(**changes))
    player.env_steps = env_steps
    mixed = player._mix(WM, LLM, LEGAL)
    np.testing.assert_allclose(mixed[0], [0.5 + 0.4 * weight, 0.5 - 0.4 * weight, 0], atol=1e-6)


def test_an_early_language_model_is_not_asked_in_collection(make_player, episodes):
    player = make_player(root_prior=root_prior(llm_from_env_step=10))
    assert [d.prior_logprobs for d in player.decide("wm_prior", episodes, explore=True)] == [None] * len(episodes)
    assert all(d.prior_logprobs is not None for d in player.decide("wm_prior", episodes, explore=False))
    player.env_steps = 10
    assert all(d.prior_logprobs is not None for d in player.decide("wm_prior", episodes, explore=True))


def test_an_unsure_language_model_weighs_less(make_player):
    player = make_player(root_prior=root_prior(llm_weight=1.0, llm_weight_end=1.0, llm_weight_unsure=0.0))
    unsure, sure = [np.log(np.array([0.5, 0.5]))], [np.log(np.array([1 - 1e-9, 1e-9]))]
    wm = np.array([[0.2, 0.8, 0.0]])
    np.testing.assert_allclose(player._mix(wm, unsure, LEGAL)[0], wm[0], atol=1e-5)
    np.testing.assert_allclose(player._mix(wm, sure, LEGAL)[0], [1, 0, 0], atol=1e-5)


def test_contexts_hold_the_last_steps(envs, make_player, episodes):
    player, episode = make_player(), episodes[1]
    seen = [episode.vector]
    for action in ("wait", "wait", "go east"):
        (decision,) = player.decide("random", [episode], explore=True)
        decision = type(decision)(episode.step.valid_actions.index(action), *[decision.visit_probs, 0.0])
        (step,) = envs.step([1], [action])
        (vector,) = player.encode([step.observation])
        episode.advance(decision, int(player.vocabulary.add(step.game, [action])[0]), step, vector)
        seen.append(vector)
    context = player._contexts([episodes[0], episode], 3)
    np.testing.assert_array_equal(context.length, [1, 3])
    np.testing.assert_array_equal(context.vectors[1], seen[-3:])
    np.testing.assert_array_equal(context.vectors[0], [0 * seen[0], 0 * seen[0], episodes[0].vector])
    np.testing.assert_array_equal(context.actions, [[-1, -1], player.vocabulary.ids(["wait", "go east"])])


def test_new_actions_of_all_games_are_encoded_together(make_player, episodes, monkeypatch):
    player, asked = make_player(), []
    encode = player.encoder.encode
    monkeypatch.setattr(player.encoder, "encode", lambda texts: asked.append(list(texts)) or encode(texts))
    for _ in range(2):
        player._actions(episodes)
    assert asked == [[*episodes[0].step.valid_actions, *episodes[1].step.valid_actions]]


def test_what_is_missing_is_said(make_player, episodes):
    with pytest.raises(ValueError, match="unknown policy 'mcts': use one of random, prior, wm, wm_prior"):
        make_player().decide("mcts", episodes, explore=False)
    with pytest.raises(ValueError, match="'wm' searches with a world model, and this run has none"):
        make_player(planner=None).decide("wm", episodes, explore=False)
    for policy in ("prior", "wm_prior"):
        with pytest.raises(ValueError, match=f"'{policy}' asks a language model, and this run has none"):
            make_player(prior=None).decide(policy, episodes, explore=False)


def test_a_copy_has_its_own_random_numbers_and_clocks(make_player):
    player = make_player()
    other = player.with_rng(np.random.default_rng(5))
    player.seconds["env"] = 1.0
    assert other.seconds["env"] == 0
    assert other.rng is not player.rng
    assert other.vocabulary is player.vocabulary
