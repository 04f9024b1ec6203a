import copy
import pickle
import random
import sys
from typing import Any

import gymnasium
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from priorzero.envs.babyai import BabyAISpec, babyai_games
from priorzero.envs.babyai_text import ACTIONS, hands, useful_actions, view, world_hash
from priorzero.envs.base import EnvError, GameSpec

minigrid = pytest.importorskip("minigrid", reason="BabyAI needs the extra babyai")
from minigrid.core.world_object import Ball, Box, Door, Key, Wall  # noqa: E402


def world(**things: Any) -> Any:
    """An 8 x 8 room with the player at (3, 5), looking up; things by place: ``x2y3=Ball("red")``."""
    level: Any = gymnasium.make("BabyAI-GoToRedBallNoDists-v0", disable_env_checker=True).unwrapped
    level.reset(seed=1)
    for x in range(1, 7):
        for y in range(1, 7):
            level.grid.set(x, y, None)
    for place, thing in things.items():
        level.grid.set(int(place[1]), int(place[3]), thing)
    level.agent_pos, level.agent_dir, level.carrying = (3, 5), 3, None
    return level


def seen(level: Any) -> list[str]:
    return [clause.removeprefix("You see ") for clause in view(level).split(", ")]


# ------------------------------------------------------------------------------------------------------------- text


def test_walls_are_told_in_three_straight_lines():
    assert (
        view(world()) == "You see a wall 5 steps forward, You see a wall 3 steps left"
    )  # 4 steps right is out of view


def test_things_stand_by_steps_to_the_side_and_forward():
    level = world(x2y3=Ball("red"), x3y4=Key("blue"), x5y5=Box("grey"), x4y4=Ball("green"))
    assert seen(level) == [
        "a wall 3 steps left",  # the one ahead is behind the key
        "a red ball 1 step left and 2 steps forward",
        "a blue key 1 step forward",
        "a green ball 1 step right and 1 step forward",
        "a grey box 2 steps right",
    ]


def test_doors_tell_their_state_and_closed_ones_hide_what_is_behind():
    row = {f"x{x}y3": Wall() for x in range(1, 7)}
    behind = {"x3y2": Ball("red")}
    for door, name in (
        (Door("red"), "a closed red door"),
        (Door("red", is_locked=True), "a locked red door"),
        (Door("red", is_open=True), "an open red door"),
    ):
        told = seen(world(**row | behind | {"x3y3": door}))
        assert f"{name} 2 steps forward" in told
        assert ("a red ball 3 steps forward" in told) is door.is_open


def test_view_turns_with_the_player():
    level = world(x2y3=Ball("red"))
    level.agent_dir = 2  # to the left
    assert "a red ball 2 steps right and 1 step forward" in seen(level)


def test_hands_are_told_and_do_not_stand_in_the_view():
    level = world()
    assert hands(level) == "You carry nothing"
    before = view(level)
    level.carrying = Key("blue")
    assert hands(level) == "You carry a blue key"
    assert view(level) == before


@pytest.mark.parametrize(
    ("ahead", "carried", "useful"),
    [
        (None, None, ["go forward"]),
        (None, Ball("red"), ["drop", "go forward"]),
        (Ball("red"), None, ["pick up"]),
        (Ball("red"), Ball("red"), []),
        (Box("red"), None, ["pick up", "toggle"]),
        (Wall(), None, []),
        (Door("red"), None, ["toggle"]),
        (Door("red", is_open=True), None, ["go forward", "toggle"]),
        (Door("red", is_locked=True), Key("blue"), []),
        (Door("red", is_locked=True), Key("red"), ["toggle"]),
    ],
)
def test_useful_actions_by_what_is_ahead_and_in_hand(ahead: Any, carried: Any, useful: list[str]):
    level = world(x3y4=ahead)
    level.carrying = carried
    assert useful_actions(level) == [*useful, "turn left", "turn right"]


@settings(max_examples=8)
@given(
    st.sampled_from(["GoToLocal", "PickupLoc", "PutNextLocal", "UnlockLocalDist", "KeyInBox", "BlockedUnlockPickup"]),
    st.integers(1, 1000),
)
def test_useful_actions_are_those_that_change_the_world(name: str, seed: int):
    level: Any = BabyAISpec(name, seed, 1000).build()._level
    choose = random.Random(seed)
    for _ in range(30):
        useful, before = useful_actions(level), world_hash(level)
        for number, action in enumerate(ACTIONS):
            other = copy.deepcopy(level)
            other.step(number)
            assert (world_hash(other) != before) is (action in useful), (action, view(level), hands(level))
        if level.step(ACTIONS.index(choose.choice(useful)))[2]:
            return


def test_hash_tells_apart_what_the_grid_does_not_show():
    empty, full = world(x3y4=Box("red")), world(x3y4=Box("red", Key("blue")))
    assert view(empty) == view(full)
    assert world_hash(empty) != world_hash(full)
    assert world_hash(empty) == world_hash(world(x3y4=Box("red")))
    carrying = world(x3y4=Box("red"))
    carrying.carrying = Key("blue")
    assert world_hash(carrying) != world_hash(empty)


