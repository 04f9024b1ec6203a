import io
from collections import Counter

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from priorzero.collect.archive import Archive
from priorzero.collect.ways import Trail, Way


def trail(
    actions: str,
    states: list[int],
    paid: tuple[int, ...] = (),
    score: float = 0.0,
    *,
    seed: int = 0,
    place: str = "room",
    things: tuple[str, ...] = (),
) -> Trail:
    """An episode of one-letter actions; ``paid`` are the numbers, from 1, of those that made a point."""
    scores = [score - sum(number > n for number in paid) for n in range(len(states))]
    return Trail(seed, states, [f"behind {place}"] * (len(states) - 1) + [place], scores, list(actions), things)


def enter(
    archive: Archive,
    state: int,
    actions: str,
    score: float = 0.0,
    *,
    game: str = "g",
    place: str = "room",
    things: tuple[str, ...] = (),
    counts: bool = True,
):
    states = [*range(100, 100 + len(actions)), state]
    way = trail(actions, states, score=score, seed=len(actions), place=place, things=things)
    archive.enter(game, way, counts=counts)


def drawn(archive: Archive, n: int, game: str = "g") -> list[str]:
    rng = np.random.default_rng(0)
    return ["".join(archive.draw(game, rng).actions) for _ in range(n)]


def test_the_way_with_the_most_points_is_kept_and_then_the_shortest():
    archive = Archive()
    steps = (("nnn", 5, "nnn"), ("nnnn", 5, "nnn"), ("ns", 5, "ns"), ("nsew", 6, "nsew"), ("n", 0, "nsew"))
    for actions, score, kept in steps:
        enter(archive, 1, actions, score)
        assert drawn(archive, 1) == [kept]
    assert len(archive) == 1
    assert archive.draw("g", np.random.default_rng(0)).seed == 4  # of the episode that went it


def test_nothing_is_known_of_a_game_that_was_never_played():
    archive = Archive()
    enter(archive, 1, "n")
    rng = np.random.default_rng(0)
    ways = (archive.draw, archive.best, archive.shortened, archive.crossed)
    assert [way("another", rng) for way in ways] == [None] * 4


def shares(archive: Archive, ways: list[str], n: int = 3000) -> list[float]:
    """How often each way is drawn first."""
    state, rng, count = archive.state_dict(), np.random.default_rng(0), dict.fromkeys(ways, 0)
    for _ in range(n):
        archive.load_state_dict(state)
        count["".join(archive.draw("g", rng).actions)] += 1
    return [count[way] / n for way in ways]


def test_scores_are_drawn_by_rank():
    archive = Archive()
    for state, score in ((1, 0.0), (2, 0.0), (3, 10.0), (4, 35.0)):
        enter(archive, state, "n" * state, score)
    # 1, 1/2, 1/3 of 11/6; the last one is shared by two
    np.testing.assert_allclose(shares(archive, ["nnnn", "nnn", "nn", "n"]), [6 / 11, 3 / 11, 1 / 11, 1 / 11], atol=0.03)


def test_a_score_where_all_is_known_is_drawn_less_often():
    archive = Archive()
    for _ in range(100):
        enter(archive, 1, "dead end", 10.0)
    for state, times in ((2, 1), (3, 4)):
        for _ in range(times):
            enter(archive, state, "n" * state, 5.0)
    # mean weights 1/10 and (1 + 1/2) / 2 = 3/4: 1/10 to 3/8, and that by 1 to 1/2
    np.testing.assert_allclose(
        shares(archive, ["dead end", "nn", "nnn"]), [0.1 / 0.475, 0.25 / 0.475, 0.125 / 0.475], atol=0.03
    )


