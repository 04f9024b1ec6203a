"""Trains: rounds of one model or the other, evaluation among them, checkpoints between them."""

from __future__ import annotations

import logging
import sys

from omegaconf import DictConfig

from priorzero.app import checkpoint, report
from priorzero.app.build import Run, build_run
from priorzero.app.schedule import Round, phases
from priorzero.callbacks.weights import snapshot
from priorzero.collect.evaluate import tasks
from priorzero.types import EpisodeResult

log = logging.getLogger(__name__)

INTERRUPTED = 130  # exit status after Ctrl-C, as shells have it


def train(cfg: DictConfig) -> float | None:
    """Run the whole schedule, or what is left of it after ``ckpt_path``.

    Returns:
        The metric named by ``optimized_metric``, None where it was not measured.
    """
    run = build_run(cfg)
    try:
        if cfg.ckpt_path:
            resume(run, cfg.ckpt_path)
        run.stop.install()
        _rounds(run)
        if run.stop.requested:
            log.warning("stopped at round %d of %d; go on with ckpt_path=%s", run.position, len(run.schedule), run.folder)
            sys.exit(INTERRUPTED)
        return _finish(run)
    finally:
        run.stop.uninstall()
        run.close()


def _rounds(run: Run) -> None:
    cfg = run.cfg.trainer
    progress = run.progress
    saved_at = run.position
    if progress:
        progress.start()
        progress.rounds_done(run.position)
    try:
        _evaluate_start(run)
        for phase in phases(run.schedule, run.position, cfg.checkpoint_every_n_rounds):
            _fit(run, phase)
            if progress:
                progress.rounds_done(run.position)
            over = run.stop.requested or run.position == len(run.schedule)
            if over or run.position - saved_at >= cfg.checkpoint_every_n_rounds:
                checkpoint.save(run, cfg.checkpoints_kept)
                saved_at = run.position
            if run.stop.requested:
                return
    finally:
        if progress:
            progress.stop()


def _evaluate_start(run: Run) -> None:
    """The first point of the learning curve: before any training."""
    if run.position == 0 and run.cfg.evaluation.at_start:
        for play in run.evaluation.plays.values():
            play()


def _fit(run: Run, phase: list[Round]) -> None:
    learner = run.learners[phase[0].model]
    run.collector.collecting = phase[0].collect
    learner.trainer.fit_loop.max_epochs = learner.rounds + len(phase)
    ckpt_path, learner.resume_from = learner.resume_from, None
    learner.trainer.fit(learner.module, datamodule=learner.data, ckpt_path=ckpt_path, weights_only=True)
    done = learner.trainer.current_epoch - learner.rounds
    learner.rounds += done
    run.position += done
    if done < len(phase) and not run.stop.requested:
        raise RuntimeError(f"the {phase[0].model} trainer ended after {done} of {len(phase)} rounds")


def resume(run: Run, path: str) -> None:
    """Take over everything from a checkpoint: weights, optimizers, replay, counters, random numbers, games."""
    folder = checkpoint.find(path, run.folder.parents[1])
    state = checkpoint.read(folder)
    checkpoint.check(state, run.fingerprint, folder)
    run.position = state["position"]
    run.vocabulary.load_state_dict(state["vocabulary"])
    run.limiter.load_state_dict(state["limiter"])
    run.replay.load(folder / "replay")
    for name, learner in run.learners.items():
        learner.data.load_state_dict(state["data"][name])
        learner.rounds = state["rounds"][name]
        weights = checkpoint.weights(folder, name)
        if weights is None:
            continue
        learner.module.load_state_dict(weights, strict=name == "world_model")
        learner.resume_from = folder / checkpoint.FILES[name]
        run.mailbox.post(name, snapshot(learner.module))
    run.mailbox.versions.update(state["versions"])
    run.evaluation.player.rng.bit_generator.state = state["evaluation_rng"]
    run.collector.actor.load_state_dict(state["actor"])
    log.info(
        "resumed from %s: round %d of %d, env_step %d, %d steps in the replay",
        folder, run.position, len(run.schedule), run.collector.actor.env_steps, len(run.replay),
    )  # fmt: skip


def _finish(run: Run) -> float | None:
    """The final table, the curves, and the metric for a sweeper."""
    cfg = run.cfg.evaluation
    run.collector.close()
    evaluations = run.folder / "evaluations.jsonl"
    if evaluations.is_file():
        report.plot(evaluations, run.folder / "curve.png", run.cfg.name)
    if cfg.final_episodes:
        rows = final_results(run)
        text = report.table(rows)
        (run.folder / "table.md").write_text(text + "\n")
        about = {"env_step": run.collector.actor.env_steps, "seed": run.cfg.seed, "name": run.cfg.name}
        report.save_results(run.folder / "results.json", rows, about)
        log.info("mean score [95 %% interval] over %d episodes:\n%s", cfg.final_episodes, text)
    log.info("everything of this run is in %s", run.folder)
    metrics = {name: value for learner in run.learners.values() for name, value in learner.trainer.callback_metrics.items()}
    metric = metrics.get(run.cfg.optimized_metric)
    return None if metric is None else float(metric)


def final_results(run: Run) -> dict[str, dict[str, list[EpisodeResult]]]:
    cfg = run.cfg.evaluation
    sets = {"training games": run.games.train, "held-out games": run.games.heldout}
    with run.collector.paused():
        return {
            name: {
                policy: run.evaluation.results(policy, tasks(games, cfg.final_episodes, cfg.seed))
                for policy in cfg.final_policies
            }
            for name, games in sets.items()
            if games
        }
