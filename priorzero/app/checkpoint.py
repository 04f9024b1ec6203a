"""One folder holds all that a run needs to go on: both models with their optimizers, the replay and the counters.

A checkpoint is complete or absent: it is written beside its place and renamed. Tensors and plain containers only.
"""

from __future__ import annotations

import contextlib
import random
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from priorzero.callbacks.weights import snapshot

if TYPE_CHECKING:
    from priorzero.app.build import Run

FILES = {"world_model": "world_model.ckpt", "policy": "policy.ckpt"}
LAYOUT = 9  # of run.pt and the replay: what this code goes on from
BEST = "best"  # the folder of the checkpoint that evaluation liked most, beside those with numbers
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
        if learner.resume_from is not None:  # not trained since the run was resumed
            shutil.copyfile(learner.resume_from, half / FILES[name])
            learner.resume_from = folder / FILES[name]
        elif learner.rounds:
            learner.trainer.save_checkpoint(half / FILES[name], weights_only=False)
    with run.collector.paused():
        torch.save(_state(run), half / "run.pt")
        run.replay.save(half / "replay")
    shutil.rmtree(folder, ignore_errors=True)
    half.rename(folder)
    for old in sorted(folder.parent.glob("[0-9]*[0-9]"))[:-keep]:
        shutil.rmtree(old)
    return folder


def save_best(run: Run) -> None:
    """Write what plays now to ``checkpoints/best``: for `eval.py` and `play.py`, without what only training needs."""
    folder = run.folder / "checkpoints" / BEST
    half = folder.with_name(folder.name + ".part")
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir(parents=True)
    for name, learner in run.learners.items():
        if run.mailbox.versions[name]:
            played = {PLAYED[name] + key: weight for key, weight in snapshot(learner.module).items()}
            torch.save({"state_dict": played}, half / FILES[name])
    state = {
        "fingerprint": run.fingerprint,
        "actor": {"env_steps": run.collector.actor.env_steps},
        "vocabulary": run.vocabulary.state_dict(),
        "versions": dict(run.mailbox.versions),
        "metric": run.evaluation.config.best_by,
        "value": run.evaluation.best,
    }
    torch.save(state, half / "run.pt")
    shutil.rmtree(folder, ignore_errors=True)
    half.rename(folder)


def _keep_best(run: Run, best: Path) -> None:
    """Go on from the best checkpoint of a run, if it is of its past and of the same metric."""
    own = run.folder / "checkpoints" / BEST
    if not best.is_dir():
        return
    kept, here = read(best), best.resolve() == own.resolve()
    later = kept["actor"]["env_steps"] > run.collector.actor.env_steps
    if kept["metric"] != run.evaluation.config.best_by or (later and not here):
        return
    if not here:
        half = own.with_name(own.name + ".part")
        for old in (half, own):
            shutil.rmtree(old, ignore_errors=True)
        shutil.copytree(best, half)
        half.rename(own)
    run.evaluation.best = kept["value"]


def _state(run: Run) -> dict[str, Any]:
    player = run.collector.actor.player
    return {
        "layout": LAYOUT,
        "position": run.position,
        "rounds": {name: learner.rounds for name, learner in run.learners.items()},
        "fingerprint": run.fingerprint,
        "actor": run.collector.actor.state_dict(),
        "limiter": run.limiter.state_dict(),
        "vocabulary": run.vocabulary.state_dict(),
        "versions": dict(run.mailbox.versions),
        "evaluation_rng": run.evaluation.player.rng.bit_generator.state,
        "data": {name: learner.data.state_dict() for name, learner in run.learners.items()},
        "encoder": player.encoder.state_dict(),
        "prior": None if player.prior is None else player.prior.state_dict(),
        "random": random_state(),
    }


