"""Real games in real workers: TextWorld games made here, and Jericho story files where there are some."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from priorzero.collect.ways import names
from priorzero.envs.babyai import BabyAISpec
from priorzero.envs.base import FALLBACK_ACTIONS, EnvError, GameSpec
from priorzero.envs.jericho import JerichoSpec, jericho_games
from priorzero.envs.textworld import TextWorldSpec
from priorzero.envs.vector import VectorEnv
from priorzero.types import Step

RECIPE = (("recipe", 1), ("take", 1), ("cook", True))


@pytest.fixture(scope="module")
def envs() -> Iterator[VectorEnv]:
    with VectorEnv(2, timeout_s=60, reset_timeout_s=120) as vector:
        yield vector


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("textworld"))


def replay(envs: VectorEnv, spec: GameSpec, actions: list[str], seed: int | None = None) -> list[Step]:
    steps = envs.reset([0], [spec], [seed])
    for action in actions:
        if steps[-1].done:
            break
        steps += envs.step([0], [action])
    return steps


def run_alone(code: str, hash_seed: int = 0) -> list:
    """Runs code in a process of its own, where GPL packages may be imported; returns what it prints as JSON."""
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "ignore", "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


# -------------------------------------------------------------------------------------------------------- TextWorld


def test_cooking_walkthrough_wins(envs: VectorEnv, cache_dir: str):
    spec = TextWorldSpec("cooking", RECIPE, 1, 100, cache_dir)
    actions = envs.walkthrough(spec)
    steps = replay(envs, spec, actions)
    first, last = steps[0], steps[-1]
    assert (last.score, last.max_score, last.terminated, last.truncated) == (4, 4, True, False)
    assert sum(step.reward for step in steps) == 4  # differences, not the running score
    assert first.goal.startswith("You are hungry!")
    assert "$$" not in first.observation.feedback
    assert first.observation.look.startswith("-= Kitchen =-")
    assert first.observation.inventory == "You are carrying nothing."
    assert not {"look", "inventory"} & set(first.valid_actions)
    assert list(first.valid_actions) == sorted(set(first.valid_actions))
    assert {"examine cookbook"} <= set(first.valid_actions)
    for step, action in zip(steps, actions, strict=False):
        assert action in (*step.valid_actions, "inventory")
        assert not any(mark in "".join(step.observation) for mark in ("<score>", "<moves>", "[taking", "succeeded]"))


def test_same_seed_is_the_same_game_in_another_cache(envs: VectorEnv, cache_dir: str, tmp_path: Path):
    one, same = (TextWorldSpec("cooking", RECIPE, 1, 100, folder) for folder in (cache_dir, str(tmp_path)))
    other = TextWorldSpec("cooking", RECIPE, 2, 100, cache_dir)
    walkthrough = envs.walkthrough(one)
    assert envs.walkthrough(same) == walkthrough
    assert replay(envs, one, walkthrough, 1) == replay(envs, same, walkthrough, 5)
    assert envs.reset([0], [other], [1])[0].observation != envs.reset([0], [one], [1])[0].observation
    assert sorted(p.suffix for p in tmp_path.glob("textworld-*/*")) == [".json", ".lock", ".z8"]


def test_two_workers_that_want_one_game_make_it_once(envs: VectorEnv, tmp_path: Path):
    spec = TextWorldSpec("coin_collector", (("level", 2),), 3, 100, str(tmp_path))
    first, second = envs.reset([0, 1], [spec, spec], [1, 1])
    assert first == second
    assert not list(tmp_path.glob("*/.making-*"))


@pytest.mark.parametrize("family", ["simple", "treasure_hunter"])
def test_other_families_are_won_by_their_walkthroughs(envs: VectorEnv, cache_dir: str, family: str):
    spec = TextWorldSpec(family, (), 4, 100, cache_dir)
    last = replay(envs, spec, envs.walkthrough(spec))[-1]
    assert last.terminated
    assert last.score == last.max_score


def test_parts_that_are_not_observed_stay_empty(envs: VectorEnv, cache_dir: str):
    spec = TextWorldSpec("cooking", RECIPE, 1, 100, cache_dir, ("feedback", "inventory"))
    (step,) = envs.reset([0], [spec], [1])
    assert step.observation.look == ""
    assert "look" in step.valid_actions
    assert "inventory" not in step.valid_actions


def test_refused_actions_do_not_reach_textworld(envs: VectorEnv, cache_dir: str):
    spec = TextWorldSpec("cooking", RECIPE, 1, 100, cache_dir)
    before = envs.reset([0], [spec], [1])[0]
    for action in ("a\0b", "tw-print state", "save", "x" * 300):
        (step,) = envs.step([0], [action])
        assert (step.reward, step.fault, step.world_hash) == (0, "", before.world_hash)


# ----------------------------------------------------------------------------------------------------------- BabyAI


def test_babyai_demonstration_wins_in_a_worker(envs: VectorEnv):
    pytest.importorskip("minigrid", reason="BabyAI needs the extra babyai")
    spec = BabyAISpec("GoToRedBallGrey", 1, 64)
    actions = envs.walkthrough(spec)
    steps = replay(envs, spec, actions, seed=1)
    first, last = steps[0], steps[-1]
    assert first.goal == "go to the red ball"
    assert first.observation.feedback == first.observation.look
    assert first.observation.inventory == "You carry nothing"
    assert (last.terminated, last.truncated, last.valid_actions) == (True, False, ())
    assert last.score == last.reward == pytest.approx(1 - 0.9 * len(actions) / 64)
    assert last.observation.feedback.endswith("You see a red ball 1 step forward")
    assert len({step.world_hash for step in steps}) == len(steps)


def test_babyai_level_that_is_none_is_refused_at_once(envs: VectorEnv):
    pytest.importorskip("minigrid", reason="BabyAI needs the extra babyai")
    with pytest.raises(EnvError, match=r"no BabyAI level 'Boss' .*BossLevel"):
        envs.reset([0], [BabyAISpec("Boss", 1, 64)], [1])


# ---------------------------------------------------------------------------------------------------------- Jericho


def story(games_dir: Path, name: str, **options: object) -> JerichoSpec:
    if not list(games_dir.glob(f"{name}.z*")):
        pytest.skip(f"no story file {name} in {games_dir}: set PRIORZERO_GAMES to a folder that has it")
    return jericho_games(name, [games_dir], 1000, **options).train[0]  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "score"), [("detective", 360), ("zork1", 350)])
def test_walkthrough_reaches_the_recorded_score(envs: VectorEnv, games_dir: Path, name: str, score: int):
    spec = story(games_dir, name, valid_actions="none")
    steps = replay(envs, spec, envs.walkthrough(spec))
    assert (steps[-1].score, steps[-1].max_score, steps[-1].terminated) == (score, score, True)
    assert steps[0].score + sum(step.reward for step in steps) == score
    assert all(step.observation.look and step.observation.inventory for step in steps[:-1])
    assert steps[0].valid_actions == FALLBACK_ACTIONS


def test_looking_is_valid_only_where_it_makes_points(envs: VectorEnv, games_dir: Path):
    spec = story(games_dir, "pentari")  # is won by a last look; Jericho's templates have none
    way = envs.walkthrough(spec)
    before = replay(envs, spec, way[:-1])
    assert ["look" in step.valid_actions for step in before] == [False] * len(way[:-1]) + [True]
    (won,) = envs.step([0], ["look"])
    assert (before[-1].score, won.score, won.max_score, won.terminated) == (55, 70, 70, True)
    assert not any("inventory" in step.valid_actions for step in before)


def test_look_inventory_and_valid_actions_cost_nothing(games_dir: Path):
    spec = story(games_dir, "zork1")
    code = f"""
