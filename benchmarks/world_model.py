"""Times updates of the world model: 64 windows of 10 steps, 768 wide, under a real Lightning Trainer.

From the root of the repository: ``OMP_NUM_THREADS=1 python -m benchmarks.world_model`` (seconds of processor time) or
``python -m benchmarks.world_model --device cuda`` (updates a second; bfloat16 autocast, with and without
``torch.compile`` and recorded updates; one that fails says why, and the others go on). The plain implementation runs
the target network as the trained one, all heads and all tokens. The floor is the bare matrix products of the same
shapes: forward, backward and target.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import lightning
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from benchmarks.search_cuda import Attempts, show_profile
from benchmarks.timing import cpu_ms, machine, row, show, wall_ms, write_json
from priorzero.types import WorldModelBatch
from priorzero.world_model.loss import LossWeights
from priorzero.world_model.model import UniZero, UniZeroConfig
from priorzero.world_model.module import TargetConfig, WorldModelModule, WorldModelOptim
from priorzero.world_model.update import RecordedLosses

VECTOR, UNROLL, TD_STEPS, CANDIDATES = 384, 10, 5, 100
WITHOUT_TRAINER, FLOOR = "floor: a recorded update without the Trainer", "floor: bare products"


def make_batch(windows: int) -> WorldModelBatch:
    """Random windows; a tenth of the candidates is valid in a state."""
    steps = UNROLL + TD_STEPS
    legal = torch.rand(windows, UNROLL, CANDIDATES) < 0.1
    legal[..., 0] = True
    policy = torch.rand(windows, UNROLL, CANDIDATES) * legal
    return WorldModelBatch(
        observation=torch.randn(windows, steps + 1, VECTOR),
        action=torch.randint(CANDIDATES, (windows, steps)),
        reward=torch.rand(windows, steps),
        length=torch.full((windows,), steps),
        terminated=torch.zeros(windows, dtype=torch.bool),
        candidates=torch.randn(CANDIDATES, VECTOR),
        legal=legal,
        known=torch.ones(windows, CANDIDATES, dtype=torch.bool),
        policy=policy / policy.sum(-1, keepdim=True),
        weight=torch.ones(windows),
        index=torch.arange(windows),
    )


def make_module(width: int) -> WorldModelModule:
    """The published sizes and constants."""
    sizes = {"observation_width": VECTOR, "action_width": VECTOR, "width": width, "layers": 2, "heads": 8}
    more = {"dropout": 0.1, "latent_norm": "simnorm", "support_limit": 50, "window_steps": UNROLL, "max_positions": 64}
    return WorldModelModule(
        UniZero(UniZeroConfig(**sizes, **more)),
        loss=LossWeights(latent=10.0, reward=1.0, value=0.5, policy=1.0, entropy=0.05),
        target=TargetConfig(gamma=0.997, td_steps=TD_STEPS, momentum=0.05),
        optim=WorldModelOptim(lr=3e-4, betas=(0.9, 0.95), weight_decay=1e-4, warmup_updates=10),
    )


class PlainModule(WorldModelModule):
    """The target network runs whole, like the trained one."""

    def _target_values(self, batch: WorldModelBatch) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            out = self.target(batch.observation, batch.candidates[batch.action])
            return out.latent, self.target.support.decode(out.value_logits)


class Clock(lightning.Callback):
    """Time of each update after the first few, in milliseconds: of the processor, or on the clock where a GPU works."""

    def __init__(self, skip: int, cuda: bool) -> None:
        self.skip, self.cuda, self.samples, self.start = skip, cuda, [], 0.0

    def _now(self) -> float:
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter() if self.cuda else time.process_time()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.cuda and batch_idx + 1 < self.skip:
            return
        now = self._now()
        if batch_idx + 1 > self.skip:
            self.samples.append((now - self.start) * 1e3)
        self.start = now


def train(module: WorldModelModule, windows: int, updates: int, device: str) -> list[float]:
    """Milliseconds of each update under a Trainer, its bookkeeping included."""
    batches = [make_batch(windows) for _ in range(4)]
    loader = DataLoader([batches[i % 4] for i in range(updates)], batch_size=None, pin_memory=device == "cuda")
    clock = Clock(skip=10 if device == "cuda" else 1, cuda=device == "cuda")
    trainer = lightning.Trainer(
        accelerator="gpu" if device == "cuda" else "cpu",
        devices=1,
        precision="bf16-mixed" if device == "cuda" else "32-true",
        max_epochs=1,
        gradient_clip_val=10.0,
        callbacks=[clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader)
    return clock.samples


def floor(width: int, windows: int, device: str) -> Any:
    """Bare products: target forward (last block at the observations), forward and twice as much backward."""
    d, bins, dtype = width, 101, torch.bfloat16 if device == "cuda" else torch.float32
    target, trained, states = windows * 31, windows * 20, windows * 16
    block = [(d, 3 * d), (d, d), (d, 4 * d), (4 * d, d)]
    heads = [(d, d), (d, bins), (d, d), (d, bins), (d, d), (d, d), (d, d), (d, d), (VECTOR, d), (VECTOR, d), (d, d)]
    shapes = [(target, *s) for s in [*block, block[0]]] + [(states, *s) for s in block[1:]]
    shapes += [(states, d, d), (states, d, bins), (states, VECTOR, d), (states, d, d), (states, VECTOR, d)]
    backward = [(trained, *s) for s in (*block, *block)] + [(windows * UNROLL, *s) for s in heads]

    def random(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, device=device, dtype=dtype)

    made = {(n, i, o): (random(n, i), random(o, i)) for n, i, o in {*shapes, *backward}}
    out = {s: F.linear(*made[s]) for s in backward}

    @torch.inference_mode()
    def run() -> None:
        for s in (*shapes, *backward):
            F.linear(*made[s])
        for s in backward:
            x, weight = made[s]
            out[s] @ weight
            out[s].T @ x

    return run


def bare(width: int, windows: int) -> Callable[[], None]:
    """A recorded update without the Trainer: losses, clipping, AdamW, target network. What its bookkeeping hides."""
    module = make_module(width).cuda()
    recorded = RecordedLosses(module.compute_losses, module.model.parameters(), module)
    optimizer, batch = module.configure_optimizers()["optimizer"], make_batch(windows).to("cuda")

    def run() -> None:
        with torch.autocast("cuda", dtype=torch.bfloat16, cache_enabled=False):
            losses = recorded(batch)
        optimizer.zero_grad()
        losses.total.backward()
        torch.nn.utils.clip_grad_norm_(module.model.parameters(), 10.0)
        optimizer.step()
        module.on_train_batch_end(None, batch, 0)

    return run


def make_variant(name: str, width: int) -> WorldModelModule:
    """A module that trains as ``name`` says."""
    module = make_module(width)
    if name == "plain":
        module.__class__ = PlainModule
    if "torch.compile" in name:
        module.compile_network()
    if "recorded" in name:
        module.record_updates()
    return module


def on_cuda(options: argparse.Namespace, attempt: Attempts) -> list[dict[str, Any]]:
    """Rows of a GPU."""
    names = ["plain", "update", "update, recorded"]
    if options.compile:
        names += ["update, recorded, torch.compile", "update, torch.compile"]
    return time_updates([*names, WITHOUT_TRAINER, FLOOR], options, attempt)


def time_updates(names: Sequence[str], options: argparse.Namespace, attempt: Attempts) -> list[dict[str, Any]]:
    """Rows of a GPU for these ways to update."""
    rows, width, windows, cuda = [], options.width, options.windows, torch.device("cuda")
    others = {
        WITHOUT_TRAINER: lambda: wall_ms(bare(width, windows), 50, 10, cuda),
        FLOOR: lambda: wall_ms(floor(width, windows, "cuda"), 20, 3, cuda),
    }
    for name in names:
        if name in others:
            samples = attempt(name, others[name])
        else:
            count = (options.updates or 100) + 10
            samples = attempt(name, lambda n=name, count=count: train(make_variant(n, width), windows, count, "cuda"))
        if samples:
            rows.append(row(name, samples, updates_per_s=1e3 / statistics.median(samples)))
    return rows


def profile_update(width: int, windows: int) -> None:
    """Where a recorded update spends its time on the GPU."""
    run = bare(width, windows)
    run()
    show_profile("an update, recorded, without the Trainer", run)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--updates", type=int, default=0, help="how many are timed; 0: 5, or 100 on cuda")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="on cuda: also compiled")
    parser.add_argument("--json", default="", help="where to write the rows, if not to logs/benchmarks")
    options = parser.parse_args()
    device, windows, attempt = options.device, options.windows, Attempts(budget_s=3600)
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda, but torch sees no CUDA device: " + str(machine()))
    quiet()
    if device == "cuda":
        rows = on_cuda(options, attempt)
    else:
        torch.set_num_threads(1)
        updates = (options.updates or 5) + 1
        rows = [
            row(name, train(make_variant(name, options.width), windows, updates, "cpu")) for name in ("update", "plain")
        ]
        rows.append(row(FLOOR, cpu_ms(floor(options.width, windows, "cpu"), 3)))
        for r in rows:
            r["updates_per_s"] = 1e3 / r["median_ms"]
    print(machine(), f"{windows} windows x {UNROLL} steps, d {options.width}")
    show(rows)
    write_json(options.json or f"world_model-{device}", rows, windows=windows, width=options.width)
    if attempt.failed:
        sys.exit(f"FAILED: {attempt.failed}")


def quiet() -> None:
    """Spares the advice of Lightning, and seeds."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.manual_seed(0)


if __name__ == "__main__":
    main()
