import pytest
import torch

from priorzero.policy.load import LoraSettings, load_llm
from priorzero.policy.logprobs import CandidateScorer, answer_logprobs, pack, tree_mask

LORA = LoraSettings(r=4, alpha=8, dropout=0.0, target_modules="all-linear")
PROMPTS = [[5, 9, 11, 40, 7], [8, 9], [100, 101, 102, 103, 104, 105, 106]]
ANSWERS = [
    [[20, 21, 22, 2], [20, 21, 2], [30, 2], [20, 21, 22, 2]],  # shared prefixes, and one candidate twice
    [[33, 34, 2]],  # single candidate
    [[2], [50, 51, 52, 53, 54, 2]],  # a candidate of one token
]


def tiny(attention="sdpa", lora=None, checkpointing=False):
    return load_llm(
        "tiny-random",
        dtype="float32",
        device="cpu",
        attn_implementation=attention,
        lora=lora,
        gradient_checkpointing=checkpointing,
    ).model


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


def test_pack_lays_out_branches():
    packed = pack([[5, 6], [7]], [[[10, 11, 2], [12, 2]], [[13, 2]]], pad_id=0)
    assert packed.tokens.tolist() == [[5, 6, 10, 11, 12], [7, 13, 0, 0, 0]]
    assert packed.position.tolist() == [[0, 1, 2, 3, 2], [0, 1, 0, 0, 0]]
    assert packed.branch.tolist() == [[0, 0, 1, 1, 2], [0, 1, -1, -1, -1]]
    assert packed.score_position.tolist() == [[1, 2, 3, 1, 4], [0, 1, 0, 0, 0]]
    assert packed.score_token.tolist() == [[10, 11, 2, 12, 2], [13, 2, 0, 0, 0]]
    assert packed.score_candidate.tolist() == [[0, 0, 0, 1, 1], [0, 0, -1, -1, -1]]
    assert packed.candidates.tolist() == [2, 1]
    assert packed.max_candidates == 2


@pytest.mark.parametrize(
    ("prompts", "answers"), [([[1]], []), ([], []), ([[]], [[[1]]]), ([[1]], [[]]), ([[1]], [[[]]])]
)
def test_pack_refuses_what_is_empty(prompts, answers):
    with pytest.raises(ValueError, match=r"empty|one list"):
        pack(prompts, answers, pad_id=0)


def test_tree_mask():
    mask = tree_mask(torch.tensor([[0, 0, 1, 2, 2, -1]]))
    assert mask.shape == (1, 1, 6, 6)
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 0, 1, 0, 0],
        [1, 1, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("lora", [None, LORA])
def test_equals_naive_computation(attention, lora):
    model = tiny(attention, lora)
    for name, weight in model.named_parameters():
        if "lora_B" in name:  # zero at first: give the adapters something to say
            torch.nn.init.normal_(weight, std=0.1)
    with torch.no_grad():
        sums, counts = answer_logprobs(model, pack(PROMPTS, ANSWERS, pad_id=0))
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
