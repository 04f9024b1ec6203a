import os
import random

import numpy as np
import pytest
import torch

from priorzero.app import checkpoint


def make(folder, position, *, half=False, age=0):
    place = folder / "checkpoints" / (f"{position:06d}" + (".part" if half else ""))
    place.mkdir(parents=True)
    torch.save({"position": position}, place / "run.pt")
    os.utime(place / "run.pt", (1_000_000 - age, 1_000_000 - age))
    return place


def test_the_newest_of_a_run_or_of_all_runs(tmp_path):
    old, new = tmp_path / "logs" / "a", tmp_path / "logs" / "deep" / "b"
    make(old, 9, age=5)
    wanted = make(new, 4, age=1)
    make(new, 2, age=3)
    make(new, 6, half=True)  # not finished when the process ended
    assert checkpoint.find("last", tmp_path / "logs") == wanted
    assert checkpoint.find(str(new), tmp_path) == wanted
    assert checkpoint.find(str(wanted), tmp_path) == wanted
    assert checkpoint.find("last", tmp_path / "logs", own=old) == old / "checkpoints" / "000009"
    assert checkpoint.find("last", tmp_path / "logs", own=tmp_path / "empty") == wanted


def test_no_checkpoint(tmp_path):
    with pytest.raises(checkpoint.CheckpointError, match=r"there is no checkpoint below .* yet"):
        checkpoint.find("last", tmp_path)
    with pytest.raises(checkpoint.CheckpointError, match="nowhere is no checkpoint: expected a run's folder"):
        checkpoint.find("nowhere", tmp_path)
    make(tmp_path, 1, half=True)
    with pytest.raises(checkpoint.CheckpointError, match="is no checkpoint"):
        checkpoint.find(str(tmp_path), tmp_path)


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "run.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(checkpoint.CheckpointError, match=r"cannot read .*run\.pt: .*use an older checkpoint"):
        checkpoint.read(tmp_path)
    (tmp_path / "policy.ckpt").write_bytes(b"")
    with pytest.raises(checkpoint.CheckpointError, match=r"cannot read .*policy\.ckpt"):
        checkpoint.weights(tmp_path, "policy")
    assert checkpoint.weights(tmp_path, "world_model") is None


def test_another_configuration(tmp_path):
    mine = {"encoder": "a", "mode": "llm"}
    checkpoint.check({"fingerprint": dict(mine)}, mine, tmp_path)
    with pytest.raises(checkpoint.CheckpointError, match=r"another configuration \(encoder: b there, a here\)"):
        checkpoint.check({"fingerprint": mine | {"encoder": "b"}}, mine, tmp_path)


def test_weights_of_a_player(tmp_path):
    weights = {"model.head.weight": torch.ones(2), "target.head.weight": torch.zeros(2)}
    torch.save({"state_dict": weights}, tmp_path / "world_model.ckpt")
    found = checkpoint.player_weights(tmp_path, "world_model")
    assert found.keys() == {"head.weight"}
    assert checkpoint.player_weights(tmp_path, "policy") is None


def test_global_random_numbers_go_on(tmp_path):
    def draw():
        return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random(), np.random.randn()

    np.random.randn()  # leaves a second normal number in its state
    torch.save(checkpoint.random_state(), tmp_path / "random.pt")
    expected = draw()
    draw()
    checkpoint.set_random_state(torch.load(tmp_path / "random.pt", weights_only=True))
    assert draw() == expected