import json, jericho
from priorzero.envs.jericho import JerichoSpec
env = JerichoSpec({spec.story!r}, 1000).build()
env.reset(seed=7)
raw = jericho.FrotzEnv({spec.story!r}, 7)
raw.reset()
rows = []
for action in "n,n,u,get egg,d,s,e,open window,w,get sack,w,get lamp,look".split(","):
    env.step(action)
    raw.step(action)
    rows.append([[g.get_moves(), g.get_score(), g.get_state()[0].tobytes().hex(), g.get_state()[7][0].item()]
                 for g in (env._game, raw)])
print(json.dumps([a == b for a, b in rows]))
"""
    assert all(run_alone(code))


def test_valid_actions_do_not_depend_on_the_hash_seed(games_dir: Path):
    spec = story(games_dir, "zork1")
    code = f"""
import json
from priorzero.envs.jericho import JerichoSpec
env = JerichoSpec({spec.story!r}, 1000).build()
_, info = env.reset(seed=3)
found = [info["valid_actions"]]
for action in ["open mailbox", "take leaflet", "north", "north", "up", "take egg"]:
    found.append(env.step(action)[-1]["valid_actions"])
print(json.dumps(found))
"""
    first, second = (run_alone(code, hash_seed) for hash_seed in (1, 2))
    assert first == second
    assert all(actions == sorted(set(actions)) for actions in first)
    assert first[0] == ["north", "open mailbox", "south", "west"]
    assert {"take egg", "down"} <= set(first[5])


def test_episodes_repeat_with_their_seed(envs: VectorEnv, games_dir: Path):
    spec = story(games_dir, "zork1", valid_actions="none")
    way = [
        "n",
        "e",
        "open window",
        "w",
        "w",
        "get lamp",
        "get sword",
        "move rug",
        "open trapdoor",
        "light lamp",
        "d",
        "n",
    ]
    way += ["kill troll with sword"] * 4
    runs = {seed: [replay(envs, spec, way, seed) for _ in range(2)] for seed in (0, 1, 2)}
    assert all(once == again for once, again in runs.values())
    assert runs[0][0] == runs[1][0]  # 0 counts as 1
    assert runs[1][0] != runs[2][0]


def test_the_room_is_told_though_rooms_look_alike(envs: VectorEnv, games_dir: Path):
    spec = story(games_dir, "omniquest", valid_actions="none")
    fall = ["examine tree", "wear snorkel", "east", "east", "northwest", "north", "north", "push rock", "pull torch"]
    steps = replay(envs, spec, [*fall, "southeast", "northeast"], seed=1)
    cylinder, *dark = steps[-3:]
    assert {step.observation.look.partition("\n")[0] for step in dark} == {"Darkness"}
    assert len({step.room for step in (cylinder, *dark)}) == 3
    assert steps[0].room == steps[2].room != steps[3].room


def test_all_that_is_in_hand_can_be_used_in_the_dark(games_dir: Path):
    """There "examine" has one answer for all of it."""
    code = f"""
