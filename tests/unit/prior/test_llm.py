import threading

import numpy as np
import pytest
import torch
from small_llm import small_llm

from priorzero.policy.load import LoraSettings
from priorzero.policy.logprobs import answer_logprobs
from priorzero.policy.packing import pack
from priorzero.prior.llm import LLMPrior
from priorzero.text.prompt import PromptBuilder, PromptConfig
from priorzero.types import Observation, Situation

LORA = LoraSettings(r=2, alpha=4, dropout=0.0, target_modules="all-linear")
SITUATIONS = [
    Situation(Observation("You are in a hall.", "Hall. Exits lead north and south."), ("go north", "go south", "look")),
    Situation(Observation("Dark."), ("take lamp",)),
    Situation(Observation("A mailbox."), ("open", "open mailbox")),
]


def build(lora=None, **changes):
    model = small_llm(lora=lora)
    config = PromptConfig(
        format="plain",
        history_steps=2,
        max_tokens=1000,
        show=("feedback", "look", "inventory"),
        show_valid_actions=False,
        show_rewards=True,
        truncate_observation=False,
        system="Play.",
    )
    options = {
        "temperature": 1.0,
        "normalise_length": False,
        "cache_size": 100,
        "row_tokens": 256,
        "max_batch_tokens": 10_000,
        "cuda_graphs": True,
        "compiled": False,
    }
    return LLMPrior(model, PromptBuilder(model.tokenizer, config), **{**options, **changes})


def test_scores_are_distributions_over_the_valid_actions():
    result = build().score(SITUATIONS)
    assert [len(row) for row in result.logprobs] == [3, 1, 2]
    for row in result.logprobs:
        assert row.dtype == np.float32
        assert np.exp(row).sum() == pytest.approx(1.0, abs=1e-5)
    assert result.version == 0
    assert result.cache_hits == 0


@pytest.mark.parametrize(("temperature", "normalise"), [(1.0, False), (2.5, False), (0.5, True)])
def test_score_is_softmax_of_the_likelihoods(temperature, normalise):
    prior = build(temperature=temperature, normalise_length=normalise)
    situation = SITUATIONS[0]
    answers = prior.prompts.answers(situation.valid_actions)
    with torch.no_grad():
        packed = pack([prior.prompts.prompt(situation)], [answers], prior.language_model.pad_id)
        sums = answer_logprobs(prior.language_model.model, packed)[0][0]
    lengths = torch.tensor([len(a) for a in answers])
    want = ((sums / lengths if normalise else sums) / temperature).log_softmax(-1)
    np.testing.assert_allclose(prior.score([situation]).logprobs[0], want.numpy(), atol=1e-5)


def test_batching_does_not_change_scores():
    together, alone = build(), build(row_tokens=1, max_batch_tokens=1)
    for a, b in zip(together.score(SITUATIONS).logprobs, alone.score(SITUATIONS).logprobs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    assert together.metrics()["prior/forwards"] == 1
    assert alone.metrics()["prior/forwards"] == 3


def test_equal_situations_are_computed_once():
    prior = build()
    first = prior.score([SITUATIONS[0], SITUATIONS[1], SITUATIONS[0]])
    assert first.cache_hits == 1
    second = prior.score([SITUATIONS[1], SITUATIONS[2]])
    assert second.cache_hits == 1
    np.testing.assert_array_equal(first.logprobs[0], first.logprobs[2])
    np.testing.assert_array_equal(first.logprobs[1], second.logprobs[0])
    metrics = prior.metrics()
    assert metrics["prior/cache_hits"] == 2
    assert metrics["prior/cache_misses"] == 3
    assert metrics["prior/cache_hit_rate"] == pytest.approx(0.4)
    assert metrics["prior/states_per_s"] > 0
    assert prior.metrics()["prior/cache_misses"] == 0


def test_other_valid_actions_are_another_question():
    prior = build()
    prior.score([SITUATIONS[0]])
    result = prior.score([Situation(SITUATIONS[0].observation, ("look",))])
    assert result.cache_hits == 0
    assert len(result.logprobs[0]) == 1


def test_new_weights_change_the_scores_and_the_version():
    prior = build(lora=LORA)
    before = prior.score(SITUATIONS)
    state = {n: p.detach() + 0.3 for n, p in prior.language_model.model.named_parameters() if p.requires_grad}
    prior.load_weights(state, version=7)
    after = prior.score(SITUATIONS)
    assert (after.version, after.cache_hits) == (7, 0)
    assert np.abs(before.logprobs[0] - after.logprobs[0]).max() > 1e-3
    with pytest.raises(ValueError, match="same LoRA settings"):
        prior.load_weights({"nothing": torch.zeros(1)}, version=8)
    assert prior.version == 7


def test_refusals():
    with pytest.raises(ValueError, match="no valid actions"):
        build().score([Situation(Observation("x"), ())])
    with pytest.raises(ValueError, match="temperature"):
        build(temperature=0.0)
    assert build().score([]).logprobs == ()


def test_weights_may_arrive_while_another_thread_scores():
    prior = build(lora=LORA, cache_size=0)
    state = {n: p.detach().clone() for n, p in prior.language_model.model.named_parameters() if p.requires_grad}
    want = prior.score(SITUATIONS).logprobs
    results = []
    thread = threading.Thread(target=lambda: results.extend(prior.score(SITUATIONS) for _ in range(10)))
    thread.start()
    for version in range(1, 11):
        prior.load_weights(state, version)
    thread.join()
    assert len(results) == 10
    for result in results:
        np.testing.assert_allclose(result.logprobs[0], want[0], atol=1e-5)


def test_scores_survive_in_the_state():
    prior = build()
    prior.load_weights(prior_weights(prior), version=4)
    scored = prior.score(SITUATIONS)
    other = build()
    other.load_state_dict(prior.state_dict())
    again = other.score(SITUATIONS)
    assert (again.version, again.cache_hits) == (4, 3)
    for a, b in zip(scored.logprobs, again.logprobs, strict=True):
        np.testing.assert_array_equal(a, b)
    other.load_weights(prior_weights(other), version=5)
    assert other.score(SITUATIONS).cache_hits == 0
    other.load_state_dict(build().state_dict())
    assert other.version == 0


def prior_weights(prior):
    return {name: p.detach().clone() for name, p in prior.language_model.model.named_parameters() if p.requires_grad}
