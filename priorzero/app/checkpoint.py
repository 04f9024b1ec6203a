"""One folder holds all that a run needs to go on: both models with their optimizers, the replay and the counters.

A checkpoint is complete or absent: it is written beside its place and renamed. Tensors and plain containers only.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from priorzero.app.build import Run

FILES = {"world_model": "world_model.ckpt", "policy": "policy.ckpt"}
PLAYED = {"world_model": "model.", "policy": "scorer.model."}  # prefix of what a player needs in the state_dict


class CheckpointError(RuntimeError):
    """A checkpoint cannot be found, read, or does not fit this run."""


def save(run: Run, keep: int) -> Path:
    """Write the state of ``run`` and delete all but the newest ``keep`` checkpoints."""
    folder = run.folder / "checkpoints" / f"{run.position:06d}"
    half = folder.with_name(folder.name + ".part")
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir(parents=True)
    for name, learner in run.learners.items():
        if learner.rounds:
            learner.trainer.save_checkpoint(half / FILES[name])
    with run.collector.paused():
        torch.save(_state(run), half / "run.pt")
        run.replay.save(half / "replay")
    shutil.rmtree(folder, ignore_errors=True)
    half.rename(folder)
    for old in sorted(folder.parent.glob("[0-9]*[0-9]"))[:-keep]:
        shutil.rmtree(old)
    return folder


def _state(run: Run) -> dict[str, Any]:
    return {
        "position": run.position,
        "rounds": {name: learner.rounds for name, learner in run.learners.items()},
        "fingerprint": run.fingerprint,
        "actor": run.collector.actor.state_dict(),
        "limiter": run.limiter.state_dict(),
        "vocabulary": run.vocabulary.state_dict(),
        "versions": dict(run.mailbox.versions),
        "evaluation_rng": run.evaluation.player.rng.bit_generator.state,
        "data": {name: learner.data.state_dict() for name, learner in run.learners.items()},
    }


def find(path: str, runs: Path) -> Path:
    """A checkpoint folder from what a user types.

    Args:
        path: ``last`` (the newest run's newest checkpoint), a run's folder, or a checkpoint's folder.
        runs: where the folders of runs lie, for ``last``.

    Raises:
        CheckpointError: there is none.
    """
    if path == "last":
        found = sorted(runs.rglob("checkpoints/[0-9]*[0-9]/run.pt"), key=lambda p: p.stat().st_mtime)
        if not found:
            raise CheckpointError(f"ckpt_path=last: there is no checkpoint below {runs}; name a run's folder instead")
        return found[-1].parent
    folder = Path(path)
    if (folder / "run.pt").is_file():
        return folder
    found = sorted((folder / "checkpoints").glob("[0-9]*[0-9]/run.pt"))
    if not found:
        raise CheckpointError(
            f"{path} is no checkpoint: expected a run's folder with checkpoints/ in it, or one of the folders in there"
        )
    return found[-1].parent


def read(folder: Path) -> dict[str, Any]:
    """The counters and states of a checkpoint, without the models and the replay."""
    try:
        return torch.load(folder / "run.pt", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"cannot read {folder / 'run.pt'}: {error}. It may be damaged; use an older one") from error


def check(state: dict[str, Any], fingerprint: dict[str, Any], folder: Path) -> None:
    """Refuse a checkpoint whose models or inputs are not those of this run."""
    saved = state["fingerprint"]
    different = [
        f"{key}: {saved.get(key)} there, {fingerprint.get(key)} here"
        for key in sorted(saved.keys() | fingerprint.keys())
        if saved.get(key) != fingerprint.get(key)
    ]
    if different:
        raise CheckpointError(
            f"the checkpoint {folder} belongs to another configuration ({'; '.join(different)}). "
            "Use the configuration that it was made with (its run folder has it in .hydra/config.yaml)"
        )


def weights(folder: Path, name: str) -> dict[str, torch.Tensor] | None:
    """The state_dict of one LightningModule, None if that model had not been trained yet."""
    file = folder / FILES[name]
    return torch.load(file, weights_only=True, map_location="cpu")["state_dict"] if file.is_file() else None


def player_weights(folder: Path, name: str) -> dict[str, torch.Tensor] | None:
    """Of `weights`, what planner or prior take."""
    found, prefix = weights(folder, name), PLAYED[name]
    return found and {key.removeprefix(prefix): w for key, w in found.items() if key.startswith(prefix)}
