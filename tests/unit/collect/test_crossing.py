from collections import Counter
from collections.abc import Callable

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from priorzero.collect.cells import Cell
from priorzero.collect.crossing import Crossing, crossing, pair, right_behind, to_a_point, together, with_a_thing
from priorzero.collect.ways import Trail

Known = dict[int, Cell]


def add(
    known: Known,
    actions: str,
    states: list[int],
    *places: str,
    paid: tuple[int, ...] = (),
    things: tuple[str, ...] = (),
    visits: int = 1,
    joined: int = 0,
):
    """An episode of one-letter actions came through these places; ``paid`` are the numbers of actions with a point."""
    scores = [float(sum(number <= n for number in paid)) for n in range(len(states))]
    trail = Trail(0, states, list(places), scores, list(actions), things)
    walk = trail.walk(len(actions))
    known[states[-1]] = Cell(walk, places[-1], things, trail.made, len(actions), visits, joined)


def crossings(
    known: Known, n: int = 1200, draw: Callable[[Known, np.random.Generator], Crossing | None] = to_a_point
) -> dict[tuple[str, str] | None, float]:
    """How often each state, by its way, with each rest of a way is drawn."""
    rng, found = np.random.default_rng(0), Counter()
    for _ in range(n):
        drawn = draw(known, rng)
        found[None if drawn is None else ("".join(drawn[0].walk.actions), "".join(drawn[1]))] += 1
    return {way: count / n for way, count in found.items()}


def drawn_pair(known: Known, seed: int = 0) -> tuple[str, Cell, str] | None:
    cells = known.values()
    return pair(right_behind(cells), together(cells), np.random.default_rng(seed))


def approx(found: dict, expected: dict):
    assert found.keys() == expected.keys()
    for way, share in expected.items():
        assert abs(found[way] - share) < 0.05, way


def two_points() -> Known:
    """Behind "a" the hall, where "b" makes a point; behind "y" the yard, where "z" does."""
    known: Known = {}
    add(known, "a", [0, 1], "start", "hall")
    add(known, "ab", [0, 1, 2], "start", "hall", "pit", paid=(2,))
    add(known, "y", [0, 3], "start", "yard")
    add(known, "yz", [0, 3, 4], "start", "yard", "roof", paid=(2,))
    return known


def test_a_way_goes_on_from_another_state_of_its_place():
    known = two_points()
    assert crossings(known, 20) == {None: 1.0}  # nobody was in the hall or the yard in another state
    add(known, "yc", [0, 3, 5], "start", "yard", "hall")
    # "b" is first missing from the second set, of 1 and 1/2; half of these look for the other point behind them
    approx(crossings(known), {("yc", "b"): 1 / 6, None: 5 / 6})
    add(known, "yzx", [0, 3, 4, 6], "start", "yard", "roof", "hall", paid=(2,), visits=4)
    # where the other point is made only this one, else 1 of 1 + 1 / sqrt(4)
    approx(crossings(known), {("yzx", "b"): 1 / 6 + 1 / 18, ("yc", "b"): 1 / 9, None: 2 / 3})


def test_any_step_of_the_way_where_such_a_state_is_known():
    known = two_points()
    add(known, "abc", [0, 1, 2, 7], "start", "hall", "pit", "yard", paid=(2,))
    add(known, "abs", [0, 1, 2, 8], "start", "hall", "pit", "start", paid=(2,))
    add(known, "", [0], "start")
    approx(crossings(known), {("abc", "z"): 1 / 3, ("abs", "yz"): 1 / 3, None: 1 / 3})


def test_a_point_is_not_made_again_behind_itself_nor_where_it_was_made():
    known = two_points()
    add(known, "abc", [0, 1, 2, 7], "start", "hall", "pit", "hall", paid=(2,))
    add(known, "yzx", [0, 3, 4, 8], "start", "yard", "roof", "yard", paid=(2,))
    add(known, "q", [0, 9], "start", "pit")  # where the way to the point ends
    assert crossings(known, 100) == {None: 1.0}


def test_ways_are_crossed_with_what_another_point_was_made_with():
    known: Known = {}
    add(known, "s", [0, 1], "start", "yard", things=("hat", "shovel"))
    add(known, "sd", [0, 1, 2], "start", "yard", "hole", paid=(2,))
    add(known, "m", [0, 3], "start", "beach", things=("hat", "match"))
    add(known, "mg", [0, 3, 4], "start", "beach", "boat", paid=(2,))
    for n, (place, things) in enumerate({"yard": ("shovel", "match"), "beach": ("hat", "shovel")}.items(), 10):
        add(known, "x", [0, n], "start", place, things=things)  # without the hat, without the match
    add(known, "r", [0, 15], "start", "yard", things=("hat", "shovel"))  # with nothing that "g" takes
    assert crossings(known, 100) == {None: 1.0}
    add(known, "t", [0, 20], "start", "yard", things=("hat", "shovel", "match"))
    approx(crossings(known), {("t", "d"): 1 / 6, None: 5 / 6})  # and never for "g" to be made already
    add(known, "sdt", [0, 1, 2, 21], "start", "yard", "hole", "beach", paid=(2,), things=("hat", "match", "shovel"))
    add(known, "sdu", [0, 1, 2, 22], "start", "yard", "hole", "beach", paid=(2,), things=("hat", "match"))
    # "g" in 2 of 3: behind "d" with the match, these two; else with the shovel, the first
    approx(crossings(known), {("t", "d"): 1 / 6, ("sdt", "g"): 1 / 2, ("sdu", "g"): 1 / 6, None: 1 / 6})


