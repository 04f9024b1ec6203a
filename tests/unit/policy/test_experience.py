from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from samples import dialogue, plain_logprobs, scored, token_module
from scripted import perturb_given

from priorzero.policy.experience import ExperienceConfig, ExperienceMaker, NoExperienceError
from priorzero.rl.gae import bilevel_gae, gae
from priorzero.rl.group_advantages import dr_grpo, gigpo, grpo, reinforce_pp, remax
from priorzero.rl.token_advantages import AdvantageEstimator

TWO_TURNS = dialogue([5, 9, 11], [[20, 21, 2], [30, 2]], given=[[40, 41, 42]], rewards=[0.25, -0.5])
ONE_TURN = dialogue([5, 9, 11], [[22, 2]])
OTHER = dialogue([5, 8, 9, 10], [[33, 34, 2]], group="h")
OTHER_TOO = dialogue([5, 8, 9, 10], [[2]], group="h")
SAMPLES = [TWO_TURNS, ONE_TURN, OTHER, OTHER_TOO]
MASK = torch.tensor(
    [[1, 1, 1, 0, 0, 0, 1, 1], [1, 1, 0, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0]]
).bool()
GAE = partial(gae, gamma=1.0, lam=1.0)


@pytest.fixture(scope="module")
def plain():
    return token_module()


def make(module, estimate, samples, *, whiten=False, **settings):
    config = {"row_tokens": 64, "score_tokens": 1000, "reward_limit": None, "mask_given": True, **settings}
    estimator = AdvantageEstimator(estimate=estimate, whiten=whiten)
    return ExperienceMaker(module, estimator, ExperienceConfig(**config), pad_id=0).make(samples)


def shifted(module, by=0.05):
    """The module after an update: no longer the initial model."""
    torch.manual_seed(1)
    with torch.no_grad():
        for p in module.scorer.model.parameters():
            p.add_(by * torch.randn_like(p))
    return module


def test_old_log_probabilities_are_the_trainers(plain):
    found, metrics = make(plain, dr_grpo, scored(SAMPLES, [1, 0, 0, 1]))
    assert torch.equal(found.mask, MASK)
    assert not found.old_logprobs[~MASK].any()
    for n, sample in enumerate(SAMPLES):
        torch.testing.assert_close(
            found.old_logprobs[n, MASK[n]], torch.tensor(plain_logprobs(plain.scorer.model, sample))
        )
        expected = torch.from_numpy(sample.rollout_logprobs[sample.written])
        assert torch.equal(found.rollout_logprobs[n, MASK[n]], expected)
    assert found.ref_logprobs is found.old_values is found.returns is None
    assert found.prompts[0] == (5, 9, 11)
    assert found.answers[0] == (20, 21, 2, 40, 41, 42, 30, 2)
    assert found.groups() == [[0, 1], [2, 3]]
    assert metrics["rollout/response_tokens"] == 11 / 4
    assert "policy/kl" not in metrics


def test_advantages_of_a_group_by_hand(plain):
    # turn rewards of 0.25 - 0.5 count: the scores of the group are 1 - 0.25 = 0.75 and 0, their mean 0.375
    found, metrics = make(plain, dr_grpo, scored(SAMPLES, [1, 0, 0, 1]))
    torch.testing.assert_close(found.advantages[0], 0.375 * MASK[0])
    torch.testing.assert_close(found.advantages[1], -0.375 * MASK[1])
    torch.testing.assert_close(found.advantages[2:], torch.tensor([[-0.5], [0.5]]) * MASK[2:])
    assert metrics["policy/advantage_max"] == 0.5
    assert metrics["rollout/score_std"] == pytest.approx(np.std([0.75, 0, 0, 1]))
    assert metrics["rollout/groups_without_spread"] == 0
    assert (metrics["rollout/trained"], metrics["rollout/masked_samples"]) == (1.0, 0.0)


