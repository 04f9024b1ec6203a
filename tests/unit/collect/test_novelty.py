from dataclasses import replace

import numpy as np
import pytest

from priorzero.collect.novelty import Novelty, NoveltyConfig, Plan
from priorzero.collect.ways import Trail
from priorzero.types import Observation, Step


def step(look: str, inventory: str = "", game: str = "g", actions: tuple[str, ...] = ("east", "south", "west")) -> Step:
    return Step(Observation("You go.", look, inventory), 0.0, False, False, actions, 0.0, 100.0, game)


def make(
    weight: float = 2.0,
    of: tuple[str, ...] = ("look",),
    try_share: float = 0.0,
    return_share: float = 0.0,
    count_passing: bool = False,
) -> Novelty:
    return Novelty(
        NoveltyConfig(
            weight=weight,
            try_share=try_share,
            return_share=return_share,
            return_policy="own",
            return_try_share=0.5,
            imitate_share=0.5,
            imitate_first=0,
            cross_share=0.0,
            carry_share=0.5,
            rare_place_share=0.0,
            count_passing=count_passing,
            of=of,
        )
    )


def visit(novelty: Novelty, entered: Step, trail: Trail) -> float:
    return novelty.visit(entered, trail, "east")


@pytest.mark.parametrize("told", ["room", "objects"])
def test_rooms_that_look_alike_are_told_apart(told):
    dark = step("It is pitch dark.")
    for of, states in ((("look", told), 2), (("look",), 1)):
        novelty = make(of=of)
        for number in ("74", "77", "74"):
            visit(novelty, replace(dark, **{told: number}), Trail(0))
        assert len(novelty) == states


def test_a_state_is_worth_less_in_every_episode():
    novelty = make()
    episodes = [Trail(0) for _ in range(4)]
    assert [visit(novelty, step("kitchen"), seen) for seen in episodes] == [2.0, 2 / 2**0.5, 2 / 3**0.5, 1.0]
    assert visit(novelty, step("attic"), episodes[0]) == 2.0
    assert len(novelty) == 2


def test_an_episode_is_paid_once_for_a_state():
    novelty, seen = make(), Trail(0)
    assert [visit(novelty, step("kitchen"), seen) for _ in range(3)] == [2.0, 0.0, 0.0]
    assert visit(novelty, step("kitchen"), Trail(0)) == 2 / 2**0.5  # and counted once
    novelty.mark(step("hall"), seen)  # where the episode began
    assert visit(novelty, step("hall"), seen) == 0.0


def test_the_chosen_parts_tell_states_apart():
    room, all_parts = make(of=("look",)), make(of=("look", "inventory"))
    for novelty, expected in ((room, 0.0), (all_parts, 2.0)):
        seen = Trail(0)
        assert visit(novelty, step("kitchen", "nothing"), seen) == 2.0
        assert visit(novelty, step("kitchen", "a knife"), seen) == expected
        assert visit(novelty, step("kitchen", "nothing", game="another"), seen) == 2.0


def test_without_weight_nothing_is_counted():
    novelty, seen = make(weight=0.0), Trail(0)
    assert visit(novelty, step("kitchen"), seen) == 0.0
    assert (len(novelty), seen) == (0, Trail(0))


def test_every_action_of_a_place_is_tried_in_turn():
    novelty, rng = make(try_share=1.0), np.random.default_rng(0)
    tried = [novelty.choose(step("kitchen"), 0, rng) for _ in range(9)]
    assert all(sorted(tried[i : i + 3]) == [0, 1, 2] for i in (0, 3, 6))
    assert {novelty.choose(step("attic"), 0, rng) for _ in range(3)} == {0, 1, 2}  # a place of its own


