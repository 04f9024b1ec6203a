import logging
import resource
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from priorzero.envs.action_store import _PRUNE_EVERY, ActionStore
from priorzero.envs.base import EnvError
from priorzero.envs.templates import Experience, Filling

ACTIONS = ("drop lamp", "north")
WRITER = """
import sys
from collections import Counter
from pathlib import Path
from priorzero.envs.action_store import ActionStore
store = ActionStore(Path(sys.argv[1]), b"zork", 1000, Counter())
for number in range(100):
    store.put(bytes([number, int(sys.argv[2])]), ["north"], {number}, set())
"""


def store(folder: Path, game: bytes = b"zork", entries: int = 1000) -> ActionStore:
    return ActionStore(folder, game, entries, Counter())


def file(folder: Path, number: int = 1) -> Path:
    return folder / f"valid-actions-v1-{number}.sqlite3"


def test_the_file_outgrows_the_limit_for_what_a_game_writes(tmp_path: Path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = (1 << 16, before[1])
    long = ("take " + "lamp " * 2000,)
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)  # as in a worker
    try:
        written = store(tmp_path)
        for number in range(20):
            written.put(bytes([number]), long, (), set())
        after = resource.getrlimit(resource.RLIMIT_FSIZE)
        written.close()
        kept = store(tmp_path)
        assert all(kept.get(bytes([number])) == long for number in range(20))
        kept.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert after == limit
    assert file(tmp_path).stat().st_size > 2 * limit[0]


def test_actions_and_experience_are_shared(tmp_path: Path):
    first, second = store(tmp_path), store(tmp_path)
    assert second.get(b"key") is None
    first.put(b"key", ACTIONS, {1, 2}, {Filling("drop OBJ", "lamp")})
    first.put(b"none", (), set(), set())
    assert second.get(b"key") == ACTIONS
    assert second.get(b"none") == ()
    known = Experience({9})
    second.catch_up(known)
    assert known == Experience({1, 2, 9}, {Filling("drop OBJ", "lamp")})
    first.put(b"key", ("south",), {2, 3}, {Filling("put OBJ in OBJ", "lamp", "case")})
    second.catch_up(known)
    assert second.get(b"key") == ("south",)
    assert known.tried == {1, 2, 3, 9}
    assert len(known.useful) == 2


def test_games_do_not_share_experience(tmp_path: Path):
    store(tmp_path).put(b"key", ACTIONS, {1}, {Filling("drop OBJ", "lamp")})
    known = Experience()
    store(tmp_path, b"other").catch_up(known)
    assert known == Experience()


def test_processes_write_at_once(tmp_path: Path):
    root = str(Path(__file__).parents[3])
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), str(number)], cwd=root) for number in range(3)
    ]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    reader = store(tmp_path)
    assert all(reader.get(bytes([n, m])) == ("north",) for n in range(100) for m in range(3))


def test_oldest_entries_leave_first(tmp_path: Path):
    bounded = store(tmp_path, entries=5)
    for number in range(_PRUNE_EVERY + 1):
        bounded.put(number.to_bytes(2, "big"), ("north",), {number}, set())
    kept = [number for number in range(_PRUNE_EVERY + 1) if bounded.get(number.to_bytes(2, "big"))]
    assert kept == list(range(_PRUNE_EVERY - 4, _PRUNE_EVERY + 1))


@pytest.mark.parametrize("content", [b"this is not a database" * 100, b"SQLite format 3\0" + b"\xff" * 8000])
def test_damaged_file_is_replaced_and_the_log_says_so(tmp_path: Path, content: bytes, caplog):
    file(tmp_path).write_bytes(content)
    counts: Counter[str] = Counter()
    with caplog.at_level(logging.WARNING):
        rebuilt = ActionStore(tmp_path, b"zork", 10, counts)
    rebuilt.put(b"key", ACTIONS, {1}, set())
    assert rebuilt.get(b"key") == ACTIONS
    assert counts == {"rebuilt": 1}
    assert "damaged" in caplog.text
    assert (file(tmp_path).exists(), file(tmp_path, 2).exists()) == (False, True)
    assert store(tmp_path).get(b"key") == ACTIONS


def test_damage_while_in_use_moves_every_process_to_the_same_new_file(tmp_path: Path):
    first, second = store(tmp_path), store(tmp_path)
    first.put(b"key", ACTIONS, set(), set())
    first.close()
    second.close()
    file(tmp_path).write_bytes(b"garbage" * 1000)
    assert first.get(b"key") is None
    first.put(b"key", ACTIONS, set(), set())
    assert second.get(b"key") == ACTIONS
    assert (first._counts["rebuilt"], second._counts["rebuilt"]) == (1, 0)


def test_deleted_folder_is_made_again(tmp_path: Path):
    folder = tmp_path / "cache"
    known, kept = Experience(), store(folder)
    kept.put(b"key", ACTIONS, {1, 2}, set())
    kept.catch_up(known)
    kept.close()
    shutil.rmtree(folder)
    assert kept.get(b"key") is None
    kept.put(b"key", ACTIONS, {3}, set())
    kept.catch_up(known)  # the numbers of the rows begin anew
    assert known.tried == {1, 2, 3}


def test_folder_that_cannot_be_used_is_an_error_with_advice(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvError, match="PRIORZERO_CACHE"):
        store(tmp_path / "file" / "folder")


def test_locked_file_is_an_error_with_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("priorzero.envs.action_store._BUSY_TIMEOUT_S", 0.01)
    waiting = store(tmp_path)
    other = sqlite3.connect(file(tmp_path))
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(EnvError, match="locked"):
        waiting.put(b"key", ACTIONS, set(), set())
    other.close()


lines = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1)


@settings(max_examples=30)
@given(st.lists(lines), st.sets(st.integers(0, 2**63 - 1)), st.binary(min_size=1, max_size=16))
def test_what_is_put_is_what_is_found(tmp_path_factory: pytest.TempPathFactory, actions, tried, key):
    folder = tmp_path_factory.mktemp("store")
    writer = store(folder)
    writer.put(key, actions, tried, set())
    known = Experience()
    writer.catch_up(known)
    assert writer.get(key) == tuple(actions)
    assert known.tried == tried
    writer.close()
