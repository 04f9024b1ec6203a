"""Times whole decisions on a GPU for each choice of kernels, beside each other; and checks that all of them agree.

``python -m benchmarks.search --device cuda``, or together with the update ``python -m benchmarks.gpu``. A choice that
fails says why, and the others go on.
"""

from __future__ import annotations

import argparse
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import numpy as np
import torch

from benchmarks.search import VECTOR, VOCABULARY, Decisions, make_model, make_planner, must_agree, products
from benchmarks.timing import row, wall_ms
from priorzero.types import SearchResult
from priorzero.world_model.device import Kernels
from priorzero.world_model.planner import DevicePlanner, Planner

VARIANTS: dict[str, tuple[type[Planner], Kernels]] = {
    "host tree, plain network": (Planner, Kernels("plain", "plain")),
    "device tree, plain network": (DevicePlanner, Kernels("plain", "plain")),
    "Triton tree, plain network": (DevicePlanner, Kernels("plain", "triton")),
    "host tree, Triton network": (Planner, Kernels("triton", "plain")),
    "Triton tree, Triton network": (DevicePlanner, Kernels("triton", "triton")),
}
COMPILED = {"Triton tree, torch.compile network": (DevicePlanner, Kernels("compiled", "triton"))}
BEST = "Triton tree, Triton network"


class Attempts:
    """Runs parts of a benchmark of which some may fail, within a budget of time."""

    def __init__(self, budget_s: float) -> None:
        self.end, self.failed = time.monotonic() + budget_s, []

    def __call__(self, what: str, run: Callable[[], Any]) -> Any:
        """What ``run`` gives; None where it fails or is out of time: why is printed."""
        start, left = time.monotonic(), self.end - time.monotonic()
        if left < 1:
            print(f"SKIPPED, out of time: {what}", flush=True)
            return None
        old = signal.signal(signal.SIGALRM, _out_of_time)
        signal.setitimer(signal.ITIMER_REAL, left)
        try:
            out = run()
        except (Exception, SystemExit) as error:  # the others go on
            traceback.print_exc(limit=-8)
            self.failed.append(what)
            print(f"FAILED after {time.monotonic() - start:.1f} s: {what}: {type(error).__name__}: {str(error)[:800]}")
            return None
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, old)
        print(f"done in {time.monotonic() - start:.1f} s: {what}", flush=True)
        return out


def _out_of_time(_signal: int, _frame: FrameType | None) -> None:
    raise TimeoutError("out of time")


def on_cuda(options: argparse.Namespace, attempt: Attempts) -> list[dict[str, Any]]:
    """Rows of decisions a second."""
    width, sims, batches = options.width, options.simulations, options.batches or (1, 8, 64, 256, 1024)
    attempt("the kernels agree", lambda: check_kernels(width, sims))
    attempt("GPU and CPU agree", lambda: check_cpu(width, sims))
    rows = []
    for name in VARIANTS | (COMPILED if options.compile else {}):
        rows += time_variant(name, options, batches, attempt)
    return rows + (attempt("floor", lambda: floor_rows(width, sims, batches, options.samples)) or [])


def variant(width: int, simulations: int, name: str, precision: str | None = None) -> Planner:
    """A planner on the GPU whose kernels are chosen."""
    kind, kernels = (VARIANTS | COMPILED)[name]
    return make_planner(width, simulations, kind, device="cuda", precision=precision, kernels=kernels)


def time_variant(
    name: str, options: argparse.Namespace, batches: Sequence[int], attempt: Attempts
) -> list[dict[str, Any]]:
    """Decisions a second, everything included, and the kernels of a simulation."""
    width, sims, rows = options.width, options.simulations, []
    planner = attempt(f"{name}: its weights", lambda: variant(width, sims, name))
    for batch in batches if planner is not None else ():
        decisions = Decisions(batch)

        def run(count: int = sims, planner: Planner = planner, decisions: Decisions = decisions) -> SearchResult:
            return decisions.search(planner, count)

        taken = attempt(f"{name}, B={batch}", lambda run=run: wall_ms(run, options.samples, 5, torch.device("cuda")))
        if taken is None:
            break
        rows.append(rated(row(name, taken, d=width, B=batch), sims))
        if batch == batches[0]:
            counted = attempt(f"{name}: its kernels", lambda run=run: kernels_a_simulation(run, sims))
            rows[-1]["kernels_per_simulation"] = counted or ""
    return rows


