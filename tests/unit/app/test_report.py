import json

from priorzero.app import report
from priorzero.types import EpisodeResult


def result(score: float, policy: str = "wm", maximum: float = 4.0) -> EpisodeResult:
    return EpisodeResult("game", 1, policy, score, maximum, 5, score == maximum)


ROWS = {
    "training games": {"random": [result(1.0)] * 4, "wm": [result(4.0)] * 4},
    "held-out games": {"wm": [result(2.0)] * 4},
}


def line(env_step: int, policy: str, *scores: float) -> str:
    results = [{"game": "a", "score": score, "max_score": 4.0} for score in scores]
    return json.dumps({"env_step": env_step, "policy": policy, "results": results})


def test_the_table():
    assert report.table(ROWS).splitlines() == [
        "| games | `random` | `wm` | maximum |",
        "|---|---|---|---|",
        "| training games | 1.00 [1.00, 1.00] | 4.00 [4.00, 4.00] | 4 |",
        "| held-out games |  | 2.00 [2.00, 2.00] | 4 |",
    ]


def test_results_can_be_read_again(tmp_path):
    report.save_results(tmp_path / "results.json", ROWS, {"seed": 3})
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["seed"] == 3
    assert EpisodeResult(**found["results"]["held-out games"]["wm"][0]) == result(2.0)


def test_curves_are_fractions_in_time_order(tmp_path):
    file = tmp_path / "evaluations.jsonl"
    file.write_text("\n".join([line(0, "wm", 0, 2), line(0, "prior", 1), line(50, "wm", 4, 4)]) + "\n")
    curves = report.read_curves(file)
    assert [point[:2] for point in curves["wm"]] == [(0, 0.25), (50, 1.0)]
    assert curves["wm"][1] == (50, 1.0, 1.0, 1.0)
    assert 0 <= curves["wm"][0][2] <= 0.25 <= curves["wm"][0][3] <= 0.5
    assert curves["prior"] == [(0, 0.25, 0.25, 0.25)]
    assert report.steps_to_reach(curves["wm"], 0.8) == 50
    assert report.steps_to_reach(curves["prior"], 0.8) is None
    report.plot(file, tmp_path / "curve.png", "a title")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_a_resumed_run_has_the_curve_up_to_its_checkpoint(tmp_path):
    before, now = tmp_path / "before", tmp_path / "now"
    before.mkdir()
    now.mkdir()
    report.carry_over(before, now, 50)
    assert not list(now.iterdir())
    lines = [line(0, "wm", 0), line(50, "wm", 2), line(90, "wm", 4)]
    (before / "evaluations.jsonl").write_text("\n".join(lines) + "\n")
    report.carry_over(before, now, 50)
    assert (now / "evaluations.jsonl").read_text().splitlines() == lines[:2]
    report.carry_over(before, before, 50)
    assert (before / "evaluations.jsonl").read_text().splitlines() == lines[:2]
