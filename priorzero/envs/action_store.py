"""Keeps valid actions, and what was learned about templates, in an SQLite file that many processes share.

The file is in WAL mode, so readers do not wait for the writer. Its folder can be deleted at any time, as a whole. A
damaged file is given up for a new one with the next number, because processes that still have it open would otherwise
remove the new file's log by name; the damaged one is deleted.
"""

from __future__ import annotations

import fcntl
import logging
import re
import resource
import sqlite3
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from priorzero.envs.base import EnvError
from priorzero.envs.templates import Experience, Filling

log = logging.getLogger(__name__)

LAYOUT = 1  # of the tables
_BUSY_TIMEOUT_S = 10.0  # less than a step may take (collector.timeout_s), or the worker is given up instead of the file
_PRUNE_EVERY = 256  # writes of this process
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT, sqlite3.SQLITE_ERROR}
_TABLES = """
CREATE TABLE IF NOT EXISTS actions (serial INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, found TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS tried (
    serial INTEGER PRIMARY KEY, game BLOB NOT NULL, digest INTEGER NOT NULL, UNIQUE (game, digest));
CREATE TABLE IF NOT EXISTS useful (
    serial INTEGER PRIMARY KEY, game BLOB NOT NULL, template TEXT NOT NULL, first TEXT NOT NULL, second TEXT NOT NULL,
    UNIQUE (game, template, first, second));
"""
_Result = TypeVar("_Result")


class ActionStore:
    """The shared file. Each process opens its own.

    Args:
        folder: where the file lies; made when needed. Must be on a local disk.
        game: names the game and the algorithm; what was learned is kept apart for each.
        entries: how many states, and how many digests of what was tried, are kept; the oldest leave first.
        counts: its ``rebuilt`` counts the damaged files that were given up.

    Raises:
        EnvError: if the folder cannot be used, or it is locked for 10 seconds.
    """

    def __init__(self, folder: Path, game: bytes, entries: int, counts: Counter[str]) -> None:
        self._counts = counts
        self._folder, self._game, self._entries = folder, game, entries
        self._writes = 0
        self._connection: sqlite3.Connection | None = None
        self._run(lambda connection: None)

    def get(self, key: bytes) -> tuple[str, ...] | None:
        """The actions of a state, if known."""
        row = self._run(lambda db: db.execute("SELECT found FROM actions WHERE key = ?", (key,)).fetchone())
        return None if row is None else tuple(row[0].splitlines())

    def put(self, key: bytes, actions: Sequence[str], tried: Iterable[int], useful: Iterable[Filling]) -> None:
        """Keeps the actions of a state and what was learned in finding them."""
        text, digests = "\n".join(actions), [(self._game, number) for number in sorted(tried)]
        worked = [(self._game, *entry) for entry in sorted(useful)]

        def write(db: sqlite3.Connection) -> None:
            with db:
                db.execute("INSERT OR REPLACE INTO actions (key, found) VALUES (?, ?)", (key, text))
                db.executemany("INSERT OR IGNORE INTO tried (game, digest) VALUES (?, ?)", digests)
                db.executemany(
                    "INSERT OR IGNORE INTO useful (game, template, first, second) VALUES (?, ?, ?, ?)", worked
                )
                if self._writes % _PRUNE_EVERY == 0:
                    self._prune(db)

        self._run(write)
        self._writes += 1

    def catch_up(self, known: Experience) -> None:
        """Adds what other processes learned since the last call."""

        def read(db: sqlite3.Connection) -> tuple[list[tuple[int, int]], list[tuple[int, str, str, str]]]:
            query = "SELECT serial, {} FROM {} WHERE serial > ? AND game = ? ORDER BY serial"
            tried = db.execute(query.format("digest", "tried"), (self._seen["tried"], self._game)).fetchall()
            columns = "template, first, second"
            useful = db.execute(query.format(columns, "useful"), (self._seen["useful"], self._game)).fetchall()
            return tried, useful

        tried, useful = self._run(read)
        known.tried.update(number for _, number in tried)
        known.useful.update(Filling(template, first, second) for _, template, first, second in useful)
        for name, rows in (("tried", tried), ("useful", useful)):
            if rows:
                self._seen[name] = rows[-1][0]

    def close(self) -> None:
        """Closes the file; it opens again when needed."""
        if self._connection is not None:
            with _file_size_unlimited():  # the last one to close moves the log into the file
                self._connection.close()
            self._connection = None

    def _run(self, use: Callable[[sqlite3.Connection], _Result]) -> _Result:
        """Runs a query, once more on a new file if this one turns out to be damaged."""
        for attempt in (1, 2, 3):
            try:
                with _file_size_unlimited():
                    return use(self._connection or self._connect())
            except sqlite3.DatabaseError as error:
                code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
                if code not in _DAMAGED or attempt == 3:
                    name = getattr(error, "sqlite_errorname", "")
                    raise EnvError(_advice(self._path, f"{error} {name}".strip())) from error
                self._give_up(error)
        raise AssertionError("the last attempt returns or raises")

    def _connect(self) -> sqlite3.Connection:
        self._seen = {"tried": 0, "useful": 0}  # serial numbers of this file
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with _lock(self._folder):  # two processes that both switch a new file to WAL get in each other's way
                self._path = _newest(self._folder)
                self._connection = _open(self._path)
        except OSError as error:
            raise EnvError(_advice(self._folder, error)) from error
        return self._connection

    def _give_up(self, error: sqlite3.DatabaseError) -> None:
        self.close()
        with _lock(self._folder):
            if _newest(self._folder) == self._path:
                log.warning("the cache of valid actions %s is damaged (%s): a new one replaces it", self._path, error)
                self._counts["rebuilt"] += 1
                _numbered(self._folder, _number(self._path) + 1).touch()
                for suffix in ("", "-wal", "-shm"):
                    Path(f"{self._path}{suffix}").unlink(missing_ok=True)
            self._path = _newest(self._folder)

    def _prune(self, db: sqlite3.Connection) -> None:
        for table in ("actions", "tried"):
            db.execute(f"DELETE FROM {table} WHERE serial <= (SELECT max(serial) FROM {table}) - ?", (self._entries,))


@contextmanager
def _lock(folder: Path) -> Generator[None]:
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _file_size_unlimited() -> Generator[None]:
    """Lifts the limit that a worker sets to what its game writes: this file grows with all games of all processes."""
    limit, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))


def _open(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S)
    try:
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise EnvError(_advice(path, f"its disk allows the journal mode {mode!r} only, not WAL"))
        connection.execute("PRAGMA synchronous = NORMAL")  # a lost computer loses the last writes, not the file
        connection.executescript(_TABLES)
    except BaseException:
        connection.close()
        raise
    return connection


def _numbered(folder: Path, number: int) -> Path:
    return folder / f"valid-actions-v{LAYOUT}-{number}.sqlite3"


def _number(path: Path) -> int:
    found = re.fullmatch(rf"valid-actions-v{LAYOUT}-(\d+)\.sqlite3", path.name)
    return int(found[1]) if found else 0


def _newest(folder: Path) -> Path:
    return _numbered(folder, max((_number(path) for path in folder.iterdir()), default=0) or 1)


def _advice(place: Path, reason: object) -> str:
    return (
        f"The cache of valid actions {place} cannot be used: {reason}. Set PRIORZERO_CACHE to a folder on a local disk "
        "with free space, or keep no file with env.valid_actions_folder=null."
    )
