"""The commands as a user types them: each in a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from toy_runs import HELPERS, ROOT, overrides

LINE = re.compile(r"\d\d:\d\d:\d\d (INFO|WARNING|ERROR) ")
SMALL = ["mode=world_model", "trainer.max_rounds=2", "evaluation.policies=[wm]", "optimized_metric=val/wm/return"]


def start(command: str, *arguments: str, folder: Path, **settings) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(HELPERS)]), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(ROOT / f"{command}.py"), *arguments],
        cwd=folder, env=environment | {"PYTHONUNBUFFERED": "1"}, text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **settings,
    )  # fmt: skip


def run(command: str, *arguments: str, folder: Path, expect: int = 0) -> str:
    with start(command, *arguments, folder=folder) as process:
        output, _ = process.communicate(timeout=200)
    assert process.returncode == expect, output
    return output


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> tuple[Path, str]:
    """The folder of a finished run, below ``logs`` of the working directory, and what it printed."""
    folder = tmp_path_factory.mktemp("place")
    output = run("train", *overrides(tiny_encoder), *SMALL, folder=folder)
    (found,) = (folder / "logs" / "train" / "runs").glob("*/*")
    return found, output


def test_a_terminal_shows_our_lines_and_nothing_else(trained: tuple[Path, str]):
    folder, output = trained
    lines = [line for line in output.splitlines() if line and not line.startswith("|")]
    strange = [line for line in lines if not LINE.match(line)]
    assert strange == []
    assert "world_model round 1 | env_step" in output
    assert "| training games |" in output
    assert f"everything of this run is in {folder}" in output
    written = {p.name for p in folder.iterdir()}
    assert {"checkpoints", ".hydra", "evaluations.jsonl", "curve.png", "table.md", "results.json"} <= written


def test_eval_reads_the_checkpoint(trained: tuple[Path, str]):
    folder, _ = trained
    place = folder.parents[4]
    arguments = [
        "ckpt=last",
        "policies=[random,wm,wm_prior]",
        "games=[train,heldout]",
        "episodes=3",
        f"output={place}/found.json",
    ]
    output = run("eval", *arguments, folder=place)
    assert re.search(r"loaded .*checkpoints/000002, trained for \d+ environment steps", output)
    assert "| held-out games |" in output
    found = json.loads((place / "found.json").read_text())
    assert found["results"].keys() == {"training games", "held-out games"}
    assert {len(r) for results in found["results"].values() for r in results.values()} == {3}
    first = found["results"]
    config = folder / ".hydra" / "config.yaml"
    older = re.sub(r"  policy_batch_size: \d+\n", "  of_old: 1\n", config.read_text())
    assert older != config.read_text()
    config.write_text(older)  # as a version wrote it that did not know this setting
    run("eval", *arguments[:-1], f"output={place}/again.json", "search.config.simulations=4", folder=place)
    assert json.loads((place / "again.json").read_text())["results"] == first


def test_eval_reads_the_best_checkpoint(trained: tuple[Path, str]):
    folder, _ = trained
    what = [f"ckpt={folder}/checkpoints/best", "policies=[wm]", "episodes=1", f"output={folder}/best.json"]
    output = run("eval", *what, folder=folder.parents[4])
    assert re.search(r"loaded .*checkpoints/best, trained for \d+ environment steps", output)


def test_eval_refuses_another_model(trained: tuple[Path, str]):
    folder, _ = trained
    output = run("eval", f"ckpt={folder}", "world_model=unizero", folder=folder.parents[4], expect=1)
    assert "a checkpoint keeps its own world_model" in output
    assert "Traceback" not in output


def test_play_shows_an_episode(trained: tuple[Path, str]):
    folder, _ = trained
    output = run("play", f"ckpt={folder}", "game=1", "play_seed=2", folder=folder.parents[4])
    assert "corridor-4, played by wm_prior" in output
    for column in ("action", "prior", "world model", "visits", "value"):
        assert column in output
    assert re.search(r"score [012] of 2 after \d+ steps", output)


def test_help_is_quick_and_light(tmp_path: Path):
    started = os.times()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(ROOT / "train.py"), "--help"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    used = os.times()
    assert done.returncode == 0
    assert "experiment=zork_lora" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "hydra" in imported
    assert not imported & {"torch", "lightning", "transformers", "numpy"}
    assert used.children_user - started.children_user < 3


def test_a_wrong_choice_lists_the_right_ones(tmp_path: Path):
    output = run("train", "env=cookin", folder=tmp_path, expect=1)
    assert "Could not find 'env/cookin'" in output
    assert "cooking" in output.partition("Available options")[2]
    assert "Key 'simulation' is not in struct" in run("train", "search.config.simulation=3", folder=tmp_path, expect=1)


@pytest.mark.parametrize("sweep", [("-m",), ("-cd", str(ROOT / "sweeps"), "-cn", "seeds")])
def test_two_jobs_of_a_sweep(sweep: tuple[str, ...], tmp_path: Path, tiny_encoder: Path):
    quick = ["debug=fdr", "search.config.simulations=2", "mode=world_model", "evaluation.policies=[wm]"]
    run("train", *sweep, *overrides(tiny_encoder), *quick, "seed=0,1", folder=tmp_path)
    (folder,) = (tmp_path / "logs" / "train" / "multiruns").glob("*/*")
    jobs = sorted(folder.glob("[0-9]"))
    assert [job.name for job in jobs] == ["0", "1"]
    assert all((job / "checkpoints" / "000001" / "run.pt").is_file() for job in jobs)
    assert len({job.joinpath("train.log").read_text().partition("loss ")[2][:6] for job in jobs}) == 2


@pytest.mark.parametrize(
    ("command", "given", "message"),
    [
        ("train", "env.max_steps=many", "env.max_steps=many: it must be a number; without this it is"),
        ("eval", "games=train", "games=train: it must be a list, in [brackets]; without this it is [train]"),
        ("play", "steer=perhaps", "steer=perhaps: it must be true or false; without this it is false"),
    ],
)
def test_a_value_of_another_kind_is_refused_at_once(
    command: str, given: str, message: str, tmp_path: Path, tiny_encoder: Path
):
    output = run(command, *overrides(tiny_encoder), given, folder=tmp_path, expect=1)
    assert message in output
    assert "Traceback" not in output


def wait_for(process: subprocess.Popen[str], text: str) -> str:
    """What it prints up to the line with ``text``."""
    seen = ""
    for line in lines(process):
        seen += line
        if text in line:
            return seen
    raise AssertionError(f"ended without {text!r}:\n{seen}")


def ending(process: subprocess.Popen[str]) -> str:
    """The rest of what it prints; the test's own time limit applies."""
    rest = "".join(lines(process))
    process.wait()
    return rest


