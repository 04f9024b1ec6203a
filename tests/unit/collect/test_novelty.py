from dataclasses import replace

import numpy as np
import pytest

from priorzero.collect.archive import Way
from priorzero.collect.novelty import Novelty, NoveltyConfig
from priorzero.types import Observation, Step


def step(look: str, inventory: str = "", game: str = "g", actions: tuple[str, ...] = ("east", "south", "west")) -> Step:
    return Step(Observation("You go.", look, inventory), 0.0, False, False, actions, 0.0, 1.0, game)


def make(
    weight: float = 2.0, of: tuple[str, ...] = ("look",), try_share: float = 0.0, return_share: float = 0.0
) -> Novelty:
    return Novelty(
        NoveltyConfig(weight=weight, try_share=try_share, return_share=return_share, imitate_share=0.5, of=of)
    )


def visit(novelty: Novelty, entered: Step, seen: set[int]) -> float:
    return novelty.visit(entered, seen, Way(0, ("east",), 0.0, 0))


def test_a_state_is_worth_less_in_every_episode():
    novelty = make()
    episodes = [set(), set(), set(), set()]
    assert [visit(novelty, step("kitchen"), seen) for seen in episodes] == [2.0, 2 / 2**0.5, 2 / 3**0.5, 1.0]
    assert visit(novelty, step("attic"), episodes[0]) == 2.0
    assert len(novelty) == 2


def test_an_episode_is_paid_once_for_a_state():
    novelty, seen = make(), set()
    assert [visit(novelty, step("kitchen"), seen) for _ in range(3)] == [2.0, 0.0, 0.0]
    assert visit(novelty, step("kitchen"), set()) == 2 / 2**0.5  # and counted once
    novelty.mark(step("hall"), seen)  # where the episode began
    assert visit(novelty, step("hall"), seen) == 0.0


def test_the_chosen_parts_tell_states_apart():
    room, all_parts = make(of=("look",)), make(of=("look", "inventory"))
    for novelty, expected in ((room, 0.0), (all_parts, 2.0)):
        seen: set[int] = set()
        assert visit(novelty, step("kitchen", "nothing"), seen) == 2.0
        assert visit(novelty, step("kitchen", "a knife"), seen) == expected
        assert visit(novelty, step("kitchen", "nothing", game="another"), seen) == 2.0


def test_without_weight_nothing_is_counted():
    novelty, seen = make(weight=0.0), set()
    assert visit(novelty, step("kitchen"), seen) == 0.0
    assert (len(novelty), seen) == (0, set())


def test_every_action_of_a_state_is_tried_in_turn():
    novelty, rng = make(try_share=1.0), np.random.default_rng(0)
    tried = [novelty.choose(step("kitchen"), 0, rng) for _ in range(9)]
    assert all(sorted(tried[i : i + 3]) == [0, 1, 2] for i in (0, 3, 6))
    assert {novelty.choose(step("attic"), 0, rng) for _ in range(3)} == {0, 1, 2}  # a state of its own


def test_a_share_of_the_steps_tries():
    novelty, rng = make(try_share=0.25), np.random.default_rng(0)
    chosen = [novelty.choose(step("kitchen", actions=("a", "b")), 0, rng) for _ in range(4000)]
    assert abs(sum(chosen) / len(chosen) - 0.25) < 0.02  # the other action is always the rarer one


def test_without_a_share_the_policy_is_obeyed_and_no_number_is_drawn():
    novelty, rng = make(), np.random.default_rng(0)
    assert [novelty.choose(step("kitchen"), i, rng) for i in (0, 2, 1)] == [0, 2, 1]
    assert rng.random() == np.random.default_rng(0).random()


def test_counts_survive():
    novelty, other = make(try_share=1.0), make(try_share=1.0)
    visit(novelty, step("kitchen"), set())
    tried = {novelty.choose(step("kitchen"), 0, np.random.default_rng(0)) for _ in range(2)}
    other.load_state_dict(novelty.state_dict())
    assert visit(other, step("kitchen"), set()) == 2 / 2**0.5
    assert {other.choose(step("kitchen"), 0, np.random.default_rng(0))} == {0, 1, 2} - tried


@pytest.mark.parametrize("changes", [{"weight": -1.0}, {"try_share": 1.1}, {"of": ()}, {"of": ("room",)}])
def test_what_cannot_be_is_refused(changes):
    with pytest.raises(ValueError, match=r"collector\.novelty is .*one or more of feedback, look, inventory"):
        NoveltyConfig(
            **({"weight": 1.0, "try_share": 0.0, "return_share": 0.0, "imitate_share": 0.5, "of": ("look",)} | changes)
        )


def test_the_way_to_the_highest_score_is_imitated_up_to_its_last_point():
    novelty, seen = make(return_share=1.0), set()
    few, many = Way(1, ("east",), 5.0, 1), Way(1, ("west", "west", "west"), 10.0, 2)
    novelty.visit(step("kitchen"), seen, few)
    assert novelty.imitated("g", few) == 1
    novelty.visit(step("attic"), seen, many)
    assert [novelty.imitated("g", way) for way in (few, many)] == [0, 2]
    never = Novelty(replace(novelty.config, imitate_share=0.0))
    never.visit(step("attic"), set(), many)
    assert never.imitated("g", many) == 0


def test_an_end_is_kept_only_where_it_is_the_best():
    """Nothing can be explored behind it."""
    novelty = make(return_share=1.0)
    novelty.visit(step("kitchen"), set(), Way(1, ("east",), 5.0, 1))
    for score, ways in ((5.0, 1), (6.0, 2)):
        end = replace(step(f"the end with {score}"), terminated=True, score=score)
        novelty.visit(end, set(), Way(1, ("east", "south"), score, 2))
        assert len(novelty.archive) == ways
    cut = replace(step("hall"), truncated=True, score=50.0)
    novelty.visit(cut, set(), Way(1, ("west",), 50.0, 1))
    assert len(novelty.archive) == 2
