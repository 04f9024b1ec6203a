"""What is known to crash, hang or fool Jericho and TextWorld: each is refused in words, or costs one worker at most."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from raw_games import RawSpec, UncheckedSpec

from priorzero.envs.base import EnvError
from priorzero.envs.jericho import JerichoSpec, jericho_games
from priorzero.envs.stories import StoryError, find_story
from priorzero.envs.textworld import TextWorldSpec
from priorzero.envs.vector import VectorEnv

PNG = b"\x89PNG\r\n\x1a\n" + bytes(200)


@pytest.fixture(scope="module")
def envs() -> Iterator[VectorEnv]:
    with VectorEnv(1, timeout_s=30, reset_timeout_s=60) as vector:
        yield vector
        assert not vector.faults, "a guarded game lost a worker"


@pytest.fixture(scope="module")
def raw() -> Iterator[VectorEnv]:
    with VectorEnv(1, timeout_s=5, reset_timeout_s=60) as vector:
        yield vector


def spec(games_dir: Path, name: str = "zork1", kind: type[JerichoSpec] = JerichoSpec, **options: object) -> JerichoSpec:
    if not list(games_dir.glob(f"{name}.z*")):
        pytest.skip(f"no story file {name} in {games_dir}: set PRIORZERO_GAMES to a folder that has it")
    return kind(**{"story": str(find_story(name, [games_dir])), "max_steps": 1000, "valid_actions": "none"} | options)


def run_alone(code: str, **environment: str) -> list:
    """Runs code in a process of its own, where GPL packages may be imported; returns what it prints as JSON."""
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    command = [sys.executable, "-W", "ignore", "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, env=variables, timeout=200)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


# ------------------------------------------------------------------------------------------------------ story files


def zork1(games_dir: Path) -> bytearray:
    return bytearray(Path(spec(games_dir).story).read_bytes())


def altered(games_dir: Path, how: str) -> bytes:
    data = zork1(games_dir)
    if how == "truncated":
        return bytes(data[:20_000])
    if how == "version 6":
        data[0] = 6
    if how == "version 1":
        data[0] = 1
    if how == "random":
        return b"\x05" + os.urandom(50_000)
    if how == "corrupt":
        for place in range(30_000, 70_000, 200):
            data[place] ^= 0x55
    return bytes(data)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated", "cut off: it has 20000 bytes"),
        ("version 6", "first byte is 6"),
        ("version 1", "first byte is 1"),
        ("random", "is not a playable story file"),
        ("corrupt", "checksum"),
    ],
)
def test_damaged_story_is_refused(envs: VectorEnv, games_dir: Path, tmp_path: Path, how: str, message: str):
    (tmp_path / "game.z5").write_bytes(altered(games_dir, how))
    refused(envs, tmp_path / "game.z5", message)


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "empty"), (b"You are in a maze. " * 99, "first byte is 89"), (PNG, "byte is 137")]
)
def test_file_of_another_kind_is_refused(envs: VectorEnv, tmp_path: Path, content: bytes, message: str):
    (tmp_path / "game.z5").write_bytes(content)
    refused(envs, tmp_path / "game.z5", message)


def refused(envs: VectorEnv, path: Path, message: str) -> None:
    """By name when the game is chosen, and again in the worker."""
    with pytest.raises(StoryError, match=message):
        jericho_games(path.stem, [path.parent], 100)
    with pytest.raises(StoryError, match=message):
        envs.reset([0], [JerichoSpec(str(path), 100)], [1])


@pytest.mark.parametrize("content", [b"", b"text" * 99, b"\x05" + bytes(range(1, 200))])
def test_unchecked_story_costs_a_worker_and_its_last_words_are_told(raw: VectorEnv, tmp_path: Path, content: bytes):
    (tmp_path / "game.z5").write_bytes(content)
    with pytest.raises(EnvError, match=r"(?s)3 attempts \(crash: the process ended with status 1\).*Fatal error: "):
        raw.reset([0], [UncheckedSpec(str(tmp_path / "game.z5"), 100)], [1])


def test_missing_file_folder_and_path_object(envs: VectorEnv, games_dir: Path, tmp_path: Path):
    refused(envs, tmp_path / "nowhere.z5", "no story file")
    (tmp_path / "folder.z5").mkdir()
    refused(envs, tmp_path / "folder.z5", "is a folder")
    path = Path(spec(games_dir).story)
    assert envs.reset([0], [JerichoSpec(path, 100, valid_actions="none")], [1])[0].max_score == 350  # type: ignore


def test_unknown_release_is_refused(envs: VectorEnv, games_dir: Path, tmp_path: Path):
    data = zork1(games_dir)
    data[-1] ^= 1  # in the padding: header and checksum stay right
    (tmp_path / "game.z5").write_bytes(data)
    with pytest.raises(StoryError, match=r"no bindings for .*game\.z5"):
        envs.reset([0], [JerichoSpec(str(tmp_path / "game.z5"), 100)], [1])


def test_story_named_like_a_textworld_game_is_itself(envs: VectorEnv, games_dir: Path, tmp_path: Path):
    (tmp_path / "tw-game.z5").write_bytes(zork1(games_dir))
    (step,) = envs.reset([0], [JerichoSpec(str(tmp_path / "tw-game.z5"), 100)], [1])
    assert step.max_score == 350
    assert {"open mailbox", "north"} <= set(step.valid_actions)


# ---------------------------------------------------------------------------------------------------------- actions

UNSAFE = [
    "a\0b", "\0", "\\x", "\\H", "\\N", "\\X", "\\D", "\\s", "\\U", "\\\\", "look\nnorth", "look\r", "x" * 191, "ö" * 99,
    "öffne", "\ud800", None, 3,
]  # fmt: skip
BLOCKED = ["save", "restore", "script", "unscript", "quit", "q", "restart", "die", "#rand 3", "$verify", "look. save"]


@pytest.mark.parametrize("name", ["zork1", "detective"])
def test_refused_actions_change_nothing(envs: VectorEnv, games_dir: Path, name: str):
    (before,) = envs.reset([0], [spec(games_dir, name)], [1])
    for action in (*UNSAFE, *BLOCKED):
        (step,) = envs.step([0], [action])  # type: ignore[list-item]
        assert step.observation.feedback.startswith("[priorzero: the action")
        assert step.observation[1:] == before.observation[1:]
        assert (step.reward, step.done, step.fault, step.world_hash) == (0, False, "", before.world_hash)
    (step,) = envs.step([0], ["look"])  # no reply is queued
    assert step.observation.feedback == step.observation.look == before.observation.look
    assert envs.step([0], [""])[0].fault == ""  # not refused: the game answers it


def test_blocked_commands_write_no_files(games_dir: Path, tmp_path: Path):
    with VectorEnv(1, timeout_s=30, reset_timeout_s=60, scratch_dir=tmp_path) as envs:
        envs.reset([0], [spec(games_dir)], [1])
        for action in BLOCKED:
            envs.step([0], [action])
        (folder,) = tmp_path.glob("*/worker-1")
        assert [file.name for file in folder.iterdir() if not file.name.startswith("tmp")] == ["worker.log"]


@pytest.mark.parametrize("action", ["a\0b", "\\U", "\\x", "state of detective"])
def test_action_that_breaks_the_interpreter_costs_one_worker(raw: VectorEnv, games_dir: Path, action: str):
    game = spec(games_dir, kind=RawSpec)
    raw.reset([0], [game], [1])
    if action.startswith("state of "):
        action = f"state of {spec(games_dir, 'detective').story}"
    (step,) = raw.step([0], [action])
    assert step.fault.startswith(("crash: the process was killed by SIG", "timeout: no answer within 5 s"))
    assert step.truncated
    assert raw.reset([0], [game], [1])[0].fault == ""


def test_raw_commands_do_what_the_guard_keeps_out(games_dir: Path, tmp_path: Path):
    with VectorEnv(1, timeout_s=30, reset_timeout_s=60, scratch_dir=tmp_path) as envs:
        envs.reset([0], [spec(games_dir, kind=RawSpec)], [1])
        envs.step([0], ["save"])
        envs.step([0], ["script"])
        assert {file.name for file in tmp_path.glob("*/worker-1/*")} >= {"zork1.qzl", "script"}
        assert not list(Path.cwd().glob("*.qzl"))


def test_words_that_pass_write_nothing_and_end_nothing(games_dir: Path, tmp_path: Path):
    code = """
