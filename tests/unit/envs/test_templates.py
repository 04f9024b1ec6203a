from hypothesis import given
from hypothesis import strategies as st

from priorzero.envs.templates import (
    ALL,
    MATURE,
    Experience,
    Filling,
    Templates,
    Thing,
    digest,
    pair_digest,
    tried_digests,
)

COUNTS = {"examine": 50, "put": 40, "take": 30, "inflate": 3, "inflates": 1, "wait": 2}
GRAMMAR = ["wait", "take OBJ", "examin OBJ", "put OBJ in OBJ", "wait", "save", "restore OBJ"]


def thing(name: str, condition: str = "", room: int = 1) -> Thing:
    number = digest(name, condition)
    return Thing(name, number, digest(number, room))


def templates() -> Templates:
    return Templates(GRAMMAR, 6, COUNTS)


def test_templates_are_sorted_by_holes_completed_and_without_commands_to_the_interpreter():
    found = Templates([*GRAMMAR, "inflat OBJ", "look undern OBJ", "xyzzyx OBJ"], 6, COUNTS)
    assert found.plain == ["wait"]
    assert found.single == ["take OBJ", "examine OBJ", "inflate OBJ", "look underneath OBJ", "xyzzyx OBJ"]
    assert found.double == ["put OBJ in OBJ"]


def test_everything_is_tried_once_then_only_what_worked():
    things = [thing(ALL), thing("coin"), thing("purse")]
    known = Experience()
    everything = templates().fill_all(things)
    # 1 plain, 2 single x 3 words, 1 double x 6 pairs
    assert len(everything) == 13
    assert everything["put coin in purse"] == Filling("put OBJ in OBJ", "coin", "purse")
    assert templates().fill(things, known) == everything
    known.tried |= tried_digests(things)
    assert list(templates().fill(things, known)) == ["wait"]
    known.useful |= {Filling("take OBJ", "coin"), Filling("put OBJ in OBJ", "coin", "purse")}
    # a template with one hole that worked is worth every word; one with two, the words that worked together
    assert list(templates().fill(things, known)) == ["wait", "take all", "take coin", "take purse", "put coin in purse"]


def test_a_word_that_worked_with_two_others_is_tried_with_all():
    things = [thing(name) for name in ("bell", "coin", "purse", "sack")]
    known = Experience(tried_digests(things), {Filling("put OBJ in OBJ", "coin", "purse")})
    known.useful.add(Filling("put OBJ in OBJ", "bell", "purse"))
    puts = {action for action in templates().fill(things, known) if action.startswith("put")}
    assert puts == {"put coin in purse", "put bell in purse", "put sack in purse"}
    known.tried |= set(range(MATURE))  # then the sack must have been put somewhere before
    assert "put sack in purse" not in templates().fill(things, known)
    known.useful.add(Filling("put OBJ in OBJ", "sack", "coin"))
    assert "put sack in purse" in templates().fill(things, known)


def test_a_new_condition_is_tried_with_everything_and_a_new_room_with_single_objects():
    known = Experience(tried_digests([thing("coin"), thing("purse")]))
    changed = templates().fill([thing("coin", "hot"), thing("purse")], known)
    assert set(changed) == {"wait", "take coin", "examine coin", "put coin in purse", "put purse in coin"}
    moved = templates().fill([thing("coin", room=2), thing("purse")], known)
    assert set(moved) == {"wait", "take coin", "examine coin"}


def test_once_much_is_known_templates_that_never_worked_are_for_words_that_never_met():
    known = Experience(tried_digests([thing("coin"), thing("purse")]) | set(range(MATURE)))
    hot = thing("coin", "hot")
    assert not any("put" in action for action in templates().fill([hot, thing("purse")], known))
    assert "put bell in coin" in templates().fill([hot, thing("bell")], known)
    known.useful.add(Filling("put OBJ in OBJ", "sack", "box"))
    assert "put coin in purse" in templates().fill([hot, thing("purse")], known)


def test_short_natural_phrases_come_first():
    actions = ["take all", "put down coin", "examine coin", "take coin", "wait"]
    assert sorted(actions, key=templates().unnaturalness) == [
        "wait",
        "examine coin",
        "take coin",
        "put down coin",
        "take all",
    ]


words = st.sampled_from(["bell", "coin", "purse", "sack", ALL])
conditions = st.sampled_from(["", "hot", "held"])


@given(st.lists(st.tuples(words, conditions), unique_by=lambda pair: pair[0]), st.data())
def test_fast_candidates_are_among_all_candidates_and_never_lose_what_worked(pairs, data):
    things = [thing(*pair) for pair in pairs]
    everything = templates().fill_all(things)
    with_objects = [filling for filling in everything.values() if filling.first]
    useful = data.draw(st.sets(st.sampled_from(with_objects))) if with_objects else set()
    known = Experience(tried_digests(things), set(useful))
    fast = templates().fill(things, known)
    assert fast.items() <= everything.items()
    assert useful <= set(fast.values())


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1))
def test_digests_fit_into_a_column_of_sqlite(a: int, b: int):
    assert 0 <= pair_digest(a, b) < 2**63
    assert 0 <= digest(a, b) < 2**63


def test_digests_are_the_same_in_every_process():
    assert digest("coin", 1) == 3511277401157180388
