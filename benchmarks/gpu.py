"""Search and update of the world model on one GPU, every choice of kernels beside the others, in at most 150 seconds.

From the root of the repository: ``python -m benchmarks.gpu``. A choice that fails says why, and the others go on; what
there is no time left for is skipped. The compiled ones come last: compiling takes half a minute each. Writes the same
reports as `benchmarks.search` and `benchmarks.world_model`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch

from benchmarks import search_cuda, world_model
from benchmarks.search_cuda import Attempts
from benchmarks.timing import machine, show, write_json


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--simulations", type=int, default=25)
    parser.add_argument("--batches", type=int, nargs="*", default=(64, 256))
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--samples", type=int, default=15, help="searches that are timed")
    parser.add_argument("--updates", type=int, default=60, help="updates that are timed")
    parser.add_argument("--budget", type=float, default=145.0, help="seconds")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("no CUDA device: " + str(machine()))
    world_model.quiet()
    attempt, options.compile = Attempts(options.budget), False
    print(machine(), flush=True)
    sizes, batches, names = (options.width, options.simulations), options.batches, list(search_cuda.VARIANTS)
    searches = []

    def time_searches(chosen: Sequence[str]) -> None:
        for name in chosen:
            searches.extend(search_cuda.time_variant(name, options, batches, attempt))

    time_searches(names[:2])  # plain ones first: a kernel that fails leaves no GPU to the others
    searches += attempt("floor", lambda: search_cuda.floor_rows(*sizes, batches, options.samples)) or []
    updates = world_model.on_cuda(options, attempt)
    attempt("profile of the update", lambda: world_model.profile_update(options.width, options.windows))
    time_searches(names[2:])
    for batch in batches:
        attempt(f"profile, B={batch}", lambda b=batch: search_cuda.profile_search(*sizes, b))
    show(searches)
    show(updates)
    attempt("the kernels agree", lambda: search_cuda.check_kernels(*sizes))
    attempt("GPU and CPU agree", lambda: search_cuda.check_cpu(*sizes))
    updates += world_model.time_updates(["update, recorded, torch.compile"], options, attempt)
    time_searches(list(search_cuda.COMPILED))
    updates += world_model.time_updates(["update, torch.compile"], options, attempt)
    print(f"search: {options.simulations} simulations; update: {options.windows} windows x {world_model.UNROLL} steps; "
          f"d {options.width}, two layers, bfloat16")  # fmt: skip
    show(searches)
    show(updates)
    write_json("search-cuda", searches, simulations=options.simulations)
    write_json("world_model-cuda", updates, windows=options.windows, width=options.width)
    if attempt.failed:
        sys.exit(f"FAILED: {attempt.failed}")


if __name__ == "__main__":
    main()
