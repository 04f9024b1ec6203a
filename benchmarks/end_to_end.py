"""Plays, and trains if asked, as a run does: environment steps a second, and where the time goes.

From the root of the repository, on an idle machine: ``python -m benchmarks.end_to_end --env detective --num-envs 64
--simulations 25 --device cuda --llm none``. The run is built from the configuration by what ``train.py`` uses, and more
overrides of the configuration may follow. With ``--train`` the world model is trained beside it, as often as
``data.samples_per_insert`` says (``data.updates_per_round`` where the collector is inline, which it is on a CPU).

The first seconds of each setting (``--warm-up``) are left out of every figure: workers start, games are generated,
graphs are recorded, loops compiled, and the caches of texts, valid actions and scores take their first entries. Several
``--groups`` are played in turns, slice by slice, so that their ratio does not depend on what else the machine does.

Shares are of the time on the clock. "games" is waiting for the workers, which play while something else is searched if
there are 2 groups. "own ms" and "worker ms" are processor milliseconds a step, of this process and of the workers; only
games that have to look for valid actions say what these cost. In a thread the updates run beside the rest, so the
shares add up to more than 100; "rest" is then of the collecting thread, and holds its waiting for updates. There a step
counts once its updates are made, even if the collector has run ahead.
"""

from __future__ import annotations

from priorzero.utils.launch import share_cores

share_cores()  # before PyTorch is imported, as the commands do

import argparse  # noqa: E402
import logging  # noqa: E402
import math  # noqa: E402
import statistics  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
import warnings  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from contextlib import ExitStack, closing  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import lightning  # noqa: E402
import torch  # noqa: E402
from hydra import compose, initialize_config_dir  # noqa: E402
from omegaconf import DictConfig  # noqa: E402

from benchmarks.timing import machine, show, write_json  # noqa: E402
from priorzero.app.build import Run, build_run  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
NEVER = 10**6
OWN = ("env", "encode", "search", "prior")  # what the player times
NAMES = {"env": "games %", "encode": "encode %", "search": "search %", "prior": "prior %"}


def configuration(options: argparse.Namespace, groups: int, folder: str) -> DictConfig:
    """The configuration of a run that does nothing but play and train."""
    cuda, without = options.device == "cuda", options.llm == "none"
    kind = "thread" if options.train and cuda else "inline"
    overrides = [
        f"env={options.env}", f"world_model={options.world_model}", f"search={options.search}", f"llm={options.llm}",
        f"prior={'none' if without else 'llm'}", "mode=world_model", f"trainer={'gpu' if cuda else 'cpu'}",
        f"collector={kind}", f"collector.groups={groups}", f"collector.num_envs={options.num_envs}",
        f"collector.policy={'wm' if without else 'wm_prior'}", f"search.config.simulations={options.simulations}",
        "logger=none", "evaluation.at_start=false", "evaluation.final_episodes=0",
        "evaluation.policies=[wm]", "evaluation.final_policies=[wm]", f"evaluation.every_n_rounds={NEVER}",
        f"trainer.max_rounds={NEVER}", f"trainer.checkpoint_every_n_rounds={NEVER}", "trainer.progress_bar=false",
        f"paths.output_dir={folder}", f"paths.log_dir={folder}", f"paths.root={ROOT}",
    ]  # fmt: skip
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = compose("train", [*overrides, *options.overrides])
    insert = cfg.collector.num_envs * cfg.collector.segment_steps * cfg.data.samples_per_insert
    if cfg.collector.kind == "thread":  # as little slack as it may have: neither side runs ahead for long
        cfg.data.tolerance = math.ceil((insert + cfg.data.batch_size) / 2)
    return cfg


@dataclass(frozen=True)
class Reading:
    """All counters of a run at one moment."""

    time: float
    processor: float  # of this process, all threads
    steps: int
    own: dict[str, float]
    workers: dict[str, float]
    texts: tuple[int, int]  # answered from the cache, computed
    updates: int = 0
    update_s: float = 0.0


def read(run: Run, updates: int = 0, update_s: float = 0.0) -> Reading:
    """The counters as they are now."""
    actor, encoder = run.collector.actor, run.collector.actor.player.encoder
    own = {name: actor.player.seconds[name] for name in OWN}
    texts = encoder.hits, encoder.misses
    now = time.perf_counter(), time.process_time()
    return Reading(*now, actor.env_steps, own, dict(actor.envs.seconds), texts, updates, update_s)


def row(cfg: DictConfig, a: Reading, b: Reading) -> dict[str, Any]:
    """What happened between two readings."""
    seconds, steps, updates = b.time - a.time, b.steps - a.steps, b.updates - a.updates
    spent = {NAMES[name]: 100 * (b.own[name] - a.own[name]) / seconds for name in OWN}
    update = 100 * (b.update_s - a.update_s) / seconds
    beside = update if cfg.collector.kind == "inline" else 0.0
    hits, misses = (y - x for x, y in zip(a.texts, b.texts, strict=True))
    work = {name: b.workers[name] - a.workers[name] for name in b.workers}
    out: dict[str, Any] = {"groups": cfg.collector.groups, "steps/s": steps / seconds, **spent}
    if updates:
        windows = updates * cfg.data.batch_size
        if cfg.collector.kind == "thread":
            out["steps/s"] = min(steps, windows / cfg.data.samples_per_insert) / seconds
        out |= {"update %": update, "updates/s": updates / seconds, "windows/step": windows / max(steps, 1)}
    out["rest %"] = 100 - sum(spent.values()) - beside
    ms = 1e3 / max(steps, 1)
    out |= {"own ms": (b.processor - a.processor) * ms, "worker ms": work["step"] * ms}
    out |= {"of it valid actions": work["valid_actions"] * ms, "cores of workers": work["step"] / seconds}
    return out | {"text hits %": 100 * hits / max(hits + misses, 1)}


