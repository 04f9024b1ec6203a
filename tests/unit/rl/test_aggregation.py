"""How token losses become one number, and that splitting an update over micro-batches and ranks changes nothing."""

import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch

from priorzero.rl.aggregation import AggregationMode, UpdateSize, aggregate, count

close = torch.testing.assert_close
MODES = get_args(AggregationMode)
NAN = torch.nan
LOSS = torch.tensor([[1.0, NAN, 3.0], [5.0, NAN, NAN], [NAN, NAN, NAN]])
MASK = torch.tensor([[True, False, True], [True, False, False], [False, False, False]])


def norm(mode: str) -> float | None:
    return 4.0 if mode.endswith("norm") else None


@pytest.mark.parametrize(("mode", "wanted"), list(zip(MODES, (3.0, 9.0, 4.5, 3.5, 1.125), strict=True)))
def test_modes_by_hand(mode, wanted):
    tokens, sequences = count(MASK).tolist()
    assert (tokens, sequences) == (3, 2)
    size = UpdateSize(tokens=tokens, sequences=sequences, world_size=1)
    assert aggregate(LOSS, MASK, mode=mode, size=size, norm=norm(mode)).item() == pytest.approx(wanted)


def test_golden_numbers_of_verl():
    # 14 tokens in 4 sequences of width 6: token-mean, token-sum and the three seq-mean modes of one batch. A loss on
    # the first token of the longest and of the shortest sequence alone can have these sums.
    lengths = torch.tensor([6, 5, 2, 1])
    mask = torch.arange(6) < lengths[:, None]
    loss = torch.zeros(4, 6, dtype=torch.float64)
    total, means = 11.174409, 4 * 0.654052
    loss[0, 0] = (total - means) * 6 / 5
    loss[3, 0] = total - loss[0, 0]
    size = UpdateSize(tokens=14, sequences=4, world_size=1)
    for mode, golden in zip(MODES, (0.798172, 11.174409, 2.793602, 0.654052, 0.4656), strict=True):
        value = aggregate(loss, mask, mode=mode, size=size, norm=6.0 if mode.endswith("norm") else None)
        assert value.item() == pytest.approx(golden, abs=1e-6)


def test_a_micro_batch_without_tokens_gives_zero_and_a_gradient():
    loss = torch.full((2, 3), NAN, requires_grad=True)
    size = UpdateSize(tokens=5, sequences=2, world_size=2)
    for mode in MODES:
        value = aggregate(loss, torch.zeros(2, 3, dtype=torch.bool), mode=mode, size=size, norm=norm(mode))
        value.backward()
        assert value.item() == 0.0
    assert not loss.grad.any()


def test_what_cannot_work_is_refused():
    size = UpdateSize(tokens=3, sequences=2, world_size=1)
    with pytest.raises(ValueError, match="choose one of token-mean"):
        aggregate(LOSS, MASK, mode="mean", size=size)
    with pytest.raises(ValueError, match="skip the update"):
        aggregate(LOSS, MASK, mode="token-mean", size=UpdateSize(tokens=0, sequences=0, world_size=1))
    with pytest.raises(ValueError, match="norm belongs to"):
        aggregate(LOSS, MASK, mode="token-mean", size=size, norm=2.0)
    with pytest.raises(ValueError, match="norm belongs to"):
        aggregate(LOSS, MASK, mode="seq-mean-token-sum-norm", size=size)


# Seven sequences of a small model. Micro-batches of 1 and 3 sequences on rank 0, of 2 and of 1 (all masked) on rank 1.
SPLITS = (((0,), (1, 2, 3)), ((4, 5), (6,)))


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    mask = torch.rand(7, 5, generator=random) < 0.5
    mask[0] = mask[5, :4] = True
    mask[6] = False
    return torch.randn(7, 5, 3, generator=random), mask


def model() -> torch.nn.Module:
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))


def gradient(net: torch.nn.Module, mode: AggregationMode, splits: tuple, world_size: int) -> torch.Tensor:
    """Sum over micro-batches of the gradients of one rank (or of all, where ``splits`` holds all)."""
    features, mask = batch()
    tokens, sequences = count(mask).tolist()
    size = UpdateSize(tokens=tokens, sequences=sequences, world_size=world_size)
    net.zero_grad()
    for rows in map(list, splits):
        loss = net(features[rows]).squeeze(-1).square()
        aggregate(loss, mask[rows], mode=mode, size=size, norm=norm(mode)).backward()
    return torch.cat([p.grad.flatten() for p in net.parameters()])


@pytest.mark.parametrize("mode", MODES)
def test_unequal_micro_batches_on_two_ranks_give_the_gradient_of_one(mode):
    net = model()
    whole = gradient(net, mode, (range(7),), world_size=1)
    ranks = [gradient(net, mode, splits, world_size=2) for splits in SPLITS]
    close((ranks[0] + ranks[1]) / 2, whole, atol=1e-5, rtol=1e-5)
    assert whole.abs().max() > 1e-3


WORKER = """
import contextlib, importlib.util, sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

file, folder, rank = sys.argv[1], sys.argv[2], int(sys.argv[3])
spec = importlib.util.spec_from_file_location("test_aggregation", file)
t = importlib.util.module_from_spec(spec)
spec.loader.exec_module(t)
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
net = DistributedDataParallel(t.model())
features, mask = t.batch()
own = sorted(row for rows in t.SPLITS[rank] for row in rows)
counts = t.count(mask[own])
dist.all_reduce(counts)
size = t.UpdateSize(tokens=int(counts[0]), sequences=int(counts[1]), world_size=2)
micro = t.SPLITS[rank] if rank else ((0,), (1,), (2, 3))  # three micro-batches here, two there
found = {}
for mode in t.MODES:
    net.zero_grad()
    for i, rows in enumerate(map(list, micro)):
        with contextlib.nullcontext() if i == len(micro) - 1 else net.no_sync():
            loss = net(features[rows]).squeeze(-1).square()
            t.aggregate(loss, mask[rows], mode=mode, size=size, norm=t.norm(mode)).backward()
    found[mode] = torch.cat([p.grad.flatten() for p in net.parameters()])
torch.save(found, f"{folder}/rank{rank}.pt")
dist.destroy_process_group()
"""


@pytest.mark.ddp
def test_two_processes_with_unequal_micro_batches_give_the_gradient_of_one(tmp_path: Path):
    root = Path(__file__).resolve().parents[3]
    env = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    commands = [[sys.executable, "-c", WORKER, __file__, str(tmp_path), str(rank)] for rank in range(2)]
    workers = [subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) for command in commands]
    try:
        errors = [worker.communicate(timeout=120)[1] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(errors)
    for rank in range(2):
        found = torch.load(tmp_path / f"rank{rank}.pt")
        for mode in MODES:
            close(found[mode], gradient(model(), mode, (range(7),), world_size=1), atol=1e-5, rtol=1e-5)
