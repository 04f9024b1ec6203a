"""What the benchmarks share: samples, tables, JSON."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch


def cpu_ms(run: Callable[[], object], samples: int, warm_ups: int = 1) -> list[float]:
    """Milliseconds of processor time of this process, one number a sample."""
    for _ in range(warm_ups):
        run()
    out = []
    for _ in range(samples):
        start = time.process_time()
        run()
        out.append((time.process_time() - start) * 1e3)
    return out


def wall_ms(run: Callable[[], object], samples: int, warm_ups: int, device: torch.device) -> list[float]:
    """Milliseconds on the clock, the device idle before and after."""
    for _ in range(warm_ups):
        run()
    out = []
    for _ in range(samples):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        out.append((time.perf_counter() - start) * 1e3)
    return out


def row(name: str, samples: Sequence[float], **more: Any) -> dict[str, Any]:
    """A row of a table: median and fastest of the samples."""
    return {"what": name, **more, "median_ms": statistics.median(samples), "min_ms": min(samples), "n": len(samples)}


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Prints rows with equal keys as a markdown table."""
    names = list(dict.fromkeys(name for r in rows for name in r))
    print("| " + " | ".join(names) + " |\n|" + "---|" * len(names))
    for r in rows:
        print("| " + " | ".join(_text(r.get(name, "")) for name in names) + " |", flush=True)


def _text(value: Any) -> str:
    return f"{value:,.1f}" if isinstance(value, float) else str(value)


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    return {**versions, "threads": torch.get_num_threads(), "cpu": torch.backends.cpu.get_cpu_capability(), "gpu": gpu}


def write_json(path: str, rows: Sequence[dict[str, Any]], **more: Any) -> None:
    """Writes rows and machine as JSON to ``path``; a bare name means ``logs/benchmarks/NAME.json``."""
    file = Path(path) if Path(path).suffix else Path("logs/benchmarks", f"{path}.json")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"machine": machine(), **more, "rows": list(rows)}, indent=1))
    print(f"written to {file}")