def test_half_of_the_time_what_a_point_takes_is_enough():
    """The shovel, which both ways to it had; the hat is what one of them carried."""
    known: Known = {}
    add(known, "s", [0, 1], "start", "yard", things=("hat", "shovel"))
    add(known, "sd", [0, 1, 2], "start", "yard", "hole", paid=(2,))
    add(known, "u", [0, 3], "start", "shed", things=("shovel",))
    add(known, "upd", [0, 3, 4, 5], "start", "shed", "yard", "hole", paid=(3,), things=("shovel",))
    add(known, "up", [0, 3, 4], "start", "shed", "yard", things=("shovel",))
    add(known, "m", [0, 6], "start", "beach")
    add(known, "mg", [0, 6, 7], "start", "beach", "boat", paid=(2,))
    add(known, "mgy", [0, 6, 7, 8], "start", "beach", "boat", "yard", paid=(2,), things=("shovel",))
    # "d" is 1 of 3. As "sd" does it, 2 of 3: half asks for the hat, which nobody has; half of the rest is behind "g".
    # As "upd" does it, 1 of 3, with the shovel alone, which is all that both had
    expected = {("mgy", "d"): 1 / 6, ("up", "d"): 1 / 36, ("s", "d"): 1 / 36, None: 7 / 9}
    approx(crossings(known), expected)


def test_a_way_is_gone_with_a_thing_more_where_it_never_was():
    known: Known = {}
    add(known, "", [0], "start")
    add(known, "a", [0, 1], "start", "hall")
    assert crossings(known, 20, with_a_thing) == {None: 1.0}  # nothing was ever carried
    add(known, "ab", [0, 1, 2], "start", "hall", "pit")
    add(known, "k", [0, 3], "start", "shed", things=("key",), visits=3)
    add(known, "kh", [0, 3, 4], "start", "shed", "hall", things=("key",))
    # of start 1, hall 1 / 2, pit 1, shed 1 / 4 only the pit, as nobody had the key at the start; drawn up to 8 times
    missed = (7 / 11) ** 8
    approx(crossings(known, draw=with_a_thing), {("kh", "b"): 1 - missed, None: missed})


def test_a_way_is_gone_with_all_that_was_in_hand_and_a_thing_more():
    known: Known = {}
    add(known, "", [0], "start")
    add(known, "r", [0, 5], "start", "hall", things=("rope",))
    add(known, "rb", [0, 5, 6], "start", "hall", "cave", things=("rope",))
    add(known, "k", [0, 3], "start", "shed", things=("key",))
    add(known, "kh", [0, 3, 4], "start", "shed", "hall", things=("key",))
    assert crossings(known, 100, with_a_thing) == {None: 1.0}
    add(known, "khr", [0, 3, 4, 7], "start", "shed", "hall", "hall", things=("key", "rope"))
    # the key in half: start 1, hall 1 / 3, shed 1 / 2, cave 1
    missed = (14 / 17) ** 8
    approx(crossings(known, draw=with_a_thing), {("khr", "b"): 1 - missed, None: missed})


def test_things_that_were_rarely_carried_come_first():
    known: Known = {}
    add(known, "a", [0, 1], "start", "hall")
    add(known, "ab", [0, 1, 2], "start", "hall", "pit")
    add(known, "k", [0, 3], "start", "hall", things=("key",), visits=4, joined=5)
    add(known, "r", [0, 4], "start", "hall", things=("rope",), visits=1)
    # the pit 1 of 1 + 1 / 10 and of 1 + 1 / 2
    key, rope = 1 / 10 * 10 / 11, 9 / 10 * 2 / 3  # else another draw
    expected = {("k", "b"): key / (key + rope), ("r", "b"): rope / (key + rope)}
    approx(crossings(known, draw=with_a_thing), expected)


