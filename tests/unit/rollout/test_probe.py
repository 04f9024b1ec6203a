import numpy as np
import pytest
import torch
from plain_generation import LORA, weights
from small_llm import small_llm

from priorzero.policy.logprobs import packed_token_logprobs
from priorzero.policy.packing import pack
from priorzero.rollout.probe import ModelScorer, ProbeConfig, WeightProbe, WeightSyncError
from priorzero.rollout.transformers_backend import TransformersGenerator

PROMPT = [10, 20, 30, 40]


class Closed(TransformersGenerator):
    """A backend that does not show its weights, as vLLM."""

    def weights(self):
        return None

    @torch.no_grad()
    def load_weights(self, state, version):
        for name, weight in super().weights().items():
            weight.copy_(state[name])
        self.version = version


def make_probe(tolerance=None):
    return WeightProbe(PROMPT, ProbeConfig(max_tokens=16, tolerance=tolerance, seed=0))


def pair(lora, kind=TransformersGenerator):
    trained = small_llm(lora=lora)
    return trained.model, kind(small_llm(lora=lora), max_batch_tokens=1000, seed=0)


def update(model, size=0.02):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += size * torch.randn_like(parameter)


@pytest.mark.parametrize("lora", [None, LORA])
@pytest.mark.parametrize("size", [0.02, 1e-6])
def test_a_sync_that_worked_passes_and_a_skipped_one_is_caught(lora, size):
    (trained, generator), probe = pair(lora), make_probe()
    for version in (1, 2):
        update(trained, size)
        generator.load_weights(weights(trained), version)
        found = probe.check(generator, ModelScorer(trained), version)
        assert found["rollout/probe_difference_mean"] <= found["rollout/probe_difference_max"] < 1e-4
    update(trained, size)
    with pytest.raises(WeightSyncError, match="version 2, the trainer has 3"):
        probe.check(generator, ModelScorer(trained), version=3)
    generator.version = 3  # a backend that believes it has the new weights
    with pytest.raises(WeightSyncError, match=r"did not arrive.*weights differ"):
        probe.check(generator, ModelScorer(trained), version=3)


def test_one_weight_that_did_not_arrive_is_named():
    (trained, generator), probe = pair(None), make_probe()
    update(trained)
    state = weights(trained)
    state["model.norm.weight"] = torch.ones_like(state["model.norm.weight"])
    generator.load_weights(state, 1)
    with pytest.raises(WeightSyncError, match=r"1 of \d+ weights differ.*'model.norm.weight'"):
        probe.check(generator, ModelScorer(trained), 1)
    other = small_llm(lora=LORA).model
    with pytest.raises(WeightSyncError, match="not both"):
        probe.check(generator, ModelScorer(other), 1)


@pytest.mark.parametrize("lora", [None, LORA])
def test_a_backend_that_hides_its_weights(lora):
    (trained, generator), probe = pair(lora, Closed), make_probe()
    update(trained)
    generator.load_weights(weights(trained), 1)
    probe.check(generator, ModelScorer(trained), 1)
    probe.check(generator, ModelScorer(trained), 1)  # the same weights again say the same

    def go_on_without_sync():
        for version in range(2, 15):  # the first are too small for the tolerance
            update(trained, 1e-5 * 2 ** (version - 2))
            generator.version = version
            probe.check(generator, ModelScorer(trained), version)

    with pytest.raises(WeightSyncError, match="same to the last bit"):
        go_on_without_sync()
    generator.load_weights(weights(trained), 20)
    probe.check(generator, ModelScorer(trained), 20)
    update(trained, 0.3)
    with pytest.raises(WeightSyncError, match="probabilities differ"):
        probe.check(generator, ModelScorer(trained), 20)


def test_bfloat16_has_a_tolerance_of_its_own():
    coarse = small_llm(dtype="bfloat16", lora=LORA)
    generator = TransformersGenerator(coarse, max_batch_tokens=1000, seed=0)
    trained = small_llm(lora=LORA).model
    update(trained)
    generator.load_weights(weights(trained), 1)
    found = make_probe().check(generator, ModelScorer(trained), 1)
    assert 1e-5 < found["rollout/probe_difference_mean"] < 0.02
    with pytest.raises(WeightSyncError, match="probabilities differ"):
        make_probe(tolerance=1e-6).check(generator, ModelScorer(trained), 1)
    assert (generator.dtype, ModelScorer(trained).dtype) == (torch.bfloat16, torch.float32)


def test_nan_is_caught():
    trained, generator = pair(None, Closed)
    with torch.no_grad():
        trained.model.norm.weight[0] = torch.nan  # the check of the weights would see it first
    with pytest.raises(WeightSyncError, match="probabilities differ"):
        make_probe().check(generator, ModelScorer(trained), version=0)


def test_the_plain_scorer_equals_the_packed_one_and_leaves_the_mode():
    trained, _ = pair(LORA)
    trained.train()
    answer = [7, 8, 9]
    got = ModelScorer(trained)(PROMPT, answer)
    assert trained.training
    trained.eval()
    with torch.no_grad():
        want = packed_token_logprobs(trained, pack([PROMPT], [[answer]], 0))
    np.testing.assert_allclose(got, want.numpy(), atol=1e-5)


def test_refusals():
    with pytest.raises(ValueError, match="tolerance"):
        ProbeConfig(max_tokens=4, tolerance=0.0, seed=0)
    with pytest.raises(ValueError, match="max_tokens"):
        WeightProbe(PROMPT, ProbeConfig(max_tokens=0, tolerance=None, seed=0))
