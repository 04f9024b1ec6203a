import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from priorzero.policy.packing import pack, padded, tree_mask


def test_pack_shares_beginnings():
    # prompts [5, 6] and [5, 7] share 5; candidates 10 11 2 and 10 12 2 share 10; the last tokens are not fed
    packed = pack([[5, 7], [5, 6]], [[[13, 2]], [[10, 12, 2], [14, 2], [10, 11, 2]]], pad_id=0)
    #                                 0  1   2   3   4   5  6   7
    assert packed.tokens.tolist() == [[5, 6, 10, 11, 12, 14, 7, 13]]
    assert packed.position.tolist() == [[0, 1, 2, 3, 3, 2, 1, 2]]
    assert packed.end.tolist() == [[8, 6, 5, 4, 5, 6, 8, 8]]
    assert packed.candidates.tolist() == [1, 3]
    assert packed.max_candidates == 3
    # in the order of the row: prompt 1's candidates sorted, then prompt 0's
    assert packed.score_position.tolist() == [1, 2, 3, 1, 2, 4, 1, 5, 6, 7]
    assert packed.score_token.tolist() == [10, 11, 2, 10, 12, 2, 14, 2, 13, 2]
    assert packed.score_slot.tolist() == [5, 5, 5, 3, 3, 3, 4, 4, 0, 0]


def test_pack_starts_a_new_row():
    packed = pack([[5, 6], [5, 7], [5, 8]], [[[2]], [[9, 2]], [[2]]], pad_id=0, row_tokens=4)
    assert packed.tokens.tolist() == [[5, 6, 7, 9], [5, 8, 0, 0]]
    assert packed.end.tolist() == [[4, 2, 4, 4], [2, 2, 3, 4]]
    assert packed.score_position.tolist() == [1, 2, 3, 5]
    assert packed.score_slot.tolist() == [0, 1, 1, 2]


def test_equal_prompts_with_other_candidates():
    packed = pack([[5, 6], [5, 6]], [[[8, 2]], [[8, 9, 2], [2]]], pad_id=0)
    assert packed.tokens.tolist() == [[5, 6, 8, 8, 9]]
    assert packed.end.tolist() == [[5, 5, 3, 5, 5]]


def test_padding_is_seen_by_nobody():
    packed = pack([[5, 6], [5, 7], [5, 8]], [[[2]], [[9, 2]], [[2]]], pad_id=0, row_tokens=4)
    more = padded(packed, rows=3, width=6)
    assert more.tokens.tolist() == [[5, 6, 7, 9, 0, 0], [5, 8, 0, 0, 0, 0], [0] * 6]
    assert more.end.tolist() == [[4, 2, 4, 4, 5, 6], [2, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6]]
    assert more.score_position.tolist() == [1, 2, 3, 7]
    assert padded(packed, rows=2, width=4).end.tolist() == packed.end.tolist()
    mask = tree_mask(more.end)[:, 0]
    assert torch.equal(mask[:2, :4, :4], tree_mask(packed.end)[:, 0])
    assert mask[:2, 4:].sum(-1).eq(1).all()
    assert mask[2].int().tolist() == torch.eye(6).int().tolist()


@pytest.mark.parametrize(
    ("prompts", "answers"), [([[1]], []), ([], []), ([[]], [[[1]]]), ([[1]], [[]]), ([[1]], [[[]]])]
)
def test_pack_refuses_what_is_empty(prompts, answers):
    with pytest.raises(ValueError, match=r"empty|one list"):
        pack(prompts, answers, pad_id=0)


def test_tree_mask():
    #                                prompt 0 1, branch 2, branch 3 4, padding
    mask = tree_mask(torch.tensor([[5, 5, 3, 5, 5, 6]]))
    assert mask.shape == (1, 1, 6, 6)
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 0, 1, 0, 0],
        [1, 1, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]


TOKENS = st.lists(st.integers(1, 3), min_size=1, max_size=5)
QUERIES = st.lists(st.tuples(TOKENS, st.lists(TOKENS, min_size=1, max_size=4)), min_size=1, max_size=6)


@given(queries=QUERIES, row_tokens=st.integers(1, 20))
@settings(max_examples=200)
def test_every_path_spells_its_sequence(queries, row_tokens):
    prompts, answers = [p for p, _ in queries], [a for _, a in queries]
    packed = pack(prompts, answers, pad_id=0, row_tokens=row_tokens)
    mask = tree_mask(packed.end)[:, 0]
    width = packed.tokens.shape[1]
    spelt: dict[int, list[tuple[list[int], int]]] = {}
    for at, token, slot in zip(packed.score_position, packed.score_token, packed.score_slot, strict=True):
        row, column = divmod(int(at), width)
        seen = mask[row, column].nonzero()[:, 0]
        assert packed.position[row, seen].tolist() == list(range(len(seen)))
        spelt.setdefault(int(slot), []).append((packed.tokens[row, seen].tolist(), int(token)))
    for b, (prompt, candidates) in enumerate(queries):
        for j, candidate in enumerate(candidates):
            want = [(prompt + candidate[:k], candidate[k]) for k in range(len(candidate))]
            assert spelt.pop(b * packed.max_candidates + j) == want
    assert not spelt
