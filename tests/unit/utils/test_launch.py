import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from priorzero.utils import launch

ROOT = Path(__file__).resolve().parents[3]

# Each job starts a second process the way Lightning does (`lightning.fabric.strategies.launchers.subprocess_script`).
JOB = """
import os, subprocess, sys
from pathlib import Path
import hydra
from hydra.core.hydra_config import HydraConfig
from priorzero.utils.launch import own_processes

@hydra.main(version_base="1.3", config_path="conf", config_name="train")
@own_processes
def main(cfg):
    child = os.environ.get("LOCAL_RANK")
    folder = HydraConfig.get().run.dir if child else HydraConfig.get().runtime.output_dir
    (Path(folder) / f"rank{child or 0}.txt").write_text(f"{cfg.lr} {cfg.size} {cfg.model.depth}")
    if child is None:
        assert "MASTER_PORT" not in os.environ
        os.environ["MASTER_PORT"] = "1234"
        run_dir = f'hydra.run.dir="{HydraConfig.get().run.dir}"'
        command = [sys.executable, os.path.abspath(sys.argv[0]), *sys.argv[1:], run_dir, "hydra.output_subdir=null"]
        subprocess.run(command, check=True, env=os.environ | {"LOCAL_RANK": "1"})

if __name__ == "__main__":
    main()
"""


@pytest.fixture
def project(tmp_path):
    """A small Hydra program in a folder whose name has a space."""
    folder = tmp_path / "a project"
    files = {
        "job.py": JOB,
        "conf/train.yaml": "defaults: [model: small, _self_]\nlr: 0.1\nsize: 1\n",
        "conf/model/small.yaml": "depth: 1\n",
        "extra/sweep.yaml": (
            "defaults: [train, _self_]\nhydra: {mode: MULTIRUN, sweeper: {params: {lr: '0.2,0.3'}}}\n"
        ),
        "mine/model/large.yaml": "depth: 9\n",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def run(project, *arguments):
    environment = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "MASTER_PORT")}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        [sys.executable, "job.py", *arguments],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = {str(f.relative_to(project)): f.read_text() for f in project.rglob("rank*.txt")}
    return {name: text for name, text in sorted(found.items())}


@pytest.mark.parametrize(
    ("arguments", "jobs"),
    [
        (["-m", "lr=0.5,0.6", "size=7", "hydra.sweep.dir=out"], ["0.5 7 1", "0.6 7 1"]),
        (["-cd", "extra", "-cn", "sweep", "size=8", "hydra.sweep.dir=out"], ["0.2 8 1", "0.3 8 1"]),
        (["-m", "lr=0.5", "model=large", "hydra.searchpath=[file://mine]", "hydra.sweep.dir=out"], ["0.5 1 9"]),
    ],
)
def test_ranks_of_a_sweep_run_their_own_job_in_its_folder(project, arguments, jobs):
    expected = {f"out/{n}/rank{rank}.txt": job for n, job in enumerate(jobs) for rank in (0, 1)}
    assert run(project, *arguments) == expected


def test_single_runs_are_left_alone(project):
    assert run(project, "lr=0.4", "hydra.run.dir=out/one") == {
        "out/one/rank0.txt": "0.4 1 1",
        "out/one/rank1.txt": "0.4 1 1",
    }


def test_environment_takes_the_default_for_unset_and_empty(monkeypatch):
    monkeypatch.setenv("PRIORZERO_TEST", "here")
    assert launch.environment("PRIORZERO_TEST", "other") == "here"
    monkeypatch.setenv("PRIORZERO_TEST", "")
    assert launch.environment("PRIORZERO_TEST", "other") == "other"
    monkeypatch.delenv("PRIORZERO_TEST")
    assert launch.environment("PRIORZERO_TEST") is None


def test_rank_comes_from_whoever_started_the_processes(monkeypatch):
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert launch.rank() == 0
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert launch.rank() == 1
    monkeypatch.setenv("RANK", "5")
    assert launch.rank() == 5


def test_set_threads():
    before = torch.get_num_threads()
    try:
        launch.set_threads(1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    with pytest.raises(ValueError, match="at least 1, not 0"):
        launch.set_threads(0)