def test_rewards_lie_on_the_last_token_of_their_turns(plain):
    # rewards to go: 0.25 at the end of turn 1, -0.5 + 1 at the end of turn 2
    found, _ = make(plain, partial(reinforce_pp, gamma=1.0), scored([TWO_TURNS], [1]))
    torch.testing.assert_close(found.advantages[0], torch.tensor([0.75, 0.75, 0.75, 0, 0, 0, 0.5, 0.5]))
    # a token is a step of the discount, what the tool wrote is none
    found, _ = make(plain, partial(reinforce_pp, gamma=0.5), scored([TWO_TURNS], [1]))
    expected = [0.25 / 4 + 0.5 / 16, 0.25 / 2 + 0.5 / 8, 0.25 + 0.5 / 4, 0, 0, 0, 0.5 / 2, 0.5]
    torch.testing.assert_close(found.advantages[0], torch.tensor(expected))


def test_scores_are_cut_and_turn_rewards_are_not(plain):
    found, _ = make(plain, partial(reinforce_pp, gamma=1.0), scored([TWO_TURNS], [100]), reward_limit=2.0)
    torch.testing.assert_close(found.advantages[0, :3], torch.full((3,), 0.25 - 0.5 + 2.0))


def test_a_critic_gets_targets():
    module = token_module(critic="shared")
    torch.nn.init.constant_(module.scorer.critic.output.bias, 0.5)  # says 0.5 of every state
    found, _ = make(module, GAE, scored([TWO_TURNS], [1]))
    mask = MASK[0]
    torch.testing.assert_close(found.old_values[0], 0.5 * mask)
    # with lambda 1 the targets are the rewards to go, and the advantages what they are above the value
    torch.testing.assert_close(found.returns[0], torch.tensor([0.75, 0.75, 0.75, 0, 0, 0, 0.5, 0.5]))
    torch.testing.assert_close(found.advantages[0], (found.returns[0] - 0.5) * mask)
    # one step: r + V' - V; across the gap V' is that of the next written token
    found, _ = make(module, partial(gae, gamma=1.0, lam=0.0), scored([TWO_TURNS], [1]))
    torch.testing.assert_close(found.advantages[0], torch.tensor([0, 0, 0.25, 0, 0, 0, 0.0, 0.0]))
    # turns with a discount of 0.8: D_2 = 0.5 - 0.5, D_1 = 0.25 + 0.8 * 0.5 - 0.5
    found, _ = make(module, partial(bilevel_gae, gamma=1.0, lam=1.0, turn_gamma=0.8), scored([TWO_TURNS], [1]))
    torch.testing.assert_close(found.advantages[0, [2, 7]], torch.tensor([0.15, 0.0]))
    assert make(module, dr_grpo, scored(SAMPLES, [1, 0, 0, 1]))[0].returns is None


def test_whitened_over_what_was_written(plain):
    found, _ = make(plain, partial(reinforce_pp, gamma=1.0), scored(SAMPLES, [1, 0, 0, 1]), whiten=True)
    kept = found.advantages[MASK]
    assert float(kept.mean()) == pytest.approx(0, abs=1e-5)
    assert float(kept.std()) == pytest.approx(1, abs=1e-4)
    assert not found.advantages[~MASK].any()


@pytest.mark.parametrize("place", ["loss", "reward"])
def test_the_kl_to_the_initial_model(place):
    module = token_module(kl_place=place, kl_weight=0.1)
    before = [plain_logprobs(module.scorer.model, sample) for sample in SAMPLES]
    shifted(module)
    now = [plain_logprobs(module.scorer.model, sample) for sample in SAMPLES]
    found, metrics = make(module, partial(reinforce_pp, gamma=1.0), scored(SAMPLES, [1, 0, 0, 1]))
    for n in range(4):
        torch.testing.assert_close(found.ref_logprobs[n, MASK[n]], torch.tensor(before[n]))
    kl = [np.array(a) - np.array(b) for a, b in zip(now, before, strict=True)]
    assert metrics["policy/kl"] == pytest.approx(np.mean([x.mean() for x in kl]), abs=1e-4)
    penalty = 0.1 if place == "reward" else 0.0
    expected = [-penalty * kl[2][t:].sum() for t in range(3)]
    torch.testing.assert_close(found.advantages[2, :3], torch.tensor(expected, dtype=torch.float32), atol=1e-4, rtol=0)