def test_hash_tells_how_far_a_mission_in_parts_is():
    level: Any = BabyAISpec("GoToRedBlueBall", 1, 64).build()._level
    before = world_hash(level)
    several: Any = BabyAISpec("OpenTwoDoors", 1, 64).build()._level
    assert world_hash(several) != before
    start = world_hash(several)
    several.instrs.a_done = "success"
    assert world_hash(several) != start


# ------------------------------------------------------------------------------------------------------------- game


def test_spec_is_a_value_with_a_name():
    spec = BabyAISpec("BabyAI-GoToRedBallGrey-v0", 7, 64, ("inventory", "feedback"))
    assert (spec.name, spec.level, spec.observe) == (
        "babyai-GoToRedBallGrey-7",
        "GoToRedBallGrey",
        ("feedback", "inventory"),
    )
    assert spec == BabyAISpec("GoToRedBallGrey", 7, 64, ("feedback", "inventory"))
    assert hash(spec) == hash(pickle.loads(pickle.dumps(spec)))
    assert isinstance(spec, GameSpec)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": "../x"}, "level='../x' is not valid"),
        ({"game_seed": -1}, "game_seed=-1"),
        ({"max_steps": 0}, "max_steps=0"),
        ({"observe": ("smell",)}, "observe"),
    ],
)
def test_options_are_checked(options: dict, message: str):
    with pytest.raises(EnvError, match=message):
        BabyAISpec(**{"level": "GoToObj", "game_seed": 1, "max_steps": 64} | options)


def test_worlds_are_split_by_seed():
    games = babyai_games("GoToObj", [1, 2], [3], 64, ["feedback"])
    assert [s.name for s in games.train] == ["babyai-GoToObj-1", "babyai-GoToObj-2"]
    assert [s.name for s in games.heldout] == ["babyai-GoToObj-3"]
    with pytest.raises(EnvError, match=r"\[2\] are both"):
        babyai_games("GoToObj", [1, 2], [2], 64)


def test_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "minigrid", None)
    with pytest.raises(EnvError, match=r"pip install 'priorzero\[babyai\]'"):
        babyai_games("GoToObj", [1], [], 64)
    with pytest.raises(EnvError, match=r"pip install 'priorzero\[babyai\]'"):
        BabyAISpec("GoToObj", 1, 64).build()


def test_unknown_level_names_close_ones():
    with pytest.raises(EnvError, match=r"no BabyAI level 'GoToBall' .*GoToRedBall"):
        BabyAISpec("GoToBall", 1, 64).build()


@pytest.mark.parametrize("level", ["GoToRedBallGrey", "PickupLoc", "PutNextLocal", "UnlockLocal", "GoToObjS6"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_demonstration_wins(level: str, seed: int):
    env = BabyAISpec(level, seed, 300).build()
    _, info = env.reset()
    way = info["walkthrough"]
    rewards = []
    for action in way:
        assert action in info["valid_actions"]
        _, reward, terminated, truncated, info = env.step(action)
        rewards.append(reward)
    assert (terminated, truncated, info["valid_actions"]) == (True, False, [])
    assert rewards == [0.0] * (len(way) - 1) + [pytest.approx(1 - 0.9 * len(way) / 300)]
    assert info["score"] == rewards[-1]


def test_what_the_bot_cannot_do_has_no_demonstration():
    for level in ("PutNextS5N2Carrying", "KeyInBox", "OpenDoorsOrderN2Debug"):
        assert BabyAISpec(level, 1, 100).build().reset()[1]["walkthrough"] is None


def test_world_is_the_same_in_every_episode():
    env = BabyAISpec("GoToObj", 5, 64).build()
    first, info = env.reset(seed=1)
    assert "walkthrough" in info
    env.step("turn left")
    again, other = env.reset(seed=2)
    assert (again, other["world_hash"]) == (first, info["world_hash"])
    assert info["goal"].startswith("go to")
    assert (info["max_score"], info["game"]) == (1.0, "babyai-GoToObj-5")


def test_words_that_are_no_actions_cost_a_step_and_change_nothing():
    env = BabyAISpec("GoToRedBallGrey", 1, 64).build()
    _, start = env.reset()
    observation, reward, terminated, truncated, info = env.step("dance")
    assert observation[0].startswith("You can only turn left, turn right, go forward, pick up, drop, toggle. You see")
    assert (reward, terminated, truncated) == (0, False, False)
    assert (info["world_hash"], info["steps"]) == (start["world_hash"], 1)
    env.step("quit")  # refused before it reaches the level
    for action in start["walkthrough"]:
        _, reward, terminated, _, info = env.step(action)
    assert terminated
    assert reward == pytest.approx(1 - 0.9 * (len(start["walkthrough"]) + 2) / 64)


def test_step_limit_truncates_and_parts_may_be_left_out():
    env = BabyAISpec("GoToRedBallGrey", 1, 2, ("inventory",)).build()
    observation, _ = env.reset(seed=1)
    assert observation == ("", "", "You carry nothing")
    env.step("turn left")
    assert env.step("turn left")[2:4] == (False, True)
    env.close()
    env.close()
    with pytest.raises(EnvError, match="call reset"):
        env.step("turn left")