def lines(process: subprocess.Popen[str]) -> Iterator[str]:
    assert process.stdout is not None
    return iter(process.stdout.readline, "")


LONG = [
    "trainer.max_rounds=1000",
    "trainer.checkpoint_every_n_rounds=3",
    "evaluation.every_n_rounds=2",
    "evaluation.final_episodes=0",
]


@pytest.mark.parametrize(("collector", "asked"), [("inline", signal.SIGINT), ("thread", signal.SIGTERM)])
def test_ctrl_c_finishes_the_round_and_the_run_can_go_on(
    collector: str, asked: signal.Signals, tmp_path: Path, tiny_encoder: Path
):
    arguments = [*overrides(tiny_encoder), f"collector={collector}", *LONG]
    with start("train", *arguments, "hydra.run.dir=first", folder=tmp_path) as process:
        wait_for(process, "policy round 2 ")
        process.send_signal(asked)
        rest = ending(process)
    assert process.returncode == 130, rest
    assert "stopping after this round with a checkpoint" in rest
    assert "Traceback" not in rest
    position = int(re.search(r"stopped at round (\d+) of 2000; go on with ckpt_path=", rest)[1])
    assert sorted((tmp_path / "first" / "checkpoints").glob("0*"))[-1].name == f"{position:06d}"
    left = (position + 3) // 2
    output = run(
        "train", *arguments, "ckpt_path=first", f"trainer.max_rounds={left}", "hydra.run.dir=second", folder=tmp_path
    )
    assert f"round {position} of {2 * left}" in output
    assert f"world_model round {left - 1} |" in output


def test_ctrl_c_twice_ends_at_once_and_keeps_the_older_checkpoint(tmp_path: Path, tiny_encoder: Path):
    slow = [
        "evaluation.every_n_rounds=4",
        "evaluation.episodes=2000",
        "evaluation.at_start=false",
        "evaluation.policies=[wm]",
    ]
    arguments = [*overrides(tiny_encoder), "mode=world_model", *LONG, *slow, "hydra.run.dir=run"]
    with start("train", *arguments, folder=tmp_path) as process:
        wait_for(process, "world_model round 2 ")
        time.sleep(1)  # it is in the long evaluation of round 3
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            time.sleep(0.5)
        rest = ending(process)
    assert process.returncode == 130, rest
    assert "what was done since the last checkpoint is lost" in rest
    assert "Traceback" not in rest
    (kept,) = (tmp_path / "run" / "checkpoints").glob("0*")
    assert kept.name == "000003"
    more = ["ckpt_path=run", "trainer.max_rounds=4", "evaluation.episodes=1", "hydra.run.dir=second"]
    output = run("train", *arguments[:-1], *more, folder=tmp_path)
    assert "resumed from" in output


def test_ctrl_c_before_the_first_round(tmp_path: Path, tiny_encoder: Path):
    arguments = [
        *overrides(tiny_encoder),
        *LONG,
        "evaluation.episodes=20",
        "evaluation.at_start=true",
        "hydra.run.dir=run",
    ]
    with start("train", *arguments, folder=tmp_path) as process:
        wait_for(process, "env_step 0: wm scores")
        process.send_signal(signal.SIGINT)
        rest = ending(process)
    assert process.returncode == 130, rest
    assert "stopped at round 0 of 2000" in rest
    assert (tmp_path / "run" / "checkpoints" / "000000" / "run.pt").is_file()