def test_a_place_counts_for_the_square_root_of_its_states():
    archive = Archive()
    for state, times in ((1, 1), (2, 4), (3, 4)):
        for _ in range(times):
            enter(archive, state, "n" * state, place="hall")
    enter(archive, 4, "cellar", place="cellar")
    for _ in range(16):
        enter(archive, 5, "n" * 5, 5.0, place="hall")
    # mean weights: hall (1 + 1/2 + 1/2) / 3 = 2/3, counted sqrt(3) times, cellar 1, counted once: 1.1547 and 1
    # so 0 points (1.1547 + 1) / 2.7321 = 0.7887, by rank 0.3943, and 5 points 1/4
    total = 0.3943 + 0.25
    hall, cellar = 0.3943 * 1.1547 / 2.1547, 0.3943 / 2.1547
    expected = [hall / 2, hall / 4, hall / 4, cellar, 0.25]  # half of the hall's goes to its rare state
    found = shares(archive, ["n", "nn", "nnn", "cellar", "nnnnn"])
    np.testing.assert_allclose(found, [share / total for share in expected], atol=0.03)


def test_states_that_many_have_seen_are_drawn_less_often():
    archive = Archive()
    for _ in range(10_000):
        enter(archive, 1, "often")
    enter(archive, 1, "often", counts=False)  # twice in one episode counts once
    for _ in range(100):
        enter(archive, 2, "rare")
    found = drawn(archive, 55)  # 1/100 against 1/10, before the draws themselves count
    assert 0 < found.count("often") < 15


def test_who_only_passes_by_has_not_seen_it():
    archive = Archive(rare_place_share=1.0)
    for state, counts in ((1, True), (2, False)):
        for _ in range(9):
            enter(archive, state, "n" * state, place=f"room {state}", counts=counts)
    assert np.allclose(shares(archive, ["n", "nn"]), [1 / 10, 9 / 10], atol=0.02)  # nine visits, and as if one


def test_a_share_is_drawn_where_fewest_have_been():
    archive = Archive(rare_place_share=1.0)
    enter(archive, 1, "n", 10.0, place="hall")
    for state, visits in ((2, 4), (3, 1)):
        for _ in range(visits):
            enter(archive, state, "s" * state, 0.0, place="cave")
    # places 1/1 and 1/5 of a visit, then 1/sqrt(4) and 1/sqrt(1)
    expected = [5 / 6, 1 / 6 * 1 / 3, 1 / 6 * 2 / 3]
    assert np.allclose(shares(archive, ["n", "ss", "sss"]), expected, atol=0.02)


def test_what_is_rarely_carried_is_drawn_first_and_where_it_rarely_was():
    archive = Archive(rare_place_share=1.0)
    for state, visits, place, things in (
        (1, 9, "hall", ()),
        (2, 4, "hall", ("lamp",)),
        (3, 1, "attic", ("lamp",)),
        (4, 1, "attic", ("key", "lamp")),
    ):
        for _ in range(visits):
            enter(archive, state, "n" * state, place=place, things=things)
    # nothing 1/15, the lamp 1/6, the key 1/1; the hall 1/13 and the attic 1/2 without the lamp, 1/4 and 1/2 with it
    nothing, lamp, key = (share / (1 / 15 + 1 / 6 + 1) for share in (1 / 15, 1 / 6, 1))
    hall, attic = nothing * 2 / 15, nothing * 13 / 15
    # states of the hall 1/3 and 1/2, with the lamp one; of the attic both once
    expected = [hall * 2 / 5, hall * 3 / 5 + lamp / 3, attic / 2 + lamp / 3, attic / 2 + lamp / 3 + key]
    assert np.allclose(sum(expected), 1.0)
    assert np.allclose(shares(archive, ["n", "nn", "nnn", "nnnn"]), expected, atol=0.02)


def test_what_came_or_changed_since_the_last_draw_counts_as_if_it_had_been_there():
    archive = Archive(rare_place_share=1.0)
    entered = [(1, "n", ()), (2, "nn", ()), (3, "nnn", ("key",)), (1, "s", ("lamp", "key")), (4, "nnnn", ("lamp",))]
    for score, (state, actions, things) in enumerate(entered):  # the first state is found with other things later
        enter(archive, state, actions, float(score), place=f"place {len(actions)}", things=things)
        fresh = Archive(rare_place_share=1.0)
        fresh.load_state_dict(archive.state_dict())
        assert drawn(archive, 40) == drawn(fresh, 40)


