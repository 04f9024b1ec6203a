from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from priorzero.collect.atlas import Atlas


def house() -> Atlas:
    """A hall with an attic above, a yard outside, and a lane behind the yard that leads back to the hall."""
    atlas = Atlas()
    for before, action, after in (
        ("hall", "up", "attic"),
        ("attic", "down", "hall"),
        ("hall", "out", "yard"),
        ("yard", "on", "lane"),
        ("lane", "climb", "hall"),
        ("lane", "wait", "lane"),
    ):
        atlas.walk("g", before, action, after)
    return atlas


def test_routes_are_the_shortest():
    atlas = house()
    assert atlas.routes("g", "hall", ("out", "up")) == {"attic": ("up", 1), "yard": ("out", 1), "lane": ("out", 2)}
    assert atlas.routes("g", "attic", ("down",)) == {"hall": ("down", 1), "yard": ("down", 2), "lane": ("down", 3)}
    assert atlas.routes("g", "lane", ("climb", "wait"))["attic"] == ("climb", 2)


def test_a_route_begins_with_what_is_valid():
    assert house().routes("g", "hall", ("look", "up")) == {"attic": ("up", 1)}
    assert house().routes("g", "hall", ("look",)) == {}
    assert house().routes("g", "nowhere", ("up",)) == house().routes("another", "hall", ("up",)) == {}


def test_errands_go_where_things_rarely_were():
    """attic 1/2 by one action, yard 1/1 by one, lane 1/1 by two, which counts for 1/4: of 7/4."""
    atlas, rng = house(), np.random.default_rng(0)
    atlas.meet("g", "attic", ("key",))
    state, found = atlas.state_dict(), Counter()
    for _ in range(3000):
        atlas.load_state_dict(state)
        found[atlas.errand("g", ("key",), atlas.routes("g", "hall", ("out", "up")), rng)] += 1
    shares = [found[place] / 3000 for place in ("attic", "yard", "lane")]
    np.testing.assert_allclose(shares, [2 / 7, 4 / 7, 1 / 7], atol=0.03)


def test_every_thing_counts():
    """attic 1/10 + 1/1, yard 1/10 + 1/10: of 1.3."""
    atlas, rng, found = house(), np.random.default_rng(0), Counter()
    for place, things in (("attic", ("key",)), ("yard", ("key", "lamp"))):
        for _ in range(9):
            atlas.meet("g", place, things)
    state, routes = atlas.state_dict(), {"attic": ("up", 1), "yard": ("out", 1)}
    for _ in range(3000):
        atlas.load_state_dict(state)
        found[atlas.errand("g", ("key", "lamp"), routes, rng)] += 1
    assert abs(found["attic"] / 3000 - 1.1 / 1.3) < 0.03


def test_an_errand_counts_though_it_may_fail():
    atlas, rng = house(), np.random.default_rng(0)
    routes = {"attic": ("up", 1), "yard": ("out", 1)}
    found = Counter(atlas.errand("g", ("key", "lamp"), routes, rng) for _ in range(400))
    assert abs(found["attic"] - 200) < 30
    assert atlas.state_dict()["met"]["g"]["attic"] == {"key": found["attic"], "lamp": found["attic"]}


def test_there_is_no_errand_for_empty_hands():
    atlas, rng = house(), np.random.default_rng(0)
    assert atlas.errand("g", (), {"attic": ("up", 1)}, rng) is None
    assert atlas.errand("g", ("key",), {}, rng) is None


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=20), st.integers(0, 5))
def test_a_route_leads_there(doors, start):
    """Each action is the number of the place behind it; following routes comes one action nearer each time."""
    atlas = Atlas()
    for a, b in doors:
        atlas.walk("g", str(a), str(b), str(b))
    for target, (action, length) in atlas.routes("g", str(start), [str(n) for n in range(6)]).items():
        assert (start, int(action)) in doors
        assert target != str(start)
        if length == 1:
            assert action == target
        else:
            # a way that does not come back to the start
            ahead = {t: n for t, (_, n) in atlas.routes("g", action, [str(n) for n in range(6)]).items()}
            assert ahead[target] == length - 1
