from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_llm import small_llm

from priorzero.rollout.sampling import StopText, draw, end_tokens

tokenizer = small_llm().tokenizer
LOGITS = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()


def pick(uniform, temperature=1.0, top_p=1.0, logits=LOGITS):
    tokens, logprobs = draw(logits, torch.tensor([uniform], dtype=torch.float64), temperature, top_p)
    return int(tokens), float(logprobs)


def test_inverts_the_cumulative_distribution():
    assert [pick(u)[0] for u in (0.0, 0.4999, 0.5001, 0.7499, 0.7501, 0.8749, 0.8751, 0.999999)] == [
        0, 0, 1, 1, 2, 2, 3, 3,
    ]  # fmt: skip
    assert pick(0.6)[1] == pytest.approx(-1.386294, abs=1e-5)  # log 1/4


def test_temperature_divides_the_logits():
    # at 1/2 the probabilities are squared: 16 : 4 : 1 : 1
    assert pick(0.72, temperature=0.5)[0] == 0
    assert pick(0.73, temperature=0.5)[0] == 1
    assert pick(0.73, temperature=0.5)[1] == pytest.approx(-1.704748, abs=1e-5)  # log 4/22
    assert pick(0.99, temperature=0.0) == (0, pytest.approx(-0.693147, abs=1e-5))


def test_top_p_keeps_the_smallest_set_that_reaches_it():
    # {0, 1} has 3/4; log-probabilities stay those of the whole distribution
    assert [pick(u, top_p=0.74)[0] for u in (0.0, 0.66, 0.67, 0.999999)] == [0, 0, 1, 1]
    assert pick(0.67, top_p=0.74)[1] == pytest.approx(-1.386294, abs=1e-5)
    assert pick(0.999999, top_p=0.76)[0] == 2
    assert pick(0.999999, top_p=1e-9)[0] == 0
    assert pick(0.999999, top_p=0.74, logits=LOGITS.flip(-1))[0] == 2


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.floats(0.2, 3.0), st.floats(0.05, 1.0))
def test_draws_are_of_the_distribution(seed, temperature, top_p):
    generator = torch.Generator().manual_seed(seed)
    logits = (3 * torch.randn(1, 6, generator=generator)).expand(20_000, 6)
    tokens, logprobs = draw(logits, torch.rand(20_000, generator=generator, dtype=torch.float64), temperature, top_p)
    full = (logits[0].double() / temperature).softmax(-1)
    order = full.argsort(descending=True)
    kept = torch.zeros_like(full)
    kept[order] = full[order].where(full[order].cumsum(-1) - full[order] < top_p, 0.0)
    share = torch.bincount(tokens, minlength=6) / 20_000
    torch.testing.assert_close(share.double(), kept / kept.sum(), atol=0.02, rtol=0)
    torch.testing.assert_close(logprobs.double(), full.log()[tokens], atol=1e-4, rtol=0)


def test_a_stop_string_ends_where_a_token_completes_it():
    watch = StopText(tokenizer, frozenset({tokenizer.eos_token_id}), ("</answer>", "ü"))
    for text, ends in (("so <answer>look</answer> yes", "</answer>"), ("für", "ü")):
        tokens = tokenizer(text)["input_ids"]
        first = next(n for n in range(1, len(tokens) + 1) if watch.ended(tokens[:n]))
        assert ends in tokenizer.decode(tokens[:first])
        assert ends not in tokenizer.decode(tokens[: first - 1])
    assert not watch.ended(tokenizer("</ answer>")["input_ids"])
    assert watch.ended([tokenizer.eos_token_id])


def test_special_tokens_are_no_text():
    watch = StopText(tokenizer, frozenset({tokenizer.eos_token_id}), ("look", "<|im_start|>"))
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert not watch.ended([start])
    assert watch.ended([*tokenizer("lo")["input_ids"], *[start] * 20, *tokenizer("ok")["input_ids"]])


@settings(max_examples=100)
@given(st.text("ab é", min_size=1, max_size=30), st.lists(st.text("ab é", min_size=1, max_size=4), max_size=3))
def test_watching_the_tail_equals_reading_everything(text, stop):
    watch = StopText(tokenizer, frozenset({tokenizer.eos_token_id}), stop)
    tokens = tokenizer(text)["input_ids"]
    for n in range(1, len(tokens) + 1):
        whole = any(s in tokenizer.decode(tokens[:n], skip_special_tokens=True) for s in stop)
        assert watch.ended(tokens[:n]) == whole
        if whole:
            break


def test_ends_of_a_turn_come_from_both_places():
    tokenizer = SimpleNamespace(eos_token_id=2)
    assert end_tokens(tokenizer, [1, 3]) == {1, 2, 3}
    assert end_tokens(tokenizer, 5) == {2, 5}
    assert end_tokens(tokenizer, None) == {2}
    with pytest.raises(ValueError, match="eos_token"):
        end_tokens(SimpleNamespace(eos_token_id=None), None)
