import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from priorzero.collect.cells import Cell, Index, ranked, rarely_joined, short
from priorzero.collect.ways import Walk


def cell(
    place: str = "hall", things: tuple[str, ...] = (), visits: int = 1, scores: tuple[float, ...] = (0.0,), made=()
) -> Cell:
    steps = len(scores) - 1
    return Cell(Walk(1, ("n",) * steps, tuple(range(steps + 1)), scores), place, things, made, steps, visits)


@pytest.mark.parametrize(
    ("scores", "point"), [((0.0,), None), ((0.0, 5.0), "hall: n"), ((0.0, 5.0, 5.0), None), ((0.0, 5.0, 4.0), None)]
)
def test_a_state_knows_the_point_that_led_to_it(scores: tuple[float, ...], point: str | None):
    assert cell(scores=scores, made=("hall: n",)[: len(scores) - 1]).point == point


def test_shares_by_thing_by_hand():
    cells = [cell("hall"), cell("hall", ("key",), visits=4), cell("pit")]
    index = Index()
    index.extend(cells)
    # nothing: 6 visits, 5 in the hall and 1 in the pit; the key: 4. So 1/6 to 1/4, the hall 1/6 of the former, the pit
    # 5/6, and in the hall 1 to 1/2
    np.testing.assert_allclose(index.by_thing(cells), [1 / 54, 1 / 108 + 1 / 4, 5 / 36])


def test_shares_by_score_by_hand():
    cells = [cell(scores=(5.0,)), cell(visits=4), cell("pit")]
    index = Index()
    index.extend(cells)
    # 5 points 1; none 1/2 of (1/2 in the hall and 1 in the pit) / 2
    np.testing.assert_allclose(index.by_score(cells), [1, 1 / 2 / 2 / 2, 1 / 2 / 2])


known = st.builds(
    cell,
    place=st.sampled_from(["hall", "pit"]),
    things=st.sampled_from([(), ("key",), ("key", "lamp")]),
    visits=st.integers(0, 9),
    scores=st.tuples(st.sampled_from([0.0, 5.0])),
)


@given(st.lists(known, min_size=1, max_size=12), st.integers(0, 12))
def test_an_index_may_grow(cells: list[Cell], first: int):
    whole, grown = Index(), Index()
    whole.extend(cells)
    for part in (cells[:first], cells):
        grown.extend(part)
    for by in (Index.by_thing, Index.by_score):
        np.testing.assert_array_equal(by(grown, cells), by(whole, cells))
        assert (by(whole, cells) > 0).all()


def test_draws():
    rng = np.random.default_rng(0)
    found = np.bincount([ranked(3, rng) for _ in range(1100)], minlength=3) / 1100
    np.testing.assert_allclose(found, [6 / 11, 3 / 11, 2 / 11], atol=0.04)
    often, joined, once = cell(visits=4), cell(visits=0), cell(visits=0)
    joined.joined, often.joined = 4, 0
    drawn = [rarely_joined([often, joined, once], rng) for _ in range(1000)]
    assert [
        abs(sum(one is c for one in drawn) / 1000 - p) < 0.05
        for c, p in ((often, 1 / 4), (joined, 1 / 4), (once, 1 / 2))
    ] == [True] * 3
    long, near = cell(scores=(0.0, 0.0)), cell()
    assert abs(sum(short([long, near], rng) is near for _ in range(1000)) / 1000 - 2 / 3) < 0.05