def test_the_weight_of_the_kl_is_told_of_every_batch():
    module = shifted(token_module(kl_place="loss", kl_target=1e-6, kl_horizon=100))
    make(module, dr_grpo, scored(SAMPLES, [1, 0, 0, 1]))
    assert abs(module.kl.coefficient - 0.1) == pytest.approx(0.1 * 0.2 * 4 / 100)  # 4 samples, 20 % at most


@pytest.mark.parametrize("place", ["loss", "reward"])
def test_what_the_rollout_says_of_given_tokens_is_not_read(place):
    """Noise on every token that the model did not write: experience and metrics are the same to the bit."""
    found = []
    for seed in (None, 0, 1):
        module = shifted(token_module(kl_place=place, critic="shared"))
        torch.nn.init.constant_(module.scorer.critic.output.weight, 0.01)
        samples = SAMPLES
        if seed is not None:
            rng = np.random.default_rng(seed)
            noisy = [perturb_given(d.rollout_logprobs, d.written, rng) for d in samples]
            samples = [replace(d, rollout_logprobs=x) for d, x in zip(samples, noisy, strict=True)]
        found.append(make(module, partial(gae, gamma=0.9, lam=0.9), scored(samples, [1, 0, 0, 1]), whiten=True))
    (first, first_metrics), *others = found
    fields = ("mask", "rollout_logprobs", "old_logprobs", "advantages", "ref_logprobs", "old_values", "returns")
    for other, metrics in others:
        assert all(torch.equal(getattr(first, name), getattr(other, name)) for name in fields)
        assert metrics == first_metrics
    assert all(not getattr(first, name)[~MASK].any() for name in fields)


def test_given_tokens_are_trained_on_where_that_is_asked_for(plain):
    found, _ = make(plain, dr_grpo, scored([TWO_TURNS, ONE_TURN], [1, 0]), mask_given=False)
    assert found.mask.sum(-1).tolist() == [8, 2]
    torch.testing.assert_close(found.advantages[0], torch.full((8,), 0.375))
    assert torch.equal(found.rollout_logprobs[0, 3:6], found.old_logprobs[0, 3:6]), "nothing to correct"


def test_the_split_into_forward_passes_changes_nothing(plain):
    whole = make(plain, dr_grpo, scored(SAMPLES, [1, 0, 0, 1]))[0]
    parts = make(plain, dr_grpo, scored(SAMPLES, [1, 0, 0, 1]), score_tokens=1, row_tokens=1)[0]
    torch.testing.assert_close(whole.old_logprobs, parts.old_logprobs)
    assert torch.equal(whole.advantages, parts.advantages)


def test_scoring_leaves_the_mode_of_the_module_as_it_is(plain):
    for training in (True, False):
        plain.train(training)
        make(plain, dr_grpo, scored(SAMPLES, [1, 0, 0, 1]))
        assert plain.training == training


# ------------------------------------------------------------------------------------------------- what is masked


def test_failed_and_unscored_samples_take_part_in_nothing(plain):
    failed = replace(ONE_TURN, valid=False, finish="fault")
    samples = [TWO_TURNS, failed, ONE_TURN, OTHER, OTHER_TOO, dialogue([5, 8, 9, 10], [[44, 2]], group="h")]
    given = scored(samples, [1, 50, 0, 1, 0, -50], scored=np.array([1, 1, 1, 1, 1, 0], bool))
    found, metrics = make(plain, dr_grpo, given)
    assert found.mask.any(-1).tolist() == [True, False, True, True, True, False]
    torch.testing.assert_close(found.advantages[:, 0], torch.tensor([0.375, 0, -0.375, 0.5, -0.5, 0]))
    assert metrics["rollout/masked_samples"] == 2
    assert metrics["rollout/trained"] == pytest.approx(4 / 6)
    assert metrics["rollout/score_std"] == pytest.approx(np.std([0.75, 0, 1, 0]))
    assert found.size(range(6)) == (11, 4)


def test_masked_samples_give_a_group_no_spread(plain):
    failed = replace(ONE_TURN, valid=False)
    _, metrics = make(plain, dr_grpo, scored([ONE_TURN, ONE_TURN, failed, OTHER, OTHER_TOO], [1, 1, 0, 1, 0]))
    assert metrics["rollout/groups_without_spread"] == 0.5


