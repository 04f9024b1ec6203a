"""What the benchmark of whole runs makes of its counters."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from benchmarks.end_to_end import OWN, Reading, row, summary


def reading(time: float, steps: int, **changes) -> Reading:
    settings = {
        "time": time, "processor": 0.1 * time, "steps": steps, "own": dict.fromkeys(OWN, 0.2 * time),
        "workers": {"step": 0.5 * time, "valid_actions": 0.25 * time}, "texts": (3 * steps, steps),
    }  # fmt: skip
    return Reading(**(settings | changes))


@pytest.mark.parametrize(("kind", "rest", "speed"), [("inline", 5.0, 50.0), ("thread", 20.0, 25.6)])
def test_a_row_says_what_happened_between_two_readings(kind: str, rest: float, speed: float):
    data = {"batch_size": 64, "samples_per_insert": 12.5}
    cfg = OmegaConf.create({"collector": {"groups": 2, "kind": kind}, "data": data})
    found = row(cfg, reading(10, 100), reading(20, 600, updates=50, update_s=1.5))
    assert found == pytest.approx(
        {
            "groups": 2, "steps/s": speed, "games %": 20, "encode %": 20, "search %": 20, "prior %": 20, "update %": 15,
            "updates/s": 5, "windows/step": 6.4, "rest %": rest, "own ms": 2, "worker ms": 10,
            "of it valid actions": 5, "cores of workers": 0.5, "text hits %": 75,
        }
    )  # fmt: skip
    assert "updates/s" not in row(cfg, reading(10, 100), reading(20, 600))


def test_the_summary_has_medians_and_the_ratio_to_the_first_setting():
    rows = [{"groups": g, "steps/s": s, "rest %": 1.0} for g, s in ((1, 10), (2, 22), (1, 30), (2, 44))]
    assert summary(rows) == [
        {"groups": 1, "steps/s": 20, "rest %": 1.0, "x": 1.0},
        {"groups": 2, "steps/s": 33, "rest %": 1.0, "x": 1.65},
    ]