# --------------------------------------------------------------------------------------------------------- playing


def play(run: Run, seconds: float) -> Reading:
    """Play for so long; the counters at the end."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        run.collector.play(1)
    return read(run)


def in_turns(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Rows of all settings, a slice of each in turn."""
    with ExitStack() as stack:
        runs = [stack.enter_context(closing(build(options, groups, stack))) for groups in options.groups]
        for run in runs:
            play(run, options.warm_up)
        for _ in range(options.slices):
            for run in runs:
                yield row(run.cfg, read(run), play(run, options.seconds / options.slices))


def build(options: argparse.Namespace, groups: int, stack: ExitStack) -> Run:
    """A run in a folder of its own."""
    return build_run(configuration(options, groups, stack.enter_context(tempfile.TemporaryDirectory())))


# -------------------------------------------------------------------------------------------------------- training


class Clock(lightning.Callback):
    """Reads the counters after the warm-up and after the seconds that count, and ends the training then."""

    def __init__(self, run: Run, warm_up: float, seconds: float) -> None:
        self.run, self.warm_up, self.seconds = run, warm_up, seconds
        self.updates, self.update_s, self.batch_start = 0, 0.0, 0.0
        self.began: float | None = None
        self.first: Reading | None = None
        self.last: Reading | None = None

    def on_train_batch_start(self, *_: Any) -> None:
        self.batch_start = time.perf_counter()
        self.began = self.began or self.batch_start

    def on_train_batch_end(self, *_: Any) -> None:
        now = time.perf_counter()
        self.updates, self.update_s = self.updates + 1, self.update_s + now - self.batch_start

    def on_train_epoch_end(self, *_: Any) -> None:
        """Whole rounds only: an inline collector plays before the first update of each."""
        passed = time.perf_counter() - (self.began or 0.0)
        if self.first is None and passed > self.warm_up:
            self.first = read(self.run, self.updates, self.update_s)
        elif self.first is not None and self.last is None and passed > self.warm_up + self.seconds:
            self.last = read(self.run, self.updates, self.update_s)
            self.run.stop.requested = True


def with_training(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Rows of all settings, one after the other."""
    for groups in options.groups:
        with ExitStack() as stack:
            run = stack.enter_context(closing(build(options, groups, stack)))
            clock = Clock(run, options.warm_up, options.seconds)
            learner = run.learners["world_model"]
            learner.trainer.callbacks.insert(0, clock)  # before the one that ends the training
            learner.trainer.fit_loop.max_epochs = NEVER
            learner.trainer.fit(learner.module, datamodule=learner.data)
            if clock.first is None or clock.last is None:
                sys.exit("the training was interrupted")
            yield row(run.cfg, clock.first, clock.last)


# ------------------------------------------------------------------------------------------------------------ main


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="cooking", help="a choice of env=")
    parser.add_argument("--num-envs", type=int, default=64)
    parser.add_argument("--simulations", type=int, default=25)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--llm", default="none", help="a choice of llm=: the prior; it is not trained")
    parser.add_argument("--world-model", default="unizero", help="a choice of world_model=")
    parser.add_argument("--search", default="puct", help="a choice of search=")
    parser.add_argument("--groups", type=int, nargs="+", default=[1, 2], help="values of collector.groups to compare")
    parser.add_argument("--train", action="store_true", help="with updates of the world model")
    parser.add_argument("--warm-up", type=float, default=60, help="seconds that do not count, of each setting")
    parser.add_argument("--seconds", type=float, default=60, help="that count, of each setting")
    parser.add_argument("--slices", type=int, default=6, help="in which the settings take turns; with --train 1")
    parser.add_argument("--json", default="", help="where to write the rows, if not to logs/benchmarks")
    parser.add_argument("overrides", nargs="*", help="of the configuration, like env.story_file=PATH")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device cuda, but torch sees no CUDA device: {machine()}")
    training = "-train" if options.train else ""
    options.json = options.json or f"end_to_end-{options.env}-{options.device}-{options.llm}{training}"
    return options


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each setting the median of every column over its slices, and its speed beside that of the first setting."""
    settings = list(dict.fromkeys(r["groups"] for r in rows))
    out = []
    for groups in settings:
        own = [r for r in rows if r["groups"] == groups]
        medians = {name: statistics.median(r[name] for r in own) for name in own[0]} | {"groups": groups}
        out.append({**medians, "x": round(medians["steps/s"] / (out[0] if out else medians)["steps/s"], 2)})
    return out


def main() -> None:
    """Prints the table."""
    options = arguments()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    rows = []
    for found in (with_training if options.train else in_turns)(options):
        print(f"groups {found['groups']}: {found['steps/s']:,.1f} environment steps/s", flush=True)
        rows.append(found)
    print(f"\n{machine()}")
    print(f"{options.env}, {options.num_envs} games, {options.simulations} simulations, {options.world_model}, "
          f"llm={options.llm}; the first {options.warm_up:g} s of each setting are left out\n")  # fmt: skip
    found = summary(rows)
    show(found)
    settings = {name: value for name, value in vars(options).items() if name != "json"}
    write_json(options.json, found, settings=settings, slices=rows, command=command())


def command() -> str:
    """What was typed."""
    return " ".join(["python -m benchmarks.end_to_end", *sys.argv[1:]])


if __name__ == "__main__":
    main()