def test_what_could_not_be_done_before_in_a_place_is_tried_first():
    novelty, rng = make(try_share=1.0), np.random.default_rng(0)
    for _ in range(3):
        novelty.choose(step("kitchen\nIt is warm."), 0, rng)
    carrying = step("kitchen\nIt is cold.", "a shovel", actions=("east", "south", "dig", "west"))
    assert novelty.choose(carrying, 0, rng) == 2
    assert {novelty.choose(replace(carrying, room="74"), 0, rng) for _ in range(4)} == {0, 1, 2, 3}  # another kitchen


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
    visit(novelty, step("kitchen"), Trail(0))
    tried = {novelty.choose(step("kitchen"), 0, np.random.default_rng(0)) for _ in range(2)}
    other.load_state_dict(novelty.state_dict())
    assert visit(other, step("kitchen"), Trail(0)) == 2 / 2**0.5
    assert {other.choose(step("kitchen"), 0, np.random.default_rng(0))} == {0, 1, 2} - tried


@pytest.mark.parametrize(
    "changes",
    [
        {"weight": -1.0},
        {"try_share": 1.1},
        {"rare_place_share": -0.1},
        {"imitate_share": 0.6, "cross_share": 0.5},
        {"carry_share": 1.1},
        {"imitate_first": -1},
        {"return_policy": "nobody"},
        {"of": ()},
        {"of": ("smell",)},
    ],
)
def test_what_cannot_be_is_refused(changes):
    with pytest.raises(
        ValueError,
        match=r"collector\.novelty is .*own, random, errands.*more of feedback, look, inventory, score, room, objects",
    ):
        NoveltyConfig(
            **(
                {
                    "weight": 1.0,
                    "try_share": 0.0,
                    "return_share": 0.0,
                    "return_policy": "own",
                    "return_try_share": 0.5,
                    "imitate_share": 0.5,
                    "imitate_first": 0,
                    "cross_share": 0.0,
                    "carry_share": 0.5,
                    "rare_place_share": 0.0,
                    "count_passing": False,
                    "of": ("look",),
                }
                | changes
            )
        )


def played(novelty: Novelty, *steps: tuple[str, float], seed: int = 0) -> Trail:
    """An episode through these rooms, with these rewards."""
    trail, score = Trail(seed), 0.0
    novelty.mark(step("start"), trail)
    for look, reward in steps:
        score += reward
        novelty.visit(replace(step(look), reward=reward, score=score), trail, f"to {look}")
    return trail


def test_how_episodes_begin():
    novelty, rng = make(return_share=1.0), np.random.default_rng(0)
    assert novelty.begin("g", rng) is None  # nothing is known
    played(novelty, ("hall", 5.0), ("attic", 0.0), ("hall", 0.0), ("garden", 1.0), ("shed", 0.0), seed=3)
    plans = [novelty.begin("g", rng) for _ in range(400)]
    assert {plan.seed for plan in plans if plan.kind == "return"} == {3}
    best = [plan for plan in plans if plan.kind == "imitate"]
    assert {plan.actions for plan in best} == {("to hall", "to attic", "to hall", "to garden")}
    assert {(plan.seed, plan.imitates) for plan in best} == {(None, best[0].actions)}  # from any seed
    trials = [plan for plan in plans if plan.kind == "trial"]
    assert {plan.seed for plan in trials} == {None, 3}  # ways to other states are tried where they were found
    assert ("to hall", "to garden") in {plan.actions for plan in trials}
    assert all(len(plan.actions) < 4 for plan in trials)
    assert {len(plan.actions) for plan in plans if plan not in best and plan not in trials} == {1, 2, 4, 5}
    shortened = [plan for plan in trials if plan.seed is None]
    np.testing.assert_allclose([len(best) / 400, len(shortened) / 400], 0.25, atol=0.08)  # half of imitate_share each


def test_a_new_way_is_imitated_first():
    """As many episodes as are told ask for it or shorten it, all at first."""
    novelty, rng = make(return_share=1.0), np.random.default_rng(0)
    novelty.config = replace(novelty.config, imitate_share=0.2, imitate_first=10)
    played(novelty, ("hall", 0.0), seed=3)
    assert sum(novelty.begin("g", rng) is not None for _ in range(300)) > 200  # no way makes a point: no other share

    def imitating(asked: int) -> float:
        state = novelty.state_dict()
        (game, *counts, _), *others = state["archive"]["attempts"]
        state["archive"]["attempts"] = [(game, *counts, asked), *others]
        plans = []
        for _ in range(300):
            novelty.load_state_dict(state)
            plans.append(novelty.begin("g", rng))
        return sum(plan.seed is None for plan in plans) / 300

    played(novelty, ("hall", 5.0), ("attic", 0.0), ("shed", 1.0), seed=4)
    assert imitating(0) == 1.0
    for asked, share in ((5, 0.6), (10, 0.2), (20, 0.2)):
        assert abs(imitating(asked) - share) < 0.09
    novelty.load_state_dict(novelty.state_dict())
    for _ in range(60):
        novelty.begin("g", rng)
    (way,) = novelty.archive._best["g"].attempts
    assert way.asked > 20  # what asks is counted
    played(novelty, ("attic", 7.0), seed=5)
    assert novelty.begin("g", rng).seed is None  # another way is the best, and new