def test_the_best_way_ends_with_its_last_point():
    archive, rng = Archive(), np.random.default_rng(0)
    archive.enter("g", trail("ab", [1, 2, 3]), counts=True)
    assert archive.best("g", rng) is None
    assert archive.highest_score is None
    archive.enter("g", trail("abc", [1, 2, 3, 4], paid=(2,), score=5.0), counts=True)
    assert archive.best("g", rng) == Way(None, ("a", "b"))
    assert archive.highest_score == 5.0
    archive.enter("g", trail("a", [1, 3], paid=(1,), score=5.0), counts=True)
    assert archive.best("g", rng) == Way(None, ("a",))  # as many, sooner
    archive.enter("g", trail("abcde", [1, 2, 3, 4, 5, 6], paid=(1, 3), score=6.0), counts=True)
    assert archive.best("g", rng) == Way(None, ("a", "b", "c"))
    archive.finish("g", trail("abcd", [1, 2, 3, 4, 7], paid=(1, 4), score=9.0, seed=1))
    assert archive.best("g", rng) == Way(None, ("a", "b", "c", "d"))
    assert 7 not in archive._cells["g"]  # an end is nowhere to go back to


def test_luck_is_shown_where_it_happened():
    archive, rng = Archive(), np.random.default_rng(0)
    archive.enter("g", trail("ab", [1, 2, 3], paid=(2,), score=5.0, seed=7), counts=True)
    mean, lucky = Way(None, ("a", "b")), Way(8, ("c", "d", "e"))
    archive.tested("g", mean.actions, 5.0)
    assert {archive.best("g", rng) for _ in range(40)} == {mean}
    archive.enter("g", trail("cde", [1, 4, 5, 6], paid=(3,), score=9.0, seed=8), counts=True)
    assert {archive.best("g", rng) for _ in range(40)} == {Way(None, lucky.actions)}  # as far as is known
    archive.tested("g", lucky.actions, 0.0)  # (9 + 0) / 2 on average
    found = Counter(archive.best("g", rng) for _ in range(400))
    assert set(found) == {mean, lucky}
    assert abs(found[lucky] / 400 - 0.5) < 0.08
    assert archive.highest_score == 9.0
    tried = {archive.shortened("g", rng) for _ in range(200)}  # both, and from any seed
    assert tried == {Way(None, actions, tried=False) for actions in (("b",), ("e",), ("c", "e"), ("d", "e"))}


def shortened(archive: Archive, n: int = 400) -> dict[str, int]:
    rng = np.random.default_rng(0)
    return Counter("".join(archive.shortened("g", rng).actions) for _ in range(n))


def test_detours_are_left_out():
    """Between two times in the same state, if it made no point: here 2 c d e 2 (not 3), and 6 h 6."""
    archive = Archive()
    #        a  b  c  d  e  f  g  h  i
    states = [1, 2, 3, 2, 4, 2, 5, 6, 6, 7]
    archive.enter("g", trail("abcdefghi", states, paid=(6, 9), score=8.0), counts=True)
    found = shortened(archive)
    # from the first 2 (b c d e), or from the second 2 (d e), and from 6 (h), in any way but none: half of the time
    detours = {"afghi", "abcfghi", "abcdefgi", "afgi", "abcfgi"}
    assert detours <= found.keys()
    assert 0.5 <= sum(found[way] for way in detours) / 400 < 0.75  # some are runs of actions as well
    assert all({"f", "i"} <= set(way) for way in found)  # which made the points


def test_a_few_actions_are_left_out_where_there_is_no_detour():
    archive = Archive()
    archive.enter("g", trail("abcde", [1, 2, 3, 4, 5, 6], paid=(2, 5), score=8.0), counts=True)
    found = shortened(archive)
    assert found.keys() == {"bcde", "abde", "abce", "abe"}
    # the start is a, c or d; c alone half of the time, for what is left out has one action with 1/2, two with 1/4, ...
    np.testing.assert_allclose(
        [found[way] / 400 for way in ("bcde", "abde", "abce", "abe")], [1 / 3, 1 / 6, 1 / 3, 1 / 6], atol=0.07
    )


def test_what_made_points_is_not_left_out():
    archive, rng = Archive(), np.random.default_rng(0)
    archive.enter("g", trail("ab", [1, 2, 1], paid=(1, 2), score=2.0), counts=True)
    assert archive.shortened("g", rng) is None