import json, os, re, jericho
from priorzero.envs.sanitise import action_fault
found = []
for story in STORIES:
    game = jericho.FrotzEnv(story)
    game.reset()
    for word in sorted({word.word for word in game.get_dictionary()}):
        for command in (word, word + " all"):
            if action_fault(command):
                continue
            before = game.get_state()
            text = game.step(command)[0]
            asked = re.search("sure you want|wish to (leave|restart)|file ?name|in its .* mode", text)
            files = [name for name in os.listdir() if not name.startswith("tmp")]
            if asked or files or game._emulator_halted():
                found.append([story, command, text[:80], files])
                game.reset()
            game.set_state(before)
print(json.dumps(found))
"""
    stories = [str(path) for path in sorted(games_dir.glob("*.z[3458]"))]
    assert run_alone(f"import os; os.chdir({str(tmp_path)!r})\nSTORIES = {stories!r}\n{code}") == []


def test_no_walkthrough_that_jericho_knows_uses_a_refused_action():
    code = """
import json
from jericho.defines import BINDINGS_DICT
from priorzero.envs.sanitise import action_fault
ways = {b["name"]: b["walkthrough"].split("/") for b in BINDINGS_DICT.values() if "walkthrough" in b}
refused = [[name, action] for name, way in ways.items() for action in way if action_fault(action)]
print(json.dumps([len(ways), refused]))
"""
    count, refused = run_alone(code)
    assert count > 50
    assert refused == []


# ----------------------------------------------------------------------------------------------------------- episode


@pytest.mark.parametrize("name", ["zork1", "detective"])
def test_end_is_latched(envs: VectorEnv, games_dir: Path, name: str):
    game = spec(games_dir, name)
    way = envs.walkthrough(game)
    (step,) = envs.reset([0], [game], [None])
    for action in way or ():
        (step,) = envs.step([0], [action])
    assert step.terminated
    with pytest.raises(EnvError, match="is over: call reset"):
        envs.step([0], ["look"])


def test_closed_game_refuses_steps_and_can_begin_again(games_dir: Path):
    code = f"""
