"""Comparing runs, and intervals that draw whole games."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from priorzero.app.compare import compare, mean_curve, plot_runs
from priorzero.collect.evaluate import interval


def write_run(folder: Path, name: str, seed: int, scores: list[float], *given: str) -> None:
    resumed = "x" if any(o.startswith("ckpt_path=") for o in given) else "null"
    config = f"name: {name}\nseed: {seed}\nckpt_path: {resumed}\ncollector: {{policy: wm}}\n"
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text(config)
    (folder / ".hydra" / "overrides.yaml").write_text(json.dumps([f"seed={seed}", *given]))
    rows = [
        {"env_step": 100 * i, "policy": "wm", "results": [{"score": score, "max_score": 4, "game": "g"}]}
        for i, score in enumerate(scores)
    ]
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_steps_to_reach_by_name_and_seed(tmp_path: Path) -> None:
    write_run(tmp_path / "0", "a", 0, [0, 2, 4])
    write_run(tmp_path / "1", "a", 1, [0, 3.2, 1])
    write_run(tmp_path / "2", "b", 0, [0, 1, 2])
    lines = compare(tmp_path, 0.8).splitlines()
    assert lines[2:] == ["| a | 200, 100 | 150 |", "| b | never | not reached by all |"]


def test_what_runs_of_a_name_do_not_share_tells_them_apart(tmp_path: Path) -> None:
    write_run(tmp_path / "0", "a", 0, [4], "trainer=gpu", "ablation=none")
    write_run(tmp_path / "1", "a", 1, [4], "trainer=gpu", "ablation=none")
    write_run(tmp_path / "2", "a", 0, [0, 4], "trainer=gpu", "ablation=no_sft", "gamma=0.9")
    assert compare(tmp_path, 1.0).splitlines()[2:] == [
        "| a ablation=no_sft gamma=0.9 | 100 | 100 |",
        "| a ablation=none | 0, 0 | 0 |",
    ]
    plot_runs(tmp_path, tmp_path / "curves.png", None)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_runs_that_were_evaluated_at_other_steps_have_a_mean() -> None:
    first = [(100, 0.0, 0.0, 0.0), (200, 1.0, 1.0, 1.0), (300, 0.5, 0.5, 0.5)]
    second = [(150, 0.5, 0.5, 0.5), (250, 0.25, 0.25, 0.25), (350, 0.0, 0.0, 0.0)]
    steps, means = mean_curve([first, second])
    assert steps.tolist() == [150, 200, 250, 300]  # where both have evaluations before and behind
    assert means.tolist() == [0.5, (1.0 + 0.375) / 2, (0.75 + 0.25) / 2, (0.5 + 0.125) / 2]


@pytest.mark.parametrize("given", [(), ("collector.novelty.count_passing=true",), ("collector.num_envs=64",) * 9])
def test_names_of_runs_fit_into_the_picture(tmp_path: Path, given: tuple[str, ...]) -> None:
    """What lies at an edge is cut off."""
    from matplotlib.image import imread

    for n in range(3):
        write_run(tmp_path / str(n), "zork1", 0, [0, 4], *(f"{words}{n}" for words in ("gamma=0.9", *given)))
    plot_runs(tmp_path, tmp_path / "curves.png", None)
    picture = imread(tmp_path / "curves.png")[..., :3]  # [height, width, 3], white is 1
    assert picture[:, [0, -1]].min() == 1
    assert picture[[0, -1]].min() == 1
    assert picture.min() == 0


def test_a_picture_that_ends_before_the_first_evaluation_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "0", "a", 0, [0, 2])
    plot_runs(tmp_path, tmp_path / "curves.png", 0)
    with pytest.raises(ValueError, match="was evaluated within -1 environment steps"):
        plot_runs(tmp_path, tmp_path / "curves.png", -1)


def test_a_resumed_run_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    write_run(tmp_path / "0", "a", 0, [0])
    write_run(tmp_path / "1", "a", 0, [0, 4], "ckpt_path=last")
    assert compare(tmp_path, 1.0).splitlines()[2:] == ["| a | 100 | 100 |"]


def test_two_runs_of_one_kind_and_seed_are_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "0", "a", 0, [0])
    write_run(tmp_path / "1", "a", 0, [4])
    with pytest.raises(ValueError, match="are both a with seed 0: move one of them away"):
        compare(tmp_path, 1.0)


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no evaluations\.jsonl below"):
        compare(tmp_path, 0.8)


def test_repeats_of_a_game_are_no_evidence() -> None:
    scores, games = [0.0] * 50 + [4.0] * 50, ["a"] * 50 + ["b"] * 50
    assert interval(scores, games) == (2.0, 0.0, 4.0)  # two games: either may be drawn twice
    mean, low, high = interval(scores)
    assert (mean, low > 1.5, high < 2.5) == (2.0, True, True)