import json
from priorzero.envs.jericho import JerichoSpec
from priorzero.envs.object_words import ObjectWords
env = JerichoSpec({str(games_dir / "omniquest.z5")!r}, 100, valid_actions="none").build()
env.reset(seed=1)
coat = ["examine tree", "wear snorkel", "east", "south", "southeast", "take raincoat", "northwest", "north", "east"]
for action in [*coat, "northwest", "north", "north", "push rock", "pull torch", "southeast"]:
    observation = env.step(action)[0]
replies = [env.peek("examine " + thing) for thing in ("raincoat", "snorkel")]
words = ObjectWords(env, env._game)
found = words.things(env.peek("look"), env.peek("inventory"))
print(json.dumps([env.peek("look"), replies, [thing.name for thing in found], env.peek("drop raincoat")]))
"""
    room, (coat, snorkel), found, dropped = run_alone(code)
    assert room.startswith("Darkness")
    assert coat == snorkel
    assert {"raincoat", "snorkel"} <= set(found)
    assert dropped == "Dropped."


def test_what_a_closed_bag_hides_is_told(envs: VectorEnv, games_dir: Path):
    """Its owner sees the same with a match in the raincoat, or one that burns, or none; and with one elsewhere."""
    spec = story(games_dir, "omniquest", valid_actions="none")
    coat = ["examine tree", "drop snorkel", "east", "south", "southeast", "take raincoat", "northwest", "southwest"]
    hide = ["take match", "open raincoat", "put match in raincoat", "close raincoat"]
    left = ["take match", "northeast", "drop match", "southwest"]
    without, hidden, elsewhere = (replay(envs, spec, [*coat, *way], seed=1)[-1] for way in ([], hide, left))
    assert "match" in without.observation.look
    assert hidden.observation.look == elsewhere.observation.look
    assert hidden.observation.inventory == elsewhere.observation.inventory == without.observation.inventory
    assert len({without.objects, hidden.objects, elsewhere.objects}) == 3
    again = replay(envs, spec, [*coat, *left, "northeast", "southwest"], seed=1)[-1]
    assert again.objects == elsewhere.objects
    burning = replay(envs, spec, [*coat, "take match", "light match", *hide[1:]], seed=1)[-1]
    assert burning.observation.look == hidden.observation.look
    assert burning.observation.inventory == hidden.observation.inventory
    assert burning.objects != hidden.objects
    assert burning.carried != hidden.carried
    assert names(burning.carried) == names(hidden.carried)
    assert (names(without.carried), names(hidden.carried)) == ({"raincoat"}, {"match in raincoat", "raincoat"})
