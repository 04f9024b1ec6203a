"""The search on real games. Each test plays in a process of its own: Jericho leaves its mark on a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
START = """
import json, random, sys
from priorzero.envs.actions import ActionFinder
from priorzero.envs.jericho import JerichoSpec
from priorzero.envs.object_words import ObjectWords
story, folder = sys.argv[1:]
"""
PLAY = """
env = JerichoSpec(story, 25, valid_actions_folder=folder or None, **{options}).build()
rng, rows, counts = random.Random(0), [], {{}}
for seed in (1, 2):
    _, info = env.reset(seed=seed)
    over = False
    while not over:
        rows.append(info["valid_actions"])
        for name, count in info["counts"].items():
            counts[name] = counts.get(name, 0) + count
        _, _, terminated, truncated, info = env.step(rng.choice(info["valid_actions"]))
        over = terminated or truncated
env.close()
print(json.dumps([rows, counts]))
"""


def run(code: str, story: Path, folder: str = "", hash_seed: int = 0) -> Any:
    environ = os.environ | {"PYTHONHASHSEED": str(hash_seed)}
    command = [sys.executable, "-c", START + code, str(story), folder]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def zork(games_dir: Path) -> Path:
    path = games_dir / "zork1.z5"
    if not path.exists():
        pytest.skip(f"no zork1.z5 in {games_dir}: set PRIORZERO_GAMES to a folder that has it")
    return path


def test_fast_search_finds_the_effects_of_the_exact_one_on_a_walkthrough(zork: Path):
    code = """
env = JerichoSpec(story, 1000, valid_actions="none").build()
fast = ActionFinder(env, env._game, exact=False)
_, info = env.reset(seed=None)
effects = found = 0
for number, action in enumerate(info["walkthrough"][:64]):
    if number % 8 == 0:
        things = fast._words.things(env._room, env._carried)
        candidates = fast._templates.fill(things, fast.known)
        exact = fast.effects(list(fast._templates.fill_all(things)))
        effects += len(exact)
        found += sum(any(action in candidates for action in actions) for actions in exact)
    fast.find(env._room, env._carried)
    env._last = env._play(action)
print(json.dumps([effects, found]))
"""
    effects, found = run(code, zork)
    assert effects > 60
    assert found >= 0.99 * effects


def test_exact_search_has_one_action_for_each_effect_that_jericho_reports(zork: Path):
    code = """
env = JerichoSpec(story, 1000, valid_actions="exact").build()
_, info = env.reset(seed=1)
for action in ("south", "east", "open window", "enter", "take bottle"):
    *_, info = env.step(action)
things = ObjectWords(env, env._game).things(env._room, env._carried)
names = [thing.name for thing in things]
theirs = env._game._filter_candidate_actions(env._game.act_gen.generate_actions(names), use_ctypes=True)
ours = env._actions._finder.effects(info["valid_actions"])
print(json.dumps([info["valid_actions"], [sorted(actions) for actions in theirs.values()], len(ours)]))
"""
    valid, theirs, effects = run(code, zork)
    assert len(valid) == len(theirs) == effects
    assert valid == sorted(set(valid))
    assert {"drop bottle", "open bottle", "take sack", "west", "up"} <= set(valid)
    assert not any("lower" in action for action in valid)  # "lower" and "drop" do the same


def test_play_is_the_same_under_every_hash_seed(zork: Path, tmp_path: Path):
    code = PLAY.format(options={"valid_actions_audit": 0.2, "valid_actions_refresh": 0.2})
    first, second = (run(code, zork, str(tmp_path / str(seed)), seed) for seed in (1, 2))
    assert first == second
    assert all(actions == sorted(set(actions)) for actions in first[0])


def test_processes_share_what_they_found(zork: Path, tmp_path: Path):
    code = PLAY.format(options={"valid_actions_audit": 0.0, "valid_actions_refresh": 0.0})
    rows, counts = run(code, zork, str(tmp_path))
    again, warm = run(code, zork, str(tmp_path))
    assert again == rows
    assert counts["searches"] > 10
    assert "searches" not in warm
    assert warm["disk_hits"] == counts["searches"]


def test_exact_and_fast_results_are_kept_apart(zork: Path, tmp_path: Path):
    fast = PLAY.format(options={"valid_actions_refresh": 0.0})
    exact = PLAY.format(options={"valid_actions": "exact", "valid_actions_refresh": 0.0})
    run(fast, zork, str(tmp_path))
    _, counts = run(exact, zork, str(tmp_path))
    assert counts["searches"] > 10
    assert "disk_hits" not in counts


def test_audits_and_refreshes_are_counted(zork: Path):
    rows, counts = run(PLAY.format(options={"valid_actions_audit": 1.0, "valid_actions_refresh": 1.0}), zork)
    hits = counts["memory_hits"]
    assert counts["searches"] == counts["audits"] == len(rows)
    assert counts["refreshed"] == hits > 0
    assert counts["audit_effects"] >= counts["audit_found"] >= 0.99 * counts["audit_effects"]
    assert counts["refresh_differs"] <= 0.1 * hits


def test_damaged_file_costs_a_rebuild_that_is_counted(zork: Path, tmp_path: Path):
    (tmp_path / "valid-actions-v1-1.sqlite3").write_bytes(b"nonsense" * 1000)
    _, counts = run(PLAY.format(options={}), zork, str(tmp_path))
    assert counts["rebuilt"] == 1


def test_a_file_that_fails_in_use_is_left_and_counted(zork: Path, tmp_path: Path):
    """The disk may fail hours after the start; what is remembered there only saves time."""
    fails = """
import sqlite3
class Failing:
    def execute(self, *_):
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR
        raise error
env = JerichoSpec(story, 25, valid_actions_folder=folder).build()
found, lost = [], []
for action in ("", "north", "south"):
    _, info = env.reset(seed=1) if not action else env.step(action)[-2:]
    found.append(len(info["valid_actions"]))
    lost.append(info["counts"].get("file_lost"))
    if not action:
        env._actions._store._connection = Failing()
env.close()
print(json.dumps([found, lost]))
"""
    found, lost = run(fails, zork, str(tmp_path))
    assert min(found) >= 3
    assert lost == [None, 1, None]


def test_which_searches_are_audited_depends_on_the_seed_of_the_episode(zork: Path):
    code = """
env = JerichoSpec(story, 100, valid_actions_cache=0, valid_actions_audit=0.5).build()
rows = []
for seed in (1, 2, 1):
    _, info = env.reset(seed=seed)
    rows.append([info["counts"].get("audits", 0)])
    for _ in range(14):
        *_, info = env.step("open mailbox")
        rows[-1].append(info["counts"].get("audits", 0))
print(json.dumps(rows))
"""
    first, second, again = run(code, zork)
    assert first == again != second
    assert 0 < sum(first) < 15