def test_in_another_condition_it_is_another_thing_to_bring_and_the_same_in_hand():
    known: Known = {}
    add(known, "", [0], "start")
    add(known, "m", [0, 1], "start", "hall", things=("match\nnew",))
    add(known, "mb", [0, 1, 2], "start", "hall", "pit", things=("match\nnew",), visits=100_000)
    add(known, "l", [0, 3], "start", "hall", things=("match\nlit",))
    # the lit one, as the other is known so well: start 1, hall 1 / 2, pit 1
    missed = (3 / 5) ** 8
    approx(crossings(known, draw=with_a_thing), {("l", "b"): 1 - missed, None: missed})


def both(known: Known, rng: np.random.Generator) -> Crossing | None:
    return crossing(known, 0.5, rng)


def test_what_finds_nothing_leaves_it_to_the_other():
    known = two_points()
    add(known, "yc", [0, 3, 5], "start", "yard", "hall")
    approx(crossings(known, draw=both), {("yc", "b"): 1 / 6, None: 5 / 6})
    add(known, "yc", [0, 3, 5], "start", "yard", "hall", things=("key",))
    # the key to the pit in 1 of 1 + 1 + 1 + 1 / 2
    missed = 5 / 6 * (5 / 7) ** 8
    approx(crossings(known, draw=both), {("yc", "b"): 1 - missed, None: missed})


def test_what_has_no_share_is_not_done():
    """Nor where the other one finds nothing; else the share is that of the things."""
    known = two_points()
    add(known, "yc", [0, 3, 5], "start", "yard", "hall")
    approx(crossings(known, draw=lambda known, rng: crossing(known, 1.0, rng)), {None: 1.0})  # nothing was ever carried
    add(known, "kc", [0, 3, 5], "start", "yard", "hall", things=("key",))
    to_a_point_alone = crossings(known, draw=lambda known, rng: crossing(known, 0.0, rng))
    approx(to_a_point_alone, {("kc", "b"): 1 / 6, None: 5 / 6})
    missed = (5 / 7) ** 8  # of one with the key
    found = crossings(known, draw=lambda known, rng: crossing(known, 0.9, rng))
    approx(found, {("kc", "b"): 1 - missed * 5 / 6, None: missed * 5 / 6})


def test_points_that_were_made_together_are_not_crossed():
    known = two_points()
    add(known, "yc", [0, 3, 5], "start", "yard", "hall")
    assert drawn_pair(known) is not None
    add(known, "abcz", [0, 1, 2, 9, 10], "start", "hall", "pit", "yard", "roof", paid=(2, 4))
    assert drawn_pair(known) is None
    assert crossings(known, 20) == {None: 1.0}


def test_short_ways_to_a_point_more_often():
    known = two_points()
    add(known, "aab", [0, 1, 11, 12], "start", "hall", "hall", "pit", paid=(3,))
    pairs = [drawn_pair(known, seed) for seed in range(900)]
    ways = Counter((point, "".join(goal.walk.actions), made) for point, goal, made in pairs)
    # the hall's point is missing from the second set: 1 of 3, and the second way to it is half as likely
    expected = {
        ("yard: z", "yz", "hall: b"): 2 / 3,
        ("hall: b", "ab", "yard: z"): 2 / 9,
        ("hall: b", "aab", "yard: z"): 1 / 9,
    }
    approx({way: n / 900 for way, n in ways.items()}, expected)


def test_the_sets_with_the_highest_scores_come_first():
    known: Known = {}
    for n, paid in enumerate([(), (1,), (2,), (1, 3), (3,), (1, 2)]):
        add(known, "abc", [0, 1, 2, 10 + n], "p", "q", "r", "s", paid=paid)
    assert [sorted(points) for points in together(known.values())] == [["p: a", "r: c"], ["p: a", "q: b"]]
    add(known, "abcd", [0, 1, 2, 3, 30], "p", "q", "r", "s", "t", paid=(3, 4, 4))
    assert sorted(together(known.values())[0]) == ["r: c", "s: d"]  # with 3 points, two of them by one action


ways = st.lists(st.sets(st.integers(1, 5)).map(lambda paid: tuple(sorted(paid))), max_size=12)


@given(ways, st.integers(0, 99))
def test_the_first_of_a_pair_was_never_made_with_all_of_the_second_ones_set(drawn: list[tuple[int, ...]], seed: int):
    known: Known = {}
    for n, paid in enumerate(drawn):
        for steps in range(max(paid, default=0) + 1):
            states = [10 * n + t for t in range(steps + 1)]
            add(known, "abcde"[:steps], states, *"pqrstu"[: steps + 1], paid=tuple(t for t in paid if t <= steps))
    sets, made = together(known.values()), [set(cell.made) for cell in known.values()]
    assert not any(a < b for a in sets for b in sets)
    assert all(any(points <= largest for largest in sets) for points in made)
    assert all(points in made for points in sets)
    found = drawn_pair(known, seed)
    every = set().union(*made)
    assert (found is None) == (every in made or not every)
    if found is not None:
        point, goal, other = found
        assert goal.point == point
        assert other not in goal.made
        assert any(other in points and point not in points for points in sets)
