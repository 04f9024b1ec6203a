"""A small language model and the plain way to generate with one."""

from __future__ import annotations

import numpy as np
import torch

from priorzero.policy.load import LoraSettings
from priorzero.rollout.base import Sampling

LORA = LoraSettings(r=2, alpha=4, dropout=0.0, target_modules="all-linear")


def sampling(**changes):
    return Sampling(**{"temperature": 1.0, "top_p": 1.0, "max_tokens": 12, "stop": (), "seed": 3, **changes})


def weights(model, add=0.0):
    return {name: p.detach() + add for name, p in model.named_parameters() if p.requires_grad}


def naive(model, tokenizer, prompt, how, uniform):
    """One answer, the plain way: the whole sequence again for every token, decoded as a whole, numpy in float64."""
    tokens, logprobs = [], []
    while len(tokens) < how.max_tokens:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*prompt, *tokens]])).logits[0, -1].double().numpy()
        logits = logits / (how.temperature or 1.0)
        full = np.exp(logits - logits.max())
        full /= full.sum()
        if how.temperature == 0:
            token = int(full.argmax())
        else:
            order = np.argsort(-full, kind="stable") if how.top_p < 1 else np.arange(len(full))
            count = int((np.cumsum(full[order]) < how.top_p).sum()) + 1 if how.top_p < 1 else len(full)
            kept = np.cumsum(full[order][:count])
            token = int(order[: len(kept)][np.searchsorted(kept, float(uniform[len(tokens)]) * kept[-1], side="right")])
        tokens.append(token)
        logprobs.append(np.log(full[token]))
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        if token == tokenizer.eos_token_id or any(s in text for s in how.stop):
            return tokens, logprobs, "stop"
    return tokens, logprobs, "length"