def test_a_group_of_which_one_is_left_is_masked_and_counted(plain):
    failed = replace(ONE_TURN, valid=False)
    found, metrics = make(
        plain, partial(grpo, epsilon=1e-6), scored([TWO_TURNS, failed, OTHER, OTHER_TOO], [1, 0, 1, 0])
    )
    assert found.mask.any(-1).tolist() == [False, False, True, True]
    assert (metrics["rollout/not_comparable"], metrics["rollout/masked_samples"]) == (1, 1)
    assert not found.advantages[:2].any()


def test_nothing_to_train_on_is_said(plain):
    failed = replace(ONE_TURN, valid=False)
    with pytest.raises(NoExperienceError, match=r"none of 2 samples .*1 failed, 1 could not be scored.*generations"):
        make(plain, dr_grpo, scored([failed, ONE_TURN], [0, 0], scored=np.array([True, False])))
    with pytest.raises(NoExperienceError, match=r"several samples of a prompt, raise rollout\.samples"):
        make(plain, dr_grpo, scored([ONE_TURN, OTHER], [1, 0]))
    with pytest.raises(ValueError, match="no finite score"):
        make(plain, dr_grpo, scored([ONE_TURN, ONE_TURN], [1, np.nan]))
    with pytest.raises(ValueError, match="sample 1 has no group_id"):
        make(plain, dr_grpo, scored([ONE_TURN, dialogue([5], [[2]], group="")], [1, 0]))


# -------------------------------------------------------------------------------------------- what estimators ask for


def test_greedy_answers_as_baseline(plain):
    found, _ = make(plain, remax, scored([TWO_TURNS, ONE_TURN], [1, 0], baseline=np.array([0.5, 0.25])))
    torch.testing.assert_close(found.advantages[0], torch.tensor([0.25, 0.25, 0.25, 0, 0, 0, 0.0, 0.0]))
    torch.testing.assert_close(found.advantages[1, :2], torch.tensor([-0.25, -0.25]))
    with pytest.raises(ValueError, match="the estimator remax needs 'baseline'"):
        make(plain, remax, scored([ONE_TURN], [1]))


def test_steps_of_episodes(plain):
    steps = [
        dialogue([5, 9], [[20, 2]], state_id="start", extra={"turn": 0}),
        dialogue([5, 9, 20, 40], [[21, 2]], state_id="a", extra={"turn": 1}),
        dialogue([5, 9], [[22, 2]], state_id="start", extra={"turn": 0}),
        dialogue([5, 9, 22, 41], [[23, 2]], state_id="b", extra={"turn": 1}),
    ]
    given = scored(steps, [0, 1, 0, 0], episode=np.array([0, 0, 1, 1]))
    found, _ = make(plain, partial(gigpo, gamma=0.5, step_weight=2.0, scale=False, over_steps=False), given)
    # episodes: 1 and 0 around 0.5; steps from the start: 0.5 and 0 around 0.25; "a" and "b" came up once
    torch.testing.assert_close(found.advantages[:, 0], torch.tensor([0.5 + 2 * 0.25, 0.5, -0.5 - 2 * 0.25, -0.5]))
    with pytest.raises(ValueError, match="the estimator gigpo needs 'episode'"):
        make(plain, partial(gigpo, gamma=0.5, step_weight=1.0, scale=False, over_steps=False), scored(steps, [0] * 4))


# ------------------------------------------------------------------------------------------------------ micro-batches


def test_a_micro_batch_is_cut_to_its_longest_answer():
    module = token_module(kl_place="loss", critic="shared")
    found, _ = make(module, GAE, scored(SAMPLES, [1, 0, 0, 1]))
    assert found.size([0, 1]) == (7, 2)
    assert found.size([2, 3]) == (4, 2)
    batch = found.batch([3, 2], (11, 4), 0, 64)
    assert batch.mask.tolist() == [[True, False, False], [True, True, True]]
    assert (batch.tokens, batch.sequences) == (11, 4)
    for name in ("advantages", "old_logprobs", "rollout_logprobs", "ref_logprobs", "old_values", "returns"):
        assert torch.equal(getattr(batch, name), getattr(found, name)[[3, 2], :3])
    with torch.no_grad():
        logprobs = module.scorer(batch, entropy=False).logprobs
    torch.testing.assert_close(logprobs, batch.old_logprobs)
