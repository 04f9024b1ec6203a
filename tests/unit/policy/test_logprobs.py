import pytest
import torch
from small_llm import small_llm

from priorzero.policy.load import LoraSettings
from priorzero.policy.logprobs import CandidateScorer, answer_logprobs
from priorzero.policy.packing import pack

LORA = LoraSettings(r=4, alpha=8, dropout=0.0, target_modules="all-linear")
PROMPTS = [[8, 9, 11, 40, 7], [8, 9], [100, 101, 102, 103, 104, 105, 106]]  # two begin alike
ANSWERS = [
    [[20, 21, 22, 2], [20, 21, 2], [30, 2], [20, 21, 22, 2]],  # shared prefixes, and one candidate twice
    [[33, 34, 2]],  # single candidate
    [[2], [50, 51, 52, 53, 54, 2]],  # a candidate of one token
]


def tiny(attention="sdpa", lora=None, checkpointing=False):
    return small_llm(attn_implementation=attention, lora=lora, gradient_checkpointing=checkpointing).model


def naive(model, prompts, answers):
    """One full sequence per candidate, plain causal attention, no padding."""
    sums = []
    for prompt, candidates in zip(prompts, answers, strict=True):
        row = []
        for candidate in candidates:
            tokens = torch.tensor([[*prompt, *candidate]])
            logprobs = model(input_ids=tokens).logits[0].float().log_softmax(-1)
            at = range(len(prompt) - 1, len(prompt) + len(candidate) - 1)
            row.append(sum(logprobs[i, t] for i, t in zip(at, candidate, strict=True)))
        sums.append(torch.stack(row))
    return sums


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("lora", [None, LORA])
@pytest.mark.parametrize("row_tokens", [1, 8, 512])
def test_equals_naive_computation(attention, lora, row_tokens):
    model = tiny(attention, lora)
    for name, weight in model.named_parameters():
        if "lora_B" in name:  # zero at first: give the adapters something to say
            torch.nn.init.normal_(weight, std=0.1)
    with torch.no_grad():
        sums, counts = answer_logprobs(model, pack(PROMPTS, ANSWERS, pad_id=0, row_tokens=row_tokens))
        expected = naive(model, PROMPTS, ANSWERS)
    assert sums.dtype == torch.float32
    assert counts.tolist() == [[4, 3, 2, 4], [3, 0, 0, 0], [1, 6, 0, 0]]
    for row, want in zip(sums, expected, strict=True):
        torch.testing.assert_close(row[: len(want)], want, atol=1e-4, rtol=0)
        assert torch.isneginf(row[len(want) :]).all()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_equal_naive_computation(checkpointing):
    model = tiny(checkpointing=checkpointing).train()
    scorer = CandidateScorer(model)
    weights = [torch.randn(len(a), generator=torch.Generator().manual_seed(3)) for a in ANSWERS]

    def gradients(rows):
        model.zero_grad()
        sum((row * w).sum() for row, w in zip(rows, weights, strict=True)).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    sums, _ = scorer(pack(PROMPTS, ANSWERS, pad_id=0))
    packed = gradients([row[: len(w)] for row, w in zip(sums, weights, strict=True)])
    expected = gradients(naive(model, PROMPTS, ANSWERS))
    for name, want in expected.items():
        torch.testing.assert_close(packed[name], want, atol=1e-4, rtol=1e-4, msg=name)


def test_rows_do_not_depend_on_their_batch():
    model = tiny()
    with torch.no_grad():
        together, _ = answer_logprobs(model, pack(PROMPTS, ANSWERS, pad_id=0))
        alone, _ = answer_logprobs(model, pack(PROMPTS[1:2], ANSWERS[1:2], pad_id=0))
    torch.testing.assert_close(together[1, :1], alone[0], atol=1e-5, rtol=0)
