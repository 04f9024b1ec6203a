from types import SimpleNamespace

from priorzero.envs.object_words import Surroundings, _followers, _words, below


def node(name: str = "", parent: int = 0, sibling: int = 0, child: int = 0, attr: bytes = b"\0") -> SimpleNamespace:
    return SimpleNamespace(name=name, parent=parent, sibling=sibling, child=child, _attr=attr)


def test_words_are_lower_case_and_keep_hyphens():
    assert _words(["A Small-ish mailbox, Bob's.", "x 2"]) == ["a", "small-ish", "mailbox", "bob's", "x"]


def test_followers_are_the_words_right_after():
    assert _followers(["a small mailbox", "door"]) == {("a", "small"), ("small", "mailbox")}


def test_objects_inside_are_found_at_any_depth_and_loops_end():
    # 1 holds 2 and 3; 3 holds 4; 4 wrongly points back to 2 and past the end
    objects = [node(), node(child=2), node(sibling=3), node(child=4), node(child=9, sibling=2)]
    assert below(objects, 1, set()) == {2, 3, 4}
    assert below(objects, 1, {3}) == {2, 4}
    assert below(objects, 0, set()) == set()
    assert below(objects, 7, set()) == set()


def test_surroundings_say_what_is_near_what_is_carried_and_in_what_condition():
    # the room 1 holds the player 2 (who carries 3) and two equal coins
    objects = [
        node(),
        node("Hall", child=2),
        node("you", parent=1, sibling=4, child=3),
        node("brass lamp", parent=2, attr=b"\1"),
        node("coin", parent=1, sibling=5),
        node("coin", parent=1),
    ]
    game = SimpleNamespace(get_world_objects=lambda: objects, player_obj_num=2)
    found = Surroundings(game)
    assert (found.room, found.names) == (1, ["brass lamp", "coin", "coin"])
    assert (found.held_words, found.heads) == ({"brass", "lamp"}, {"lamp", "coin"})
    lamp = [("brass lamp", "01", 2, False)]
    assert found.attributes == {"brass": lamp, "lamp": lamp, "coin": [("coin", "00", 1, False)]}


def surroundings(*held: str) -> Surroundings:
    """In the hand of the player 2, in room 1."""
    things = [node(name, parent=2, sibling=n + 1) for n, name in enumerate(held, 3)]
    things[-1].sibling = 0
    objects = [node(), node("Hall", child=2), node("you", parent=1, child=3), *things]
    return Surroundings(SimpleNamespace(get_world_objects=lambda: objects, player_obj_num=2))


def test_what_is_described_alike_is_told_apart_by_the_names_in_the_tree():
    dark = surroundings("brass lamp", "brass key", "key", "coin")
    # the key alone may be the brass one; "pitch" names nothing that is known
    parts = dark.apart({"brass", "lamp", "key", "coin", "pitch"})
    assert sorted(map(sorted, parts)) == [["brass", "key"], ["brass", "lamp"], ["coin"], ["pitch"]]
    assert dark.apart({"brass", "lamp", "shiny"}) == [{"brass", "lamp", "shiny"}]  # one object
    assert dark.apart({"wall", "door"}) == [{"wall", "door"}]  # none