def rated(taken: dict[str, Any], simulations: int) -> dict[str, Any]:
    """A row with decisions a second and microseconds a simulation."""
    taken["decisions_per_s"] = round(taken["B"] / taken["median_ms"] * 1e3)
    taken["us_per_simulation"] = taken["median_ms"] * 1e3 / simulations
    return taken


def floor_rows(width: int, sims: int, batches: Sequence[int], samples: int) -> list[dict[str, Any]]:
    """The bare products."""
    rows = []
    for batch in batches:
        taken = wall_ms(products(width, sims, batch, "cuda", torch.bfloat16), samples, 5, torch.device("cuda"))
        rows.append(rated(row("floor: bare products, bfloat16, graph", taken, d=width, B=batch), sims))
    return rows


# ------------------------------------------------------------------------------------------------------------ kernels


def kernels_a_simulation(search: Callable[[int], object], simulations: int) -> float:
    """How many kernels the GPU runs for one more simulation."""
    counts = []
    for count in (simulations, simulations - 5):
        search(count)
        counts.append(sum(calls for calls, _ in profiled(lambda n=count: search(n)).values()))
    return (counts[0] - counts[1]) / 5


def profiled(run: Callable[[], object]) -> dict[str, tuple[int, float]]:
    """Calls and microseconds of each kernel, copies left out."""
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    found: dict[str, tuple[int, float]] = {}
    for event in profiler.events():
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.name.startswith(("Memcpy", "Memset")):
            calls, taken = found.get(event.name, (0, 0.0))
            found[event.name] = calls + 1, taken + event.time_range.elapsed_us()
    return found


def show_profile(what: str, run: Callable[[], object], most: int = 16) -> None:
    """Prints where the time on the GPU goes."""
    run()
    found = sorted(profiled(run).items(), key=lambda item: -item[1][1])
    calls, taken = (sum(x[i] for _, x in found) for i in (0, 1))
    print(f"{what}: {calls} kernels, {taken / 1e3:.2f} ms of the GPU")
    for name, (times, us) in found[:most]:
        print(f"  {us:8.0f} us  {times:5d} x {us / times:6.2f} us  {name[:90]}", flush=True)


def profile_search(width: int, sims: int, batch: int) -> None:
    """Where a search with the best choice of kernels spends its time."""
    planner, decisions = variant(width, sims, BEST), Decisions(batch)
    show_profile(f"a search, {BEST}, B={batch}", lambda: decisions.search(planner, sims))


# ---------------------------------------------------------------------------------------------------------- agreement


def check_kernels(width: int, sims: int) -> None:
    """Every choice of kernels against plain operations with the tree on the host."""
    for precision, batches, share in (("float32", (5, 64), 0.95), ("bfloat16", (64,), 0.99)):
        truth = {n: variant(width, sims, f"host tree, {n} network", precision) for n in ("plain", "Triton")}
        for name in VARIANTS:
            # in bfloat16 two networks round differently: only their trees are compared
            network = "Triton" if precision == "bfloat16" and "Triton network" in name else "plain"
            if name == f"host tree, {network} network":
                continue
            planner = variant(width, sims, name, precision)
            for algorithm in ("puct", "gumbel"):
                for batch in batches:
                    decisions = Decisions(batch, seed=batch)
                    a, b = (decisions.search(p, sims, algorithm) for p in (truth[network], planner))
                    what = f"{algorithm}, {precision}, B={batch}: host tree, {network} network and {name}"
                    must_agree(what, a, b, share)


def check_cpu(width: int, sims: int) -> None:
    """The GPU in float32 against the CPU."""
    cpu = make_planner(width, sims)
    gpu = make_planner(width, sims, DevicePlanner, device="cuda", precision="float32")
    decisions = Decisions(32)
    said = [p.root(decisions.context, decisions.actions, decisions.known) for p in (cpu, gpu)]
    np.testing.assert_allclose(said[0].value, said[1].value, atol=1e-3, rtol=1e-3)
    np.testing.assert_allclose(said[0].logits, said[1].logits, atol=1e-3, rtol=1e-3)
    must_agree("CPU and GPU, float32", decisions.search(cpu, sims), decisions.search(gpu, sims), 0.8)
    state = {name: x * 1.01 for name, x in make_model(width, sims).state_dict().items()}
    for planner in (cpu, gpu):  # recorded graphs must see new weights and new actions
        planner.load_weights(state)
        planner.set_actions(np.random.default_rng(7).standard_normal((VOCABULARY + 9, VECTOR)).astype(np.float32))
    decisions.known = np.pad(decisions.known, ((0, 0), (0, 9)), constant_values=True)
    must_agree("the same after new weights", decisions.search(cpu, sims), decisions.search(gpu, sims), 0.8)
