"""The tests and counters that docs/bad_input.md names exist."""

from __future__ import annotations

import re
from pathlib import Path

from priorzero.rollout.agent import COUNTS
from priorzero.rollout.base import GenerationCounts

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "bad_input.md").read_text()


def test_every_test_that_is_named_exists():
    file, named = "", 0
    for path, name in re.findall(r"`(tests/[\w/]+\.py)?(?:::(test_\w+))?`", TEXT):
        file = path or file
        if path or name:
            assert f"def {name}" in (ROOT / file).read_text(), (file, name)
            named += 1
    assert named > 25


def test_every_counter_that_is_named_is_logged():
    named = set(re.findall(r"`(rollout/\w+)`", TEXT))
    logged = {f"rollout/{name}" for name in COUNTS} | set(GenerationCounts().metrics(0))
    sources = "".join((ROOT / "priorzero" / file).read_text() for file in ("policy/experience.py", "app/tokens.py"))
    assert len(named) > 8
    assert all(name in logged or f'"{name}"' in sources for name in named), named
