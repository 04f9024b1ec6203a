import numpy as np
import pytest
import torch
from plain_generation import LORA, load, weights

from priorzero.policy.logprobs import packed_token_logprobs
from priorzero.policy.packing import pack
from priorzero.rollout.probe import ProbeConfig, WeightProbe, WeightSyncError, answer_scorer
from priorzero.rollout.transformers_backend import TransformersGenerator

PROMPT = [10, 20, 30, 40]
PROBE = WeightProbe(PROMPT, ProbeConfig(max_tokens=16, tolerance=1e-4, seed=0))


def pair(lora):
    trained = load(lora=lora)
    return trained.model, TransformersGenerator(load(lora=lora), max_batch_tokens=1000, seed=0)


def update(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn_like(parameter)


@pytest.mark.parametrize("lora", [None, LORA])
def test_a_sync_that_worked_passes_and_a_skipped_one_is_caught(lora):
    trained, generator = pair(lora)
    update(trained)
    generator.load_weights(weights(trained), version=1)
    found = PROBE.check(generator, answer_scorer(trained), version=1)
    assert found["rollout/probe_difference_mean"] <= found["rollout/probe_difference_max"] < 1e-4
    update(trained)
    with pytest.raises(WeightSyncError, match="version 1, the trainer has 2"):
        PROBE.check(generator, answer_scorer(trained), version=2)
    generator.version = 2  # a backend that believes it has the new weights
    with pytest.raises(WeightSyncError, match=r"did not arrive.*prefix cache"):
        PROBE.check(generator, answer_scorer(trained), version=2)


def test_nan_is_caught():
    _, generator = pair(None)
    with pytest.raises(WeightSyncError, match="did not arrive"):
        PROBE.check(generator, lambda prompt, answer: np.full(len(answer), np.nan), version=0)


def test_the_plain_scorer_equals_the_packed_one_and_leaves_the_mode():
    trained, _ = pair(LORA)
    trained.train()
    answer = [7, 8, 9]
    got = answer_scorer(trained)(PROMPT, answer)
    assert trained.training
    trained.eval()
    with torch.no_grad():
        want = packed_token_logprobs(trained, pack([PROMPT], [[answer]], 0))
    np.testing.assert_allclose(got, want.numpy(), atol=1e-5)


def test_refusals():
    with pytest.raises(ValueError, match="tolerance"):
        ProbeConfig(max_tokens=4, tolerance=0.0, seed=0)
    with pytest.raises(ValueError, match="max_tokens"):
        WeightProbe(PROMPT, ProbeConfig(max_tokens=0, tolerance=1.0, seed=0))