def test_what_was_imitated_is_worth_the_score_behind_it():
    """Not what came after it; actions that were not valid were left out."""
    novelty, rng = make(return_share=1.0), np.random.default_rng(0)
    novelty.config = replace(novelty.config, imitate_share=1.0)
    played(novelty, ("hall", 5.0), ("attic", 1.0), seed=3)
    plan = next(plan for _ in range(99) if (plan := novelty.begin("g", rng)).kind == "imitate")
    assert plan.imitates == ("to hall", "to attic")
    (way,) = novelty.archive._best["g"].attempts
    for plays, actions, score in (
        ([("hall", 5.0), ("attic", -3.0), ("yard", 9.0)], 2, 2.0),
        ([("hall", 4.0)], 2, 4.0),  # it ended there
        ([("hall", 3.0), ("yard", 9.0)], 1, 3.0),  # the rest was left out
    ):
        before = way.total
        trail = played(make(return_share=1.0), *plays)
        novelty.finish("g", trail, replace(plan, actions=plan.actions[:actions]))
        assert way.total - before == score
    assert way.worth == (6.0 + 2.0 + 4.0 + 3.0) / 4
    novelty.finish("g", trail, replace(plan, kind="trial", imitates=()))
    assert way.tries == 3


def test_luck_is_imitated_in_its_seed_and_not_counted():
    novelty, rng = make(return_share=1.0), np.random.default_rng(0)
    novelty.config = replace(novelty.config, imitate_share=1.0)
    played(novelty, ("hall", 5.0), seed=3)
    novelty.archive.tested("g", ("to hall",), 5.0)
    played(novelty, ("attic", 9.0), seed=4)
    novelty.archive.tested("g", ("to attic",), 0.0)
    plans = {novelty.begin("g", rng) for _ in range(40)}
    hall, attic = ("to hall",), ("to attic",)
    assert plans == {Plan(None, hall, "imitate", hall), Plan(4, attic, "imitate")}


def test_without_imitation_episodes_go_back_only():
    novelty = Novelty(replace(make(return_share=1.0).config, imitate_share=0.0))
    played(novelty, ("hall", 5.0), ("start", 0.0), ("garden", 1.0))
    plans = [novelty.begin("g", np.random.default_rng(n)) for n in range(40)]
    assert {plan.kind for plan in plans} == {"return"}


def test_a_game_of_which_all_is_known_is_imitated_only():
    novelty, rng = make(return_share=1.0), np.random.default_rng(0)
    assert novelty.config.imitate_share == 0.5
    for score, kinds in ((5.0, {"imitate", "return"}), (7.0, {"imitate"})):
        trail = Trail(0)
        novelty.mark(step("start"), trail)
        novelty.visit(replace(step("hall"), reward=score, score=score, max_score=7.0), trail, f"win {score}")
        assert {novelty.begin("g", rng).kind for _ in range(40)} == kinds
    novelty.archive.tested("g", ("win 7.0",), 7.0)
    assert {novelty.begin("g", rng).kind for _ in range(40)} == {"imitate"}
    lucky = Novelty(novelty.config)
    lucky.load_state_dict(novelty.state_dict())
    lucky.archive.tested("g", ("win 7.0",), 6.0)  # not always: there is something to find
    assert {lucky.begin("g", rng).kind for _ in range(40)} == {"imitate", "return"}
    explorer = Novelty(replace(novelty.config, imitate_share=0.0))
    explorer.load_state_dict(novelty.state_dict())
    assert {explorer.begin("g", rng).kind for _ in range(40)} == {"return"}


