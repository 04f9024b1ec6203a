"""Dialogues with invented tokens, and a module around the random language model: what tests of its training share."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from small_llm import small_llm

from priorzero.policy.experience import ScoredSamples
from priorzero.policy.language_module import PolicyOptim
from priorzero.policy.load import causal_lm
from priorzero.policy.token_module import TokenModule, TokenObjective
from priorzero.rl.token_loss import ppo
from priorzero.types import Dialogue, Message, PromptRow

OBJECTIVE = {
    "policy_loss": partial(ppo, clip_low=0.2, clip_high=0.28, dual_clip=None),
    "aggregation": "token-mean",
    "aggregation_norm": None,
    "rollout_cap": None,
    "entropy_weight": 0.0,
    "kl_place": "none",
    "kl_weight": 0.1,
    "kl_kind": "k3",
    "kl_target": None,
    "kl_horizon": 100,
    "critic": "none",
    "critic_lr": 0.5,
    "value_weight": 0.5,
    "value_clip": None,
}
OPTIM = {
    "lr": 1e-2,
    "betas": (0.9, 0.95),
    "weight_decay": 0.0,
    "warmup_updates": 0,
    "total_updates": 1000,
    "min_lr_ratio": 1.0,
}
TEMPERATURE = 0.7


def token_module(lora=None, optim=(), **objective) -> TokenModule:
    critic = small_llm() if objective.get("critic") == "own" else None
    return TokenModule(
        small_llm(lora=lora),
        critic,
        objective=TokenObjective(**{**OBJECTIVE, **objective}),
        optim=PolicyOptim(**{**OPTIM, **dict(optim)}),
        temperature=TEMPERATURE,
    )


def dialogue(prompt, turns, *, given=(), rewards=None, group="g", valid=True, **row) -> Dialogue:
    """Turns of the model with ``given`` tokens between them; the rollout's log-probabilities are -1, -2, ..."""
    tokens, written, ends = list(prompt), [False] * len(prompt), []
    for number, turn in enumerate(turns):
        tokens += turn
        written += [True] * len(turn)
        ends.append(len(tokens) - 1)
        if number < len(given):
            tokens += given[number]
            written += [False] * len(given[number])
    logprobs = np.where(written, -np.cumsum(written), 0.0).astype(np.float32)
    return Dialogue(
        row=PromptRow((Message("user", "?"),), group_id=group, **row),
        tokens=tuple(tokens),
        written=np.array(written),
        rollout_logprobs=logprobs,
        turn_ends=tuple(ends),
        turn_rewards=tuple(rewards or [0.0] * len(turns)),
        text="",
        finish="stop" if valid else "fault",
        valid=valid,
    )


def scored(dialogues, scores, **fields) -> ScoredSamples:
    """All judged, unless ``scored`` says otherwise."""
    fields = {"scored": np.ones(len(scores), bool), **fields}
    return ScoredSamples(dialogues=dialogues, scores=np.array(scores, float), **fields)


def plain_logits(model, tokens) -> torch.Tensor:
    """[L, V] of a sequence on its own, after temperature; row t predicts token t + 1."""
    with torch.no_grad():
        return causal_lm(model)(input_ids=torch.tensor([list(tokens)])).logits[0].float() / TEMPERATURE


def plain_logprobs(model, sample: Dialogue) -> list[float]:
    """Log-probabilities of the written tokens of a dialogue, the plain way."""
    logprobs = plain_logits(model, sample.tokens).log_softmax(-1)
    return [float(logprobs[t - 1, sample.tokens[t]]) for t in np.flatnonzero(sample.written)]
