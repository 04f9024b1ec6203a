import pytest

from priorzero.collect.novelty import Novelty, NoveltyConfig
from priorzero.types import Observation, Step


def step(look: str, inventory: str = "", game: str = "g") -> Step:
    return Step(Observation("You go.", look, inventory), 0.0, False, False, ("go",), 0.0, 1.0, game)


def make(weight: float = 2.0, of: tuple[str, ...] = ("look",)) -> Novelty:
    return Novelty(NoveltyConfig(weight=weight, of=of))


def test_a_state_is_worth_less_in_every_episode():
    novelty = make()
    episodes = [set(), set(), set(), set()]
    assert [novelty.visit(step("kitchen"), seen) for seen in episodes] == [2.0, 2 / 2**0.5, 2 / 3**0.5, 1.0]
    assert novelty.visit(step("attic"), episodes[0]) == 2.0
    assert len(novelty) == 2


def test_an_episode_is_paid_once_for_a_state():
    novelty, seen = make(), set()
    assert [novelty.visit(step("kitchen"), seen) for _ in range(3)] == [2.0, 0.0, 0.0]
    assert novelty.visit(step("kitchen"), set()) == 2 / 2**0.5  # and counted once
    novelty.mark(step("hall"), seen)  # where the episode began
    assert novelty.visit(step("hall"), seen) == 0.0


def test_the_chosen_parts_tell_states_apart():
    room, all_parts = make(of=("look",)), make(of=("look", "inventory"))
    for novelty, expected in ((room, 0.0), (all_parts, 2.0)):
        seen: set[int] = set()
        assert novelty.visit(step("kitchen", "nothing"), seen) == 2.0
        assert novelty.visit(step("kitchen", "a knife"), seen) == expected
        assert novelty.visit(step("kitchen", "nothing", game="another"), seen) == 2.0


def test_without_weight_nothing_is_counted():
    novelty, seen = make(weight=0.0), set()
    assert novelty.visit(step("kitchen"), seen) == 0.0
    assert (len(novelty), seen) == (0, set())


def test_counts_survive():
    novelty, other = make(), make()
    novelty.visit(step("kitchen"), set())
    other.load_state_dict(novelty.state_dict())
    assert other.visit(step("kitchen"), set()) == 2 / 2**0.5


@pytest.mark.parametrize("changes", [{"weight": -1.0}, {"of": ()}, {"of": ("room",)}])
def test_what_cannot_be_is_refused(changes):
    with pytest.raises(ValueError, match=r"collector\.novelty is .*one or more of feedback, look, inventory"):
        NoveltyConfig(**({"weight": 1.0, "of": ("look",)} | changes))
