from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from priorzero.rl import group_advantages as ga
from priorzero.rl.token_advantages import AdvantageInputs

close = torch.testing.assert_close
ROOT = 0.5**0.5

# scores 1, 3 | 0, 0, 3 | 5 (alone) | 8 beside a sample without tokens; masks have gaps and different lengths
MASK = torch.tensor(
    [[1, 1, 0], [0, 0, 1], [1, 0, 1], [1, 1, 1], [0, 1, 0], [1, 1, 1], [1, 0, 0], [0, 0, 0]], dtype=torch.bool
)
REWARDS = torch.tensor(
    [
        [0.5, 0.5, 0.0],
        [0.0, 0.0, 3.0],
        [1.0, 0.0, -1.0],
        [0.0, 0.0, 0.0],
        [0.0, 3.0, 0.0],
        [0.0, 0.0, 5.0],
        [8.0, 0.0, 0.0],
        [9.0, 9.0, 9.0],
    ]
)
GROUP = torch.tensor([10, 10, -3, -3, -3, 2, 0, 0])
INPUTS = AdvantageInputs(rewards=REWARDS, mask=MASK, group=GROUP)
USABLE = [True] * 5 + [False] * 3  # groups of one are not


def per_sample(*advantages):
    return torch.tensor(advantages)[:, None] * MASK


@pytest.mark.parametrize(
    ("estimator", "wanted"),
    [
        (partial(ga.grpo, epsilon=1e-6), (-ROOT, ROOT, -(3**-0.5), -(3**-0.5), 2 * 3**-0.5, 0.0, 0.0, 0.0)),
        (ga.dr_grpo, (-1.0, 1.0, -1.0, -1.0, 2.0, 0.0, 0.0, 0.0)),
        (ga.reinforce_pp_baseline, (-1.0, 1.0, -1.0, -1.0, 2.0, 0.0, 0.0, 0.0)),
        (ga.rloo, (-2.0, 2.0, -1.5, -1.5, 3.0, 0.0, 0.0, 0.0)),
    ],
)
def test_group_estimators_by_hand(estimator, wanted):
    result = estimator(INPUTS)
    close(result.advantages, per_sample(*wanted))
    assert result.usable.tolist() == USABLE
    assert result.returns is None


def test_grpo_epsilon():
    result = ga.grpo(INPUTS, epsilon=2**0.5)
    close(result.advantages[0, 0], torch.tensor(-1 / (2 * 2**0.5)))


@pytest.mark.parametrize("estimator", [partial(ga.grpo, epsilon=1e-6), ga.dr_grpo, ga.rloo, ga.reinforce_pp_baseline])
@pytest.mark.parametrize("score", [0.0, 0.1])
def test_equal_scores_give_no_advantage(estimator, score):
    mask = torch.ones(3, 1, dtype=torch.bool)
    inputs = AdvantageInputs(rewards=torch.full((3, 1), score), mask=mask, group=torch.zeros(3, dtype=torch.int64))
    close(estimator(inputs).advantages, torch.zeros(3, 1), atol=1e-9, rtol=0)


def test_rewards_to_go_skip_gaps():
    inputs = AdvantageInputs(
        rewards=torch.tensor([[1.0, 0.0, 2.0, 4.0], [0.0, 0.0, 0.0, 0.0]]),
        mask=torch.tensor([[True, False, True, True], [True, True, False, False]]),
        baseline=torch.tensor([3.0, 0.5]),
    )
    togo = ga.reinforce_pp(inputs, gamma=0.5)
    close(togo.advantages, torch.tensor([[3.0, 0.0, 4.0, 4.0], [0.0, 0.0, 0.0, 0.0]]))  # 1 + 0.5 (2 + 0.5 4)
    over_greedy = ga.remax(inputs)
    close(over_greedy.advantages, torch.tensor([[4.0, 0.0, 3.0, 1.0], [-0.5, -0.5, 0.0, 0.0]]))
    assert over_greedy.usable.all()


def episodes(rows):
    """One sample a step, with two tokens each: rows of (reward, episode, step, state)."""
    reward, episode, step, state = (torch.tensor(column) for column in zip(*rows, strict=True))
    rewards = torch.zeros(len(rows), 2)
    rewards[:, 1] = reward
    count = len(rows)
    return AdvantageInputs(
        rewards=rewards,
        mask=torch.ones(count, 2, dtype=torch.bool),
        group=torch.zeros(count, dtype=torch.int64),
        episode=episode,
        step=step,
        state=state,
    )


# two episodes of one task, A = 0, B = 1, C = 2; rows in no order
STEPS = [(1.0, 0, 1, 1), (0.0, 0, 0, 0), (0.0, 1, 0, 0), (0.0, 1, 1, 2), (0.0, 1, 2, 1)]