def restore(run: Run, folder: Path) -> None:
    """Take over everything from a checkpoint: weights, optimizers, replay, counters, random numbers, games.

    Raises:
        CheckpointError: it is damaged, or belongs to another configuration or version.
    """
    state = read(folder)
    check(state, run.fingerprint, folder)
    if "position" not in state:
        raise CheckpointError(f"{folder} holds what plays, not what trains: go on from a checkpoint with a number")
    if state.get("layout") != LAYOUT:
        raise CheckpointError(
            f"{folder} was written by another version of priorzero: go on with that version; eval.py can play it"
        )
    actor, player = run.collector.actor, run.collector.actor.player
    run.position = state["position"]
    run.vocabulary.load_state_dict(state["vocabulary"])
    run.limiter.load_state_dict(state["limiter"])
    with _readable(folder / "replay"):
        run.replay.load(folder / "replay")
    trained = {name: found for name in run.learners if (found := weights(folder, name)) is not None}
    for name, learner in run.learners.items():
        learner.data.load_state_dict(state["data"][name])
        learner.rounds = state["rounds"][name]
        if name in trained:
            learner.module.load_state_dict(trained[name], strict=name == "world_model")
            learner.resume_from = folder / FILES[name]
    run.mailbox.restore(state["versions"], {name: snapshot(run.learners[name].module) for name in trained})
    run.mailbox.deliver(actor)
    if player.prior is not None:
        player.prior.load_state_dict(state["prior"])
    player.encoder.load_state_dict(state["encoder"])
    actor.load_state_dict(state["actor"])
    player.encoder.load_state_dict(state["encoder"])  # the running episodes, played again, have moved its counters
    run.evaluation.player.rng.bit_generator.state = state["evaluation_rng"]
    _keep_best(run, folder.with_name(BEST))
    set_random_state(state["random"])


def random_state() -> dict[str, Any]:
    """The state of all global random numbers, as tensors and plain containers."""
    name, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [name, torch.from_numpy(np.asarray(keys, np.int64)), *rest],
        "python": random.getstate(),
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Go on with the global random numbers of `random_state`."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    random.setstate(state["python"])


def find(path: str, runs: Path, own: Path | None = None) -> Path:
    """A checkpoint folder from what a user types.

    Args:
        path: ``last`` (the newest checkpoint), a run's folder, or a checkpoint's folder.
        runs: where the folders of runs lie, for ``last``.
        own: the folder of this run; with ``last``, checkpoints in it come before all others.

    Raises:
        CheckpointError: there is none.
    """
    if path == "last":
        places = [place for place in (own, runs) if place is not None]
        for place in places:
            found = sorted(place.rglob("checkpoints/[0-9]*[0-9]/run.pt"), key=lambda p: p.stat().st_mtime)
            if found:
                return found[-1].parent.absolute()
        raise CheckpointError(f"there is no checkpoint below {runs} yet: name the folder of a run instead of last")
    folder = Path(path)
    if (folder / "run.pt").is_file():
        return folder.absolute()
    found = sorted((folder / "checkpoints").glob("[0-9]*[0-9]/run.pt"))
    if not found:
        raise CheckpointError(
            f"{path} is no checkpoint: expected a run's folder with checkpoints/ in it, or one of the folders in there"
        )
    return found[-1].parent.absolute()


@contextlib.contextmanager
def _readable(file: Path) -> Generator[None]:
    try:
        yield
    except Exception as error:  # torch raises whatever the bytes of a damaged file lead to
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"cannot read {file}: {reason}. It may be damaged: use an older checkpoint") from error


def read(folder: Path) -> dict[str, Any]:
    """The counters and states of a checkpoint, without the models and the replay.

    Raises:
        CheckpointError: it is damaged.
    """
    with _readable(folder / "run.pt"):
        return torch.load(folder / "run.pt", weights_only=True)


def check(state: dict[str, Any], fingerprint: dict[str, Any], folder: Path) -> None:
    """Refuse a checkpoint whose models or inputs are not those of this run.

    Raises:
        CheckpointError: they differ; the message says in what.
    """
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
    """The state_dict of one LightningModule, None if that model had not been trained yet.

    Raises:
        CheckpointError: it is damaged.
    """
    file = folder / FILES[name]
    if not file.is_file():
        return None
    with _readable(file):
        return torch.load(file, weights_only=True, map_location="cpu")["state_dict"]


def player_weights(folder: Path, name: str) -> dict[str, torch.Tensor] | None:
    """Of `weights`, what planner or prior take."""
    found, prefix = weights(folder, name), PLAYED[name]
    return found and {key.removeprefix(prefix): w for key, w in found.items() if key.startswith(prefix)}
