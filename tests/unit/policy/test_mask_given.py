"""Tokens that the model did not write take part in no loss, and in all of it where the ablation asks for that."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from small_llm import small_llm

from priorzero.policy.experience import Experience, ExperienceConfig, ExperienceMaker, ScoredSamples
from priorzero.policy.language_module import PolicyOptim
from priorzero.policy.token_module import TokenModule, TokenObjective
from priorzero.rl.group_advantages import grpo
from priorzero.rl.token_advantages import AdvantageEstimator
from priorzero.rl.token_loss import ppo
from priorzero.types import Dialogue, Message, PromptRow

ROW = PromptRow((Message("user", "where?"),), answer="attic", data_source="qa", group_id="0")
PROMPT, TURN, GIVEN, ANSWER = (5, 6, 7), (8, 9), (10, 11, 12), (13, 14)
WRITTEN = [False] * 3 + [True] * 2 + [False] * 3 + [True] * 2


def dialogue(valid: bool = True) -> Dialogue:
    return Dialogue(
        row=ROW,
        tokens=PROMPT + TURN + GIVEN + ANSWER,
        written=np.array(WRITTEN),
        rollout_logprobs=np.where(WRITTEN, -1.5, 0.0).astype(np.float32),
        turn_ends=(4, 9),
        turn_rewards=(0.0, 0.0),
        text="",
        finish="stop",
        valid=valid,
    )


@pytest.fixture(scope="module")
def module() -> TokenModule:
    model = small_llm()
    objective = TokenObjective(
        policy_loss=partial(ppo, clip_low=0.2, clip_high=0.2, dual_clip=None),
        aggregation="token-mean",
        aggregation_norm=None,
        rollout_cap=2.0,
        entropy_weight=0.0,
        kl_place="none",
        kl_weight=0.0,
        kl_kind="k3",
        kl_target=None,
        kl_horizon=1000,
        critic="none",
        critic_lr=1e-4,
        value_weight=0.5,
        value_clip=None,
    )
    optim = PolicyOptim(
        lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0, warmup_updates=1, total_updates=10, min_lr_ratio=0.1
    )
    return TokenModule(model, None, objective=objective, optim=optim, temperature=1.0)


def made(module: TokenModule, mask_given: bool) -> Experience:
    config = ExperienceConfig(row_tokens=64, score_tokens=1024, reward_limit=None, mask_given=mask_given)
    estimator = AdvantageEstimator(estimate=partial(grpo, epsilon=1e-6), whiten=False)
    samples = ScoredSamples(
        dialogues=[dialogue(), dialogue(), dialogue(valid=False)],
        scores=np.array([1.0, 0.0, 0.0]),
        scored=np.array([True, True, True]),
    )
    return ExperienceMaker(module, estimator, config, pad_id=0).make(samples)[0]


def test_what_a_tool_said_is_masked(module: TokenModule):
    experience = made(module, mask_given=True)
    assert experience.mask.tolist() == [WRITTEN[3:], WRITTEN[3:], [False] * 7]
    assert (experience.advantages[0] != 0).tolist() == WRITTEN[3:]


def test_or_it_counts_as_written_by_the_policy_itself(module: TokenModule):
    masked, experience = made(module, mask_given=True), made(module, mask_given=False)
    given = ~torch.tensor(WRITTEN[3:])
    assert experience.mask.tolist() == [[True] * 7, [True] * 7, [False] * 7]
    assert torch.equal(experience.rollout_logprobs[0, given], experience.old_logprobs[0, given])
    assert (experience.old_logprobs[0, given] < 0).all()
    assert torch.equal(experience.rollout_logprobs[:, ~given], masked.rollout_logprobs[:, ~given])
    assert torch.allclose(experience.advantages[0], masked.advantages[0, 0].expand(7))