def test_a_share_of_the_episodes_crosses():
    """With what was done elsewhere in mind, to where the points are: here from a hall where a key lies."""
    novelty, rng = make(return_share=1.0), np.random.default_rng(0)
    novelty.config = replace(novelty.config, imitate_share=0.3, cross_share=0.5)
    played(novelty, ("hall", 0.0), ("garden", 1.0), seed=3)
    assert novelty.archive.crossed("g", rng) is None
    assert "return" in {novelty.begin("g", rng).kind for _ in range(40)}  # what cannot cross goes back
    played(novelty, ("shed", 1.0), seed=4)  # another point, of another way
    other = Trail(5)
    novelty.mark(step("start"), other)
    novelty.visit(step("hall\nA key lies here."), other, "dig")
    plans = [novelty.begin("g", rng) for _ in range(400)]
    crossed = [plan for plan in plans if plan.actions == ("dig", "to garden")]
    assert {(plan.kind, plan.seed) for plan in crossed} == {("trial", 5)}
    assert abs(len(crossed) / 400 - 0.5 / 6) < 0.04  # half of the pairs' turns, where the shed is still to come: 1 of 3


@pytest.mark.parametrize("counted", [False, True])
def test_what_a_plan_comes_by_is_known_and_counted_where_told_so(counted: bool):
    """As a visit, and as where its things have been; its novelty is paid for in any case."""
    novelty, trail = make(return_share=1.0, weight=2.0, count_passing=counted), Trail(1)
    novelty.mark(step("start"), trail)
    hall = replace(step("hall"), carried=("key\n04",))
    assert [novelty.visit(hall, trail, "in", passes=True), novelty.visit(step("pit"), trail, "on")] == [2.0, 2.0]
    cells = novelty.archive._cells["g"]
    assert [(cell.place, cell.visits) for cell in cells.values()] == [("hall\n", int(counted)), ("pit\n", 1)]
    met = novelty.atlas.state_dict()["met"]
    assert met["g"].keys() == ({"hall\n", "pit\n"} if counted else {"pit\n"})


def test_a_share_of_the_episodes_goes_back():
    novelty, rng = make(return_share=0.2), np.random.default_rng(0)
    played(novelty, ("hall", 5.0))
    assert abs(sum(novelty.begin("g", rng) is not None for _ in range(2000)) / 2000 - 0.2) < 0.03
    never = make()
    state = rng.bit_generator.state
    assert never.begin("g", rng) is None
    assert rng.bit_generator.state == state


def test_an_end_is_remembered_only_as_the_best():
    """Nothing can be explored behind it."""
    novelty = make(return_share=1.0)
    played(novelty, ("hall", 5.0))
    known = len(novelty.archive)
    trail = played(make(return_share=1.0), ("hall", 5.0))
    novelty.visit(replace(step("the end"), reward=2.0, score=7.0, terminated=True), trail, "win")
    assert len(novelty.archive) == known
    assert "the end\n" not in novelty.atlas.routes("g", "hall\n", ("win",))  # nor to carry things to
    assert novelty.archive.best("g", np.random.default_rng(0)).actions == ("to hall", "win")


def test_who_went_back_tries_more():
    novelty, rng = make(return_share=1.0), np.random.default_rng(0)
    two = step("kitchen", actions=("a", "b"))
    chosen = [novelty.choose(two, 0, rng, went_back=went_back) for went_back in (False, True) for _ in range(2000)]
    assert sum(chosen[:2000]) == 0
    assert abs(sum(chosen[2000:]) / 2000 - 0.5) < 0.04  # half of the steps, in which the other action is the rarer one


def errand(novelty: Novelty, where: Step, going: str = "", seed: int = 0) -> tuple[str, str]:
    index, target = novelty.wander(where, going, np.random.default_rng(seed))
    return where.valid_actions[index], target


