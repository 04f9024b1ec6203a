import pytest
import torch
from small_llm import small_llm

from priorzero.policy.logprobs import packed_token_logprobs, per_answer
from priorzero.policy.packing import pack
from priorzero.prior.recorded import WIDTH_STEP, RecordedDecoder, _few, rounded
from priorzero.prior.scorer import PackedScorer

PROMPTS = [[8, 9, 11, 40, 7], [8, 9], [100, 101, 102, 103, 104, 105, 106]]
ANSWERS = [[[20, 21, 22, 2], [20, 21, 2], [30, 2]], [[33, 34, 2]], [[2], [50, 51, 52, 53, 54, 2]]]


def load(device="cpu"):
    return small_llm(device=device).model


def scores(model, **changes):
    scorer = PackedScorer(
        model, 0, **{"row_tokens": 1, "max_batch_tokens": 100, "cuda_graphs": False, "compiled": False, **changes}
    )
    found = {
        i: sums for order, batch, _ in scorer.score(PROMPTS, ANSWERS) for i, sums in zip(order, batch, strict=True)
    }
    return [found[i][: len(answers)].cpu() for i, answers in enumerate(ANSWERS)], scorer


def want(model):
    packed = pack(PROMPTS, ANSWERS, 0)
    with torch.no_grad():
        sums, _ = per_answer(packed_token_logprobs(model, packed), packed)
    return [row[: len(answers)] for row, answers in zip(sums, ANSWERS, strict=True)]


def test_every_prompt_is_scored_once_in_few_passes():
    model = load()
    for changes, forwards in (({}, 1), ({"max_batch_tokens": 1}, 3), ({"row_tokens": 500}, 1)):
        found, scorer = scores(model, **changes)
        assert scorer.forwards == forwards
        for a, b in zip(found, want(model), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_rounded_sizes_give_the_same():
    model = load()
    packed = pack(PROMPTS, ANSWERS, 0, row_tokens=1)
    more = rounded(packed)
    assert more.tokens.shape == (3, WIDTH_STEP)
    with torch.no_grad():
        torch.testing.assert_close(
            packed_token_logprobs(model, more), packed_token_logprobs(model, packed), atol=1e-5, rtol=0
        )
    assert [_few(n) for n in (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 17, 24, 25)] == [
        1, 2, 3, 4, 6, 6, 8, 8, 12, 12, 16, 24, 24, 32,
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile itself
def test_compiled_layers_give_the_same():
    want_scores = want(load())
    for row_tokens in (1, 500):  # two shapes
        for a, b in zip(scores(load(), compiled=True, row_tokens=row_tokens)[0], want_scores, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


@pytest.mark.gpu
def test_recordings_equal_the_plain_pass_and_follow_the_weights():
    model = load("cuda").eval()
    recorded = RecordedDecoder()
    packed = rounded(pack(PROMPTS, ANSWERS, 0, row_tokens=1)).to("cuda")
    other = rounded(pack(PROMPTS[::-1], ANSWERS[::-1], 0)).to("cuda")
    with torch.no_grad():
        for _ in range(4):  # plain, recorded, replayed; after new weights
            for batch in (packed, other):
                torch.testing.assert_close(
                    packed_token_logprobs(model, batch, recorded),
                    packed_token_logprobs(model, batch),
                    atol=1e-4,
                    rtol=0,
                )
            for weight in model.parameters():
                weight += 0.01
    assert len(recorded._recordings) == 2
    for a, b in zip(scores(model, cuda_graphs=True)[0], scores(model)[0], strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0)