def test_gigpo_by_hand():
    # totals 1, 1, 0, 0, 0 with mean 0.4; returns with gamma 0.5: 1, 0.5, 0, 0, 0
    # state A: 0.5 and 0, state B: 1 and 0, state C alone
    result = ga.gigpo(episodes(STEPS), gamma=0.5, step_weight=2.0, scale=False, over_steps=True)
    close(result.advantages[:, 0], torch.tensor([0.6 + 1.0, 0.6 + 0.5, -0.4 - 0.5, -0.4, -0.4 - 1.0]))
    close(result.advantages[:, 0], result.advantages[:, 1])
    assert result.usable.all()


def test_gigpo_over_episodes_and_scaled():
    centred = ga.gigpo(episodes(STEPS), gamma=0.5, step_weight=0.0, scale=False, over_steps=False)
    close(centred.advantages[:, 0], torch.tensor([0.5, 0.5, -0.5, -0.5, -0.5]))
    scaled = ga.gigpo(episodes(STEPS), gamma=0.5, step_weight=1.0, scale=True, over_steps=False)
    close(scaled.advantages[:, 0], torch.tensor([2 * ROOT, 2 * ROOT, -2 * ROOT, -ROOT, -2 * ROOT]), atol=1e-5, rtol=0)


def test_gigpo_discounts_over_missing_steps():
    rows = [(8.0, 0, 3, 1), (0.0, 0, 0, 0), (0.0, 1, 0, 0)]  # steps 1 and 2 were not sampled
    result = ga.gigpo(episodes(rows), gamma=0.5, step_weight=1.0, scale=False, over_steps=False)
    close(result.advantages[:, 0], torch.tensor([4.0, 4.0 + 0.5, -4.0 - 0.5]))  # 8 0.5^3 = 1 against 0


def test_gigpo_of_one_episode_uses_states_that_came_up_twice():
    rows = [(0.0, 0, 0, 0), (2.0, 0, 1, 0), (0.0, 0, 2, 5)]
    result = ga.gigpo(episodes(rows), gamma=1.0, step_weight=1.0, scale=False, over_steps=True)
    close(result.advantages[:, 0], torch.tensor([0.0, 0.0, 0.0]))  # both returns are 2
    assert result.usable.tolist() == [True, True, False]


def test_gigpo_keeps_groups_apart():
    inputs = episodes([*STEPS, *STEPS])
    inputs = AdvantageInputs(
        **{name: getattr(inputs, name) for name in ("rewards", "mask", "episode", "step", "state")},
        group=torch.tensor([0] * 5 + [1] * 5),  # episodes are numbered within a group
    )
    result = ga.gigpo(inputs, gamma=0.5, step_weight=2.0, scale=False, over_steps=True)
    close(result.advantages[:5], result.advantages[5:])
    close(result.advantages[0, 0], torch.tensor(1.6))


def test_gigpo_refuses_a_step_twice():
    with pytest.raises(ValueError, match="two samples are step 0"):
        ga.gigpo(episodes([(0.0, 0, 0, 0), (0.0, 0, 0, 1)]), gamma=1.0, step_weight=1.0, scale=False, over_steps=True)


@pytest.mark.parametrize(
    ("estimator", "missing"),
    [
        (partial(ga.grpo, epsilon=1e-6), "group"),
        (ga.rloo, "group"),
        (ga.remax, "baseline"),
        (partial(ga.gigpo, gamma=1.0, step_weight=1.0, scale=False, over_steps=True), "group"),
    ],
)
def test_missing_inputs(estimator, missing):
    inputs = AdvantageInputs(rewards=torch.zeros(1, 1), mask=torch.ones(1, 1, dtype=torch.bool))
    with pytest.raises(ValueError, match=f"needs '{missing}'"):
        estimator(inputs)


ESTIMATORS = [
    partial(ga.grpo, epsilon=1e-6),
    ga.dr_grpo,
    ga.rloo,
    ga.reinforce_pp_baseline,
    partial(ga.reinforce_pp, gamma=0.9),
    ga.remax,
    partial(ga.gigpo, gamma=0.9, step_weight=1.0, scale=True, over_steps=True),
]


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.sampled_from(ESTIMATORS))
def test_samples_without_tokens_and_the_order_change_nothing(seed, estimator):
    random = torch.Generator().manual_seed(seed)
    count, length = 6, 4
    mask = torch.rand(count, length, generator=random) < 0.6
    mask[-1] = False

    def draw(high):
        return torch.randint(0, high, (count,), generator=random)

    fields = {
        "rewards": torch.randn(count, length, generator=random) * mask,
        "mask": mask,
        "group": draw(2),
        "baseline": torch.randn(count, generator=random),
        "episode": draw(3),
        "step": torch.arange(count),
        "state": draw(2),
    }
    whole = estimator(AdvantageInputs(**fields)).advantages
    assert not whole[~mask].any()
    kept = mask.any(-1)
    close(estimator(AdvantageInputs(**{k: v[kept] for k, v in fields.items()})).advantages, whole[kept])
    order = torch.randperm(count, generator=random)
    close(estimator(AdvantageInputs(**{k: v[order] for k, v in fields.items()})).advantages, whole[order])
