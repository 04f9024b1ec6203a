"""Games for tests of the workers: they do on command what real interpreters do by accident."""

from __future__ import annotations

import ctypes
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium

from priorzero.envs import worker
from priorzero.envs.base import EnvError, Reply, TextGame
from priorzero.envs.stories import StoryError


@dataclass(frozen=True)
class FakeSpec:
    """A counter: "up" scores a point, "win" ends the game. `trouble` spoils the first `times` attempts to build it."""

    name: str = "fake"
    max_steps: int = 10
    trouble: str = ""
    times: int = 0
    marks: str = ""  # a folder that counts the attempts

    def build(self) -> gymnasium.Env:
        if self.trouble:
            marks = Path(self.marks)
            attempt = len(list(marks.iterdir())) + 1
            (marks / str(attempt)).touch()
            if attempt <= self.times:
                misbehave(self.trouble)
        return FakeGame(self)


class FakeGame(TextGame):
    def __init__(self, spec: FakeSpec) -> None:
        super().__init__(spec, max_score=3, goal="count")

    def _begin(self, seed: int | None) -> Reply:
        return Reply((f"seed {seed}", f"process {os.getpid()}", os.getcwd()), 0.0, False)

    def _play(self, action: str) -> Reply:
        misbehave(action)
        score = self._last.score + (action == "up")
        return Reply((f"you {action}", "", ""), score, action == "win")

    def _valid_actions(self) -> list[str]:
        return [] if self._last.score >= 2 else ["up", "win"]

    def _info(self, reply: Reply) -> dict[str, Any]:
        return super()._info(reply) | {"counts": {"infos": 1}}

    def _world_hash(self) -> str:
        return str(self._last.score)

    def _walkthrough(self) -> list[str] | None:
        return ["up", "up", "win"]


def misbehave(action: str) -> None:
    if action == "exit":
        os._exit(3)
    if action == "segfault":
        ctypes.string_at(0)
    if action == "hang":
        time.sleep(60)
    if action == "bug":
        raise ZeroDivisionError("a bug")
    if action == "shout":
        for _ in range(8):
            os.write(1, b"x" * 1_000_000)
            os.write(2, b"y" * 1_000_000)
    if action == "fill the disk":
        Path("big").write_bytes(bytes(1 << 27))
    if action == "compile":
        Path("compiler").write_text(str(subprocess.Popen(["sleep", "60"]).pid))
        time.sleep(60)
    if action == "let no other thread run":
        worker._STUCK_S = 1.5
        time.sleep(1.5)  # until the loop has seen it
        ctypes.PyDLL(None).sleep(60)
    if action == "bad option":
        raise EnvError("the option is bad")
    if action == "bad story":
        raise StoryError("the story is bad")