def crossings(archive: Archive, n: int = 400) -> Counter[str | None]:
    """How often each way comes first, of so many."""
    state, rng, found = archive.state_dict(), np.random.default_rng(0), Counter()
    for _ in range(n):
        archive.load_state_dict(state)
        way = archive.crossed("g", rng)
        found[None if way is None else "".join(way.actions)] += 1
    archive.load_state_dict(state)
    return found


def pass_by(
    archive: Archive, actions: str, states: list[int], *places: str, paid: int | None = None, things: tuple = ()
):
    """An episode of one-letter actions that came through these places, with a point behind its ``paid``-th action."""
    scores = [float(paid is not None and n >= paid) for n in range(len(states))]
    archive.enter("g", Trail(0, states, list(places), scores, list(actions), things), counts=True)


def test_ways_are_crossed_and_where_they_were_joined_comes_later():
    archive, rng = Archive(), np.random.default_rng(0)
    assert archive.crossed("g", rng) is None
    pass_by(archive, "a", [0, 1], "start", "hall")
    pass_by(archive, "ab", [0, 1, 2], "start", "hall", "pit", paid=2)
    assert archive.crossed("g", rng) is None  # one way made all known points
    pass_by(archive, "yz", [0, 3, 4], "start", "yard", "roof", paid=2)
    enter(archive, 7, "x", place="hall")
    for _ in range(9):
        enter(archive, 8, "yyc", place="hall")
    found = crossings(archive)
    assert found.keys() == {"xb", "yycb", None}
    assert abs(found["yycb"] / (found["xb"] + found["yycb"]) - 0.25) < 0.1  # 1 / sqrt(visits): 1 to 1/3
    drawn = [way for _ in range(600) if (way := archive.crossed("g", rng)) is not None]
    assert {way.tried for way in drawn} == {False}
    found = crossings(archive)
    assert abs(found["yycb"] / (found["xb"] + found["yycb"]) - 0.5) < 0.1
    assert {archive._cells["g"][state].visits for state in (7, 8)} == {
        1,
        9,
    }  # it says nothing of what can be done there


def test_a_way_is_tried_without_its_detours_when_it_is_drawn_first():
    """Here 2 c d e 2; the one without a step made a point, and stays."""
    archive, rng = Archive(), np.random.default_rng(0)
    archive.enter("g", trail("abcdefg", [1, 1, 2, 3, 4, 2, 5, 6], paid=(1,), score=8.0), counts=True)
    assert archive.draw("g", rng) == Way(0, tuple("abfg"), tried=False)
    later = {archive.draw("g", rng) for _ in range(20)}
    assert later == {Way(0, tuple("abcdefg")), Way(0, tuple("abfg"), tried=False)}
    archive.enter("g", trail("abfg", [1, 1, 2, 5, 6], paid=(1,), score=8.0), counts=True)  # it led there
    assert archive.draw("g", rng) == Way(0, tuple("abfg"))
    archive.enter("g", trail("fbg", [1, 2, 1, 6], score=9.0), counts=True)  # a better way with a detour
    assert archive.draw("g", rng) == Way(0, ("g",), tried=False)


def test_a_way_is_tried_without_some_of_its_detours_later():
    """Here 1 b 1 and 2 d 2."""
    archive, rng = Archive(), np.random.default_rng(0)
    archive.enter("g", trail("abcde", [0, 1, 1, 2, 2, 3]), counts=True)
    assert archive.draw("g", rng).actions == tuple("ace")
    assert {"".join(archive.draw("g", rng).actions) for _ in range(50)} == {"abcde", "acde", "abce", "ace"}


def test_a_way_joins_a_shorter_one_to_a_state_that_it_came_by():
    archive, rng = Archive(), np.random.default_rng(0)
    archive.enter("g", trail("abcd", [0, 1, 2, 3, 4]), counts=True)
    assert archive.draw("g", rng) == Way(0, tuple("abcd"))
    archive.enter("g", trail("xy", [0, 5, 3], seed=7), counts=True)
    found = {archive.draw("g", rng) for _ in range(20)}
    assert found == {Way(7, tuple("xyd"), tried=False), Way(0, tuple("abcd")), Way(7, tuple("xy"))}
    assert {archive.draw("g", rng) for _ in range(20)} == {Way(0, tuple("abcd")), Way(7, tuple("xy"))}  # was tried
    archive.enter("g", trail("zd", [0, 3, 4], seed=8), counts=True)  # still shorter
    assert Way(8, tuple("zd")) in {archive.draw("g", rng) for _ in range(20)}
    archive.enter("g", trail("m", [0, 2]), counts=True)
    assert {archive.draw("g", rng).actions for _ in range(20)} == {("z", "d"), ("x", "y"), ("m",)}  # none gets shorter


