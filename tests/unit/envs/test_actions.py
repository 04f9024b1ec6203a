from types import SimpleNamespace

from priorzero.envs.actions import _below, _by_holes, _words


def test_words_are_lower_case_and_keep_hyphens():
    assert _words(["A Small-ish mailbox, Bob's.", "x 2"]) == ["a", "small-ish", "mailbox", "bob's", "x"]


def test_templates_are_grouped_by_holes_without_duplicates():
    assert _by_holes(["wait", "take OBJ", "put OBJ in OBJ", "wait"]) == [["wait"], ["take OBJ"], ["put OBJ in OBJ"]]


def test_objects_inside_are_found_at_any_depth_and_loops_end():
    def thing(child: int, sibling: int) -> SimpleNamespace:
        return SimpleNamespace(child=child, sibling=sibling)

    # 1 holds 2 and 3; 3 holds 4; 4 wrongly points back to 2 and past the end
    objects = [thing(0, 0), thing(2, 0), thing(0, 3), thing(4, 0), thing(9, 2)]
    assert _below(objects, 1, set()) == {2, 3, 4}
    assert _below(objects, 1, {3}) == {2, 4}
    assert _below(objects, 0, set()) == set()
    assert _below(objects, 7, set()) == set()
