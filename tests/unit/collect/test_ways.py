from priorzero.collect.ways import BestWays, Trail, names, place


def trail(actions: str, *scores: float) -> Trail:
    """An episode of one-letter actions, from no points on; ``scores`` behind each."""
    return Trail(3, list(range(len(scores) + 1)), ["room"] * (len(scores) + 1), [0.0, *scores], list(actions))


def found(ways: BestWays, actions: str, score: float, *, solves: bool = False) -> None:
    """An episode with all of its points behind its last action."""
    ways.compare(trail(actions, *[0.0] * (len(actions) - 1), score), solves=solves)


def leads(ways: BestWays) -> str:
    return "".join(ways.leader.walk.actions)


def test_things_have_names_in_any_condition():
    assert names(("lamp\n08", "lamp\n0a", "match in bag\n08", "key")) == {"lamp", "match in bag", "key"}


def test_a_trail_knows_its_last_point():
    assert trail("nsew", 5.0, 5.0, 7.0, 4.0).scored == 3
    assert trail("ns", 0.0, -1.0).scored == 0
    walk = trail("nsew", 5.0, 5.0, 7.0, 4.0).walk(3)
    assert (walk.actions, walk.states, walk.scores) == (("n", "s", "e"), (0, 1, 2, 3), (0.0, 5.0, 5.0, 7.0))
    assert walk.paid == [True, False, True]


def test_a_trail_knows_what_made_its_points():
    way = Trail(3, [0, 1, 2, 3], ["hall", "attic", "hall", "roof"], [0.0, 5.0, 3.0, 3.5], ["up", "down", "climb"])
    assert way.made == ("hall: up", "hall: climb")
    assert Trail(3, [0], ["hall"], [0.0]).made == ()
    dark, light = (Trail(3, [0, 1], [place(name, "95"), "pit"], [0.0, 5.0], ["dig"]) for name in ("Darkness", "Cave"))
    assert dark.made == light.made == ("95: dig",)  # one point, and one room


def test_luck_does_not_lead():
    """A way is worth what it makes on average when it is gone again."""
    ways = BestWays()
    found(ways, "aab", 5.0)
    for _ in range(3):
        ways.tested(tuple("aab"), 5.0)
    found(ways, "ab", 5.0)
    assert leads(ways) == "ab"  # as good, as far as is known
    found(ways, "c", 5.0)
    found(ways, "ba", 5.0)
    assert leads(ways) == "c"
    ways.tested(tuple("ab"), 1.0)  # was left for it: one way at a time is on trial, the best
    ways.tested(tuple("c"), 1.0)  # (5 + 1) / 2 on average
    assert leads(ways) == "aab"
    found(ways, "c", 5.0)  # again by luck
    assert (leads(ways), len(ways.attempts)) == ("aab", 2)
    found(ways, "abbb", 5.0)
    assert leads(ways) == "aab"  # is longer, and no better
    found(ways, "abbb", 9.0)
    assert leads(ways) == "abbb"
    for _ in range(2):
        ways.tested(tuple("abbb"), 3.0)  # (9 + 3 + 3) / 3 = 5, by more actions
    assert leads(ways) == "aab"
    assert "".join(ways.luckiest.actions) == "abbb"
    found(ways, "bbb", 9.0)  # with fewer actions
    assert ("".join(ways.luckiest.actions), ways.luckiest.scores[-1]) == ("bbb", 9.0)


def test_the_eight_best_are_kept():
    ways = BestWays()
    for score in range(1, 31):
        found(ways, f"{score:02}", float(score), solves=score == 30)
        assert leads(ways) == f"{score:02}"
        ways.tested(tuple(f"{score:02}"), float(score))
    assert [attempt.worth for attempt in ways.attempts] == list(range(23, 31))
    assert [attempt.solves for attempt in ways.attempts] == [False] * 7 + [True]


def test_without_points_there_is_no_way():
    ways = BestWays()
    ways.compare(trail("ab", 0.0, -5.0), solves=False)
    ways.tested(("a", "b"), 3.0)
    assert (ways.leader, ways.luckiest, ways.attempts) == (None, None, [])