def test_a_way_joins_none_with_fewer_points():
    archive, rng = Archive(), np.random.default_rng(0)
    archive.enter("g", trail("abc", [0, 1, 2, 3], paid=(1,), score=1.0), counts=True)
    archive.enter("g", trail("x", [0, 2]), counts=True)
    assert {archive.draw("g", rng).actions for _ in range(20)} == {("a", "b", "c"), ("x",)}
    assert {archive.shortened("g", rng) for _ in range(20)} == {None}


def test_the_best_way_is_tried_behind_shorter_ones():
    archive = Archive()
    archive.enter("g", trail("abcd", [0, 1, 2, 3, 4], paid=(4,), score=5.0), counts=True)
    archive.enter("g", trail("x", [0, 3], score=4.0), counts=True)
    found = shortened(archive)
    assert abs(found["xd"] / 400 - 0.5) < 0.08
    assert sum(set(way) <= set("abcd") for way in found.elements()) == 400 - found["xd"]  # else as ever


trails = st.lists(
    st.tuples(
        st.sampled_from("ab"),
        st.lists(st.tuples(st.sampled_from("nsew"), st.integers(-9, 9) | st.just(-(2**63)), st.booleans()), max_size=6),
        st.integers(-9, 9),
    )
)


@settings(max_examples=60)
@given(trails)
def test_everything_survives_a_checkpoint(entries):
    archive, other = Archive(rare_place_share=0.5), Archive(rare_place_share=0.5)
    for game, steps, score in entries:
        scores = [score, *(score + sum(p for *_, p in steps[: n + 1]) for n in range(len(steps)))]
        places = [f"room {state % 3}" for state in (0, *(s for _, s, _ in steps))]
        things = ("key", "lamp")[: score % 3]
        way = Trail(3, [0, *(s for _, s, _ in steps)], places, scores, [a for a, _, _ in steps], things)
        archive.enter(game, way, counts=score % 2 == 0)
        archive.crossed(game, np.random.default_rng(score % 5))
        archive.tested(game, tuple(way.actions[: way.scored]), 1.0)
    file = io.BytesIO()
    torch.save(archive.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert len(other) == len(archive)
    for game in "ab":
        rngs = [np.random.default_rng(1), np.random.default_rng(1)]
        for _ in range(5):
            assert archive.draw(game, rngs[0]) == other.draw(game, rngs[1])
            assert archive.shortened(game, rngs[0]) == other.shortened(game, rngs[1])
            assert archive.crossed(game, rngs[0]) == other.crossed(game, rngs[1])
            best = archive.best(game, rngs[0])
            assert best == other.best(game, rngs[1])
            if best is not None:  # what leads then depends on what was tried how often
                archive.tested(game, best.actions, -9.0)
                other.tested(game, best.actions, -9.0)
            archive.ask(game)
            other.ask(game)
            assert archive.newness(game, 9) == other.newness(game, 9)
    assert archive.highest_score == other.highest_score


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=20), st.integers(0, 99))
def test_a_shortened_way_keeps_what_made_points(steps, seed):
    states, paid = [0, *(state for state, _ in steps)], [p for _, p in steps]
    archive = Archive()
    scores = [float(sum(paid[:n])) for n in range(len(states))]
    way = Trail(0, states, ["room"] * len(states), scores, [str(t) for t in range(len(steps))])
    archive.enter("g", way, counts=True)
    shorter = archive.shortened("g", np.random.default_rng(seed))
    if shorter is None:
        return
    kept = [int(action) for action in shorter.actions]
    last = max(n for n in range(len(steps)) if paid[n])
    assert kept == sorted(kept)
    assert len(kept) <= last
    assert {n for n in range(len(steps)) if paid[n]} <= set(kept)
