"""Trains: rounds of one model or the other, evaluation among them, checkpoints between them."""

from __future__ import annotations

import logging
from pathlib import Path

from omegaconf import DictConfig

from priorzero.app import checkpoint, report
from priorzero.app.build import Run, build_run
from priorzero.app.schedule import Round, phases
from priorzero.collect.evaluate import tasks

log = logging.getLogger(__name__)


class Interrupted(Exception):
    """The user ended the run; a checkpoint holds all of it."""


def train(cfg: DictConfig) -> float | None:
    """Run the whole schedule, or what is left of it after ``ckpt_path``.

    Returns:
        The metric named by ``optimized_metric``, None where it was not measured.

    Raises:
        Interrupted: after Ctrl-C, at the end of the round.
        StopNow: after a second one, at once.
        ConfigError: something in the configuration cannot work.
        CheckpointError: ``ckpt_path`` does not lead to a checkpoint of such a run.
    """
    run = build_run(cfg)
    try:
        if cfg.ckpt_path:
            resume(run, cfg.ckpt_path)
        run.stop.install()
        _rounds(run)
        run.stop.uninstall()  # all is saved: from here on Ctrl-C just ends
        if run.stop.requested:
            raise Interrupted(
                f"stopped at round {run.position} of {len(run.schedule)}; go on with ckpt_path={run.folder}"
            )
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
        if run.stop.requested:
            checkpoint.save(run, cfg.checkpoints_kept)
            return
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
            if run.stop.requested:
                return
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
    """Go on from a checkpoint.

    Raises:
        CheckpointError: there is none, it is damaged, or belongs to another configuration.
    """
    folder = checkpoint.find(path, Path(run.cfg.paths.log_dir), run.folder)
    checkpoint.restore(run, folder)
    report.carry_over(folder.parents[1], run.folder, run.collector.actor.env_steps)
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
    metrics = {
        name: value for learner in run.learners.values() for name, value in learner.trainer.callback_metrics.items()
    }
    metric = metrics.get(run.cfg.optimized_metric)
    return None if metric is None else float(metric)


def final_results(run: Run) -> report.Results:
    """Play ``evaluation.final_episodes`` episodes of each game set with each of the final policies."""
    cfg = run.cfg.evaluation
    sets = {report.GAME_SETS[name]: getattr(run.games, name) for name in report.GAME_SETS}
    with run.collector.paused():
        return {
            name: {
                policy: run.evaluation.results(policy, tasks(games, cfg.final_episodes, cfg.seed))
                for policy in cfg.final_policies
            }
            for name, games in sets.items()
            if games
        }