import json
from priorzero.envs.base import EnvError
from priorzero.envs.jericho import JerichoSpec
env = JerichoSpec({spec(games_dir).story!r}, 100, valid_actions="none").build()
said = []
for close in (False, True):
    if close:
        env.close()
        env.close()
    try:
        env.step("look")
    except EnvError as error:
        said.append(str(error))
    env.reset(seed=1)
    env.step("look")
print(json.dumps(said))
"""
    assert run_alone(code) == ["The episode of zork1 has not begun: call reset before step."] * 2


def test_temporary_folder_may_be_missing(games_dir: Path):
    code = f"""
import json
from priorzero.envs.jericho import JerichoSpec
from priorzero.envs.vector import VectorEnv
with VectorEnv(1, timeout_s=30, reset_timeout_s=60) as envs:
    envs.reset([0], [JerichoSpec({spec(games_dir).story!r}, 100, valid_actions="none")], [1])
    print(json.dumps(envs.step([0], ["open mailbox"])[0].observation.feedback))
"""
    assert run_alone(code, TMPDIR="/nowhere") == "Opening the small mailbox reveals a leaflet."


def test_valid_actions_need_no_tagger_and_no_further_processes(games_dir: Path):
    code = f"""
import json, multiprocessing, sys
from priorzero.envs.jericho import JerichoSpec
def find(connection):
    _, info = JerichoSpec({spec(games_dir).story!r}, 100).build().reset(seed=1)
    connection.send([info["valid_actions"], "spacy" in sys.modules, len(multiprocessing.active_children())])
context = multiprocessing.get_context("fork")
ours, theirs = context.Pipe()
process = context.Process(target=find, args=(theirs,), daemon=True)
process.start()
theirs.close()
print(json.dumps(ours.recv()))
process.join()
"""
    actions, tagger, children = run_alone(code)
    assert "open mailbox" in actions
    assert (tagger, children) == (False, 0)


# -------------------------------------------------------------------------------------------------------- TextWorld


def test_damaged_and_half_present_textworld_games(envs: VectorEnv, tmp_path: Path):
    game = TextWorldSpec("coin_collector", (("level", 1),), 1, 20, str(tmp_path))
    (first,) = envs.reset([0], [game], [1])
    (story,) = tmp_path.glob("*/*.z8")
    story.with_suffix(".json").unlink()  # without it TextWorld plays on, with neither score nor commands
    with VectorEnv(1, timeout_s=30, reset_timeout_s=60) as other:
        assert other.reset([0], [game], [1]) == [first]  # made again
        story.write_bytes(story.read_bytes()[:9999])
        with pytest.raises(StoryError, match=r"is damaged: it is cut off.* Delete it"):
            other.reset([0], [TextWorldSpec("coin_collector", (("level", 1),), 1, 21, str(tmp_path))], [1])
        assert not other.faults


def test_textworld_rewards_are_differences_and_its_end_is_latched(envs: VectorEnv, tmp_path: Path):
    game = TextWorldSpec("cooking", (("recipe", 1), ("take", 1), ("cook", True)), 1, 50, str(tmp_path))
    way = envs.walkthrough(game)
    (step,) = envs.reset([0], [game], [1])
    rewards = []
    for action in way or ():
        (step,) = envs.step([0], [action])
        rewards.append(step.reward)
    assert max(rewards) == 1
    assert sum(rewards) == step.score == step.max_score == 4
    assert step.valid_actions == ()
    with pytest.raises(EnvError, match="is over: call reset"):
        envs.step([0], ["look"])


def test_a_game_that_does_not_come_back_ends_its_worker_at_once(games_dir: Path):
    """Zork I: a sack that lies in the nest in hand takes all, and with it the nest that it lies in, for ever."""
    to_the_kitchen = [
        "north",
        "north",
        "up",
        "take egg",
        "take nest",
        "drop egg",
        "down",
        "south",
        "east",
        "open window",
    ]
    sack_in_nest = ["west", "take sack", "open sack", "take all from sack", "drop garlic", "put lunch in nest"]
    with VectorEnv(1, timeout_s=60, reset_timeout_s=60) as envs:
        envs.reset([0], [spec(games_dir, valid_actions="fast")], [1])
        for action in (*to_the_kitchen, *sack_in_nest):
            assert not envs.step([0], [action])[0].fault
        start = time.monotonic()
        (lost,) = envs.step([0], ["put sack in nest"])
        assert (lost.fault, lost.truncated) == ("timeout: the game did not come back from a command", True)
        assert time.monotonic() - start < 30  # some seconds of processor time, on a busy machine
        assert dict(envs.faults) == {"timeout": 1}
        (step,) = envs.reset([0], [spec(games_dir, valid_actions="fast")], [1])
        assert step.valid_actions
