import numpy as np
import pytest
import torch
from samples import TEMPERATURE, dialogue, plain_logits, plain_logprobs
from small_llm import small_llm

from priorzero.policy.packing import pack_samples
from priorzero.policy.scorer import Critic, TokenScorer
from priorzero.types import TokenBatch

LONG = dialogue([5, 9, 11], [[20, 21, 2], [30, 2]], given=[[40, 41, 42]])
SHORT = dialogue([5, 9, 11], [[20, 22]])
OTHER = dialogue([5, 8], [[33, 2]])


def batch(*dialogues, mask=None):
    """Samples as one micro-batch, with nothing known but their tokens."""
    starts = [int(np.argmax(d.written)) for d in dialogues]
    answers = [d.tokens[start:] for d, start in zip(dialogues, starts, strict=True)]
    written = torch.zeros(len(dialogues), max(map(len, answers)), dtype=torch.bool)
    for n, (d, start) in enumerate(zip(dialogues, starts, strict=True)):
        written[n, : len(answers[n])] = torch.from_numpy(d.written[start:])
    written = written if mask is None else written & mask
    prompts = [d.tokens[:start] for d, start in zip(dialogues, starts, strict=True)]
    packed, place = pack_samples(prompts, answers, written, 0, row_tokens=64)
    zeros = torch.zeros(written.shape)
    rest = {"ref_logprobs": None, "old_values": None, "returns": None, "tokens": 1, "sequences": 1}
    return TokenBatch(packed, place, written, zeros, zeros, zeros, **rest)


@pytest.fixture(scope="module")
def model():
    return small_llm().model


def test_scores_are_those_of_each_sequence_alone(model):
    samples = LONG, SHORT, OTHER
    packed = batch(*samples)
    assert packed.packed.tokens.shape[0] == 1, "all three share a row"
    with torch.no_grad():
        scores = TokenScorer(model, None, TEMPERATURE)(packed, entropy=True)
    assert scores.values is None
    mask = torch.tensor([[1, 1, 1, 0, 0, 0, 1, 1], [1, 1, 0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0, 0]]).bool()
    assert torch.equal(packed.mask, mask)
    assert not scores.logprobs[~mask].any()
    assert not scores.entropy[~mask].any()
    for n, sample in enumerate(samples):
        torch.testing.assert_close(scores.logprobs[n, mask[n]], torch.tensor(plain_logprobs(model, sample)))
        probs = plain_logits(model, sample.tokens).softmax(-1)
        entropy = -(probs * probs.log()).sum(-1)[np.flatnonzero(sample.written) - 1]
        torch.testing.assert_close(scores.entropy[n, mask[n]], entropy)


def test_only_written_tokens_are_scored(model):
    packed = batch(LONG, SHORT).packed
    assert sorted(packed.score_token.tolist()) == [2, 2, 20, 20, 21, 22, 30]
    assert {40, 41, 42} <= set(packed.tokens.flatten().tolist()), "what was given is read all the same"


def test_a_temperature_divides_the_logits(model):
    logprobs = [TokenScorer(model, None, t)(batch(OTHER), entropy=False).logprobs.detach() for t in (1.0, 100.0)]
    plain = (plain_logits(model, OTHER.tokens) * TEMPERATURE).log_softmax(-1)
    torch.testing.assert_close(logprobs[0], torch.stack([plain[1, 33], plain[2, 2]])[None])
    vocabulary = torch.tensor(plain.shape[1], dtype=torch.float32)
    torch.testing.assert_close(logprobs[1], -vocabulary.log().expand(1, 2), atol=0.2, rtol=0)
    with pytest.raises(ValueError, match="needs a temperature above 0, not 0"):
        TokenScorer(model, None, 0.0)


def test_values_are_of_the_states_before_the_tokens(model):
    critic = Critic(64, None, detach=False)
    scorer = TokenScorer(model, critic, TEMPERATURE)
    assert not scorer(batch(LONG, OTHER), entropy=False).values.any(), "a new critic knows nothing"
    torch.nn.init.constant_(critic.output.weight, 0.01)
    torch.nn.init.constant_(critic.output.bias, 3.0)
    with torch.no_grad():
        values = scorer(batch(LONG, OTHER), entropy=False).values
        hidden = model.model(input_ids=torch.tensor([list(LONG.tokens)])).last_hidden_state[0]
    expected = 3.0 + 0.01 * hidden.sum(-1)[np.flatnonzero(LONG.written) - 1]
    torch.testing.assert_close(values[0, batch(LONG, OTHER).mask[0]], expected)
    assert not values[0, 3:6].any()
    assert scorer(batch(LONG), entropy=False, values=False).values is None


@pytest.mark.parametrize(("detach", "own"), [(False, False), (True, False), (False, True)])
def test_who_learns_from_the_value_loss(detach, own):
    language_model, trunk = small_llm(), small_llm() if own else None
    critic = Critic(64, trunk, detach=detach)
    torch.nn.init.constant_(critic.output.weight, 0.01)
    scorer = TokenScorer(language_model.model, critic, TEMPERATURE)
    scorer(batch(LONG), entropy=False).values.sum().backward()
    assert critic.output.weight.grad.any()
    reaches = any(p.grad is not None and bool(p.grad.any()) for p in language_model.model.parameters())
    assert reaches == (not detach and not own)
    if trunk is not None:
        assert any(p.grad is not None and bool(p.grad.any()) for p in trunk.model.parameters())


def test_a_micro_batch_in_which_all_is_masked(model):
    nothing = batch(LONG, OTHER, mask=torch.zeros(2, 8, dtype=torch.bool))
    scorer = TokenScorer(model, Critic(64, None, detach=False), TEMPERATURE)
    scores = scorer(nothing, entropy=True, entropy_gradient=True)
    total = scores.logprobs.sum() + scores.entropy.sum() + scores.values.sum()
    assert total.item() == 0
    total.backward()


def test_an_entropy_has_a_gradient_where_it_is_asked_for(model):
    scorer = TokenScorer(model, None, TEMPERATURE)
    assert scorer(batch(LONG), entropy=False).entropy is None
    assert not scorer(batch(LONG), entropy=True).entropy.requires_grad
    assert scorer(batch(LONG), entropy=True, entropy_gradient=True).entropy.requires_grad
