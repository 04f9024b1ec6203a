import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from priorzero.rl.gae import bilevel_gae, gae
from priorzero.rl.token_advantages import AdvantageInputs

NAN = torch.nan
close = torch.testing.assert_close


def test_gae_skips_what_was_not_written():
    result = gae(
        AdvantageInputs(
            rewards=torch.tensor([[0.0, 0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.5, 0.0, -1.0]]),
            mask=torch.tensor([[True, True, False, True, False], [False, False, True, False, True]]),
            values=torch.tensor([[0.5, 0.2, 99.0, 0.4, NAN], [NAN, 7.0, 1.0, -50.0, 2.0]]),
        ),
        gamma=0.9,
        lam=0.5,
    )
    # row 0 from the end: 1 - 0.4; 0.9 0.4 - 0.2 + 0.45 0.6; 0.9 0.2 - 0.5 + 0.45 0.43
    # row 1: -1 - 2; 0.5 + 0.9 2 - 1 + 0.45 (-3)
    close(result.advantages, torch.tensor([[-0.1265, 0.43, 0.0, 0.6, 0.0], [0.0, 0.0, -0.05, 0.0, -3.0]]))
    close(result.returns, torch.tensor([[0.3735, 0.63, 0.0, 1.0, 0.0], [0.0, 0.0, 0.95, 0.0, -1.0]]))
    assert result.usable.tolist() == [True, True]


def test_gae_with_zero_rewards_and_without_tokens():
    mask = torch.tensor([[True, True], [False, False]])
    result = gae(AdvantageInputs(rewards=torch.zeros(2, 2), mask=mask, values=torch.zeros(2, 2)), gamma=1.0, lam=1.0)
    assert not result.advantages.any()
    assert not result.returns.any()
    assert result.usable.tolist() == [True, False]


def test_bilevel_gae_by_hand_with_a_turn_without_reward():
    inputs = AdvantageInputs(
        rewards=torch.tensor([[0.0, 0.0, 0.0, 0.0, 2.0]]),
        mask=torch.tensor([[True, True, False, True, True]]),
        values=torch.tensor([[0.1, 0.2, NAN, 0.3, 0.4]]),
        turn_ends=torch.tensor([[False, True, False, False, True]]),
    )
    result = bilevel_gae(inputs, gamma=0.9, lam=0.8, turn_gamma=0.5)
    # turns: A_2 = 2 - 0.4 = 1.6, A_1 = 0.5 0.4 - 0.2 + 0.4 1.6 = 0.64
    # tokens before the ends: 0.9 0.4 - 0.3 + 0.72 1.6 = 1.212 and 0.9 0.2 - 0.1 + 0.72 0.64 = 0.5408
    close(result.advantages, torch.tensor([[0.5408, 0.64, 0.0, 1.212, 1.6]]))
    close(result.returns, torch.tensor([[0.6408, 0.84, 0.0, 1.512, 2.0]]))


def test_bilevel_gae_where_nothing_is_paid():
    mask = torch.tensor([[True, False, True]])
    inputs = AdvantageInputs(rewards=torch.zeros(1, 3), mask=mask, values=torch.zeros(1, 3), turn_ends=mask)
    assert not bilevel_gae(inputs, gamma=1.0, lam=1.0, turn_gamma=1.0).advantages.any()


@pytest.mark.parametrize(
    ("ends", "message"),
    [([True, True, False], "must lie inside the mask"), ([True, False, False], "token 2 of sample 0 comes after")],
)
def test_bilevel_gae_checks_the_turn_ends(ends, message):
    inputs = AdvantageInputs(
        rewards=torch.zeros(1, 3),
        mask=torch.tensor([[True, False, True]]),
        values=torch.zeros(1, 3),
        turn_ends=torch.tensor([ends]),
    )
    with pytest.raises(ValueError, match=message):
        bilevel_gae(inputs, gamma=1.0, lam=1.0, turn_gamma=1.0)


def test_the_critic_is_asked_for():
    inputs = AdvantageInputs(rewards=torch.zeros(1, 1), mask=torch.ones(1, 1, dtype=torch.bool))
    with pytest.raises(ValueError, match="gae needs 'values'"):
        gae(inputs, gamma=1.0, lam=1.0)


@st.composite
def sequences(draw):
    length = draw(st.integers(1, 8))
    number = st.floats(-3, 3, width=32)
    mask = torch.tensor([draw(st.lists(st.booleans(), min_size=length, max_size=length))])
    rewards = torch.tensor([draw(st.lists(number, min_size=length, max_size=length))]).masked_fill(~mask, 0)
    values = torch.tensor([draw(st.lists(number, min_size=length, max_size=length))])
    return AdvantageInputs(rewards=rewards, mask=mask, values=values)


def compressed(x, mask):
    return x[mask][None]


@settings(max_examples=60)
@given(sequences(), st.floats(0, 1), st.floats(0, 1))
def test_gaps_change_nothing(inputs, gamma, lam):
    whole = gae(inputs, gamma=gamma, lam=lam)
    mask = inputs.mask
    dense = AdvantageInputs(
        rewards=compressed(inputs.rewards, mask), mask=compressed(mask, mask), values=compressed(inputs.values, mask)
    )
    alone = gae(dense, gamma=gamma, lam=lam)
    close(whole.advantages[mask][None], alone.advantages)
    close(whole.returns[mask][None], alone.returns)
    noisy = AdvantageInputs(rewards=inputs.rewards, mask=mask, values=inputs.values.masked_fill(~mask, 1e6))
    close(gae(noisy, gamma=gamma, lam=lam).advantages, whole.advantages)


@settings(max_examples=60)
@given(sequences(), st.floats(0, 1), st.floats(0, 1))
def test_bilevel_gae_is_gae_with_one_turn_and_with_turns_of_one_token(inputs, gamma, lam):
    last = inputs.mask & (inputs.mask.flip(-1).cumsum(-1).flip(-1) == 1)
    common = {"rewards": inputs.rewards, "mask": inputs.mask, "values": inputs.values}
    one_turn = bilevel_gae(AdvantageInputs(**common, turn_ends=last), gamma=gamma, lam=lam, turn_gamma=0.123)
    close(one_turn.advantages, gae(inputs, gamma=gamma, lam=lam).advantages)
    short = bilevel_gae(AdvantageInputs(**common, turn_ends=inputs.mask), gamma=0.123, lam=lam, turn_gamma=gamma)
    close(short.advantages, gae(inputs, gamma=gamma, lam=lam).advantages)


@settings(max_examples=30)
@given(sequences())
def test_with_both_constants_one_the_return_is_the_reward_to_go(inputs):
    togo = inputs.rewards.flip(-1).cumsum(-1).flip(-1).masked_fill(~inputs.mask, 0)
    close(gae(inputs, gamma=1.0, lam=1.0).returns, togo, atol=1e-5, rtol=1e-5)