def test_errands_bring_things_to_where_they_rarely_were():
    """From a hall with two doors; the garden lies behind the kitchen."""
    novelty = make(return_share=1.0)
    novelty.config = replace(novelty.config, return_policy="errands")
    trail = Trail(0)
    hall, kitchen, cellar, garden = (
        replace(step(name, actions=("look", *exits)), carried=("key",))
        for name, exits in (("hall", ("in", "down")), ("kitchen", ("out", "on")), ("cellar", ("up",)), ("garden", ()))
    )
    novelty.mark(hall, trail)
    for entered, action in ((kitchen, "in"), (garden, "on"), (kitchen, "back"), (hall, "out"), (cellar, "down")):
        novelty.visit(entered, trail, action)
    for _ in range(10_000):
        novelty.atlas.meet("g", "kitchen\n", ("key",))
        novelty.atlas.meet("g", "cellar\n", ("key",))
    assert {errand(novelty, hall, seed=n) for n in range(9)} == {("in", "garden\n")}
    assert errand(novelty, kitchen, "garden\n") == ("on", "garden\n")  # goes on
    assert errand(novelty, garden, "garden\n")[1] in ("kitchen\n", "")  # is there: from where no way back is valid
    shut = replace(hall, valid_actions=("down", "look"))
    assert errand(novelty, shut, "garden\n") == ("down", "cellar\n")  # another errand
    empty = replace(hall, carried=())
    assert {errand(novelty, empty, seed=n)[0] for n in range(40)} == {"look", "in", "down"}  # at random
    novelty.config = replace(novelty.config, return_policy="random")
    assert {errand(novelty, hall, seed=n) for n in range(40)} == {("look", ""), ("in", ""), ("down", "")}


def test_an_errand_is_left_for_what_was_never_done():
    novelty, rng = make(return_share=1.0), np.random.default_rng(0)
    novelty.config = replace(novelty.config, return_policy="errands", return_try_share=0.0)
    two = step("kitchen", actions=("a", "b", "c"))
    assert {novelty.choose(two, 0, rng, went_back=True) for _ in range(3)} == {0, 1, 2}
    assert {novelty.choose(two, 0, rng, went_back=True) for _ in range(9)} == {0}


def test_with_a_thing_in_hand_all_is_done_once_more_in_each_place():
    novelty, rng = make(return_share=1.0), np.random.default_rng(0)
    novelty.config = replace(novelty.config, return_policy="errands", return_try_share=0.0)
    bare = step("kitchen", actions=("a", "b", "c"))
    lamp, both = replace(bare, carried=("lamp",)), replace(bare, carried=("key", "lamp"))
    more = replace(both, valid_actions=("a", "b", "c", "d"))
    for where in (bare, lamp, both):
        assert {novelty.choose(where, 0, rng, went_back=True) for _ in range(3)} == {0, 1, 2}
        assert {novelty.choose(where, 0, rng, went_back=True) for _ in range(9)} == {0}
    assert novelty.choose(more, 0, rng, went_back=True) == 3
    for held in ("key", "lamp\n40"):  # the lamp in another condition
        assert {novelty.choose(replace(bare, carried=(held,)), 0, rng, went_back=True) for _ in range(9)} == {0}
    assert novelty.choose(replace(lamp, room="7"), 1, rng) == 1  # as it was told, where the episode did not go back


def test_what_was_never_done_at_all_comes_before_what_was_not_done_with_a_thing():
    novelty, rng = make(return_share=1.0), np.random.default_rng(0)
    novelty.config = replace(novelty.config, return_policy="errands", return_try_share=0.0)
    for index in (0, 1):
        novelty.choose(step("kitchen"), index, rng)
    lamp = replace(step("kitchen"), carried=("lamp",))
    assert novelty.choose(lamp, 0, rng, went_back=True) == 2


def test_the_map_survives_a_checkpoint():
    novelty, other = make(return_share=1.0), make(return_share=1.0)
    trail = played(novelty, ("hall", 1.0))
    novelty.visit(replace(step("attic"), carried=("key\n04",)), trail, "up")
    other.load_state_dict(novelty.state_dict())
    assert other.atlas.state_dict() == novelty.atlas.state_dict()
    assert other.atlas.state_dict()["met"] == {"g": {"hall\n": {}, "attic\n": {"key": 1}}}
    novelty.visit(step("hall"), trail, "down")
    assert other.atlas.state_dict() != novelty.atlas.state_dict()  # a copy
