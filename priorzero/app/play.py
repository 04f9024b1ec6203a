"""Watch or steer an episode in the terminal, with what prior and search think of every action."""

from __future__ import annotations

import numpy as np
from omegaconf import DictConfig
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from priorzero.app.evaluate import Session, open_session
from priorzero.app.refusals import ConfigError
from priorzero.collect.episode import Decision, Episode
from priorzero.collect.player import POLICIES

console = Console()


def play(cfg: DictConfig) -> None:
    """Play one episode of game ``cfg.game`` (a number in the chosen game set) with ``cfg.policy``."""
    with open_session(cfg, num_envs=1) as session:
        policy = cfg.policy or _best_policy(session)
        games = session.games.train if cfg.games == "train" else session.games.heldout
        if not 0 <= cfg.game < len(games):
            raise ConfigError(f"game={cfg.game}: the {cfg.games} set has {len(games)} games, counted from 0")
        _episode(session, policy, cfg)


def _best_policy(session: Session) -> str:
    llm, trained = session.player.prior is not None, session.trained
    return {(True, True): "wm_prior", (False, True): "wm", (True, False): "prior", (False, False): "random"}[
        llm, trained
    ]


def _episode(session: Session, policy: str, cfg: DictConfig) -> None:
    games = session.games.train if cfg.games == "train" else session.games.heldout
    spec, player = games[cfg.game], session.player
    step = session.envs.reset([0], [spec], [cfg.play_seed])[0]
    episode = Episode(spec, cfg.play_seed, 0, step, player.encode([step.observation])[0], session.history_steps)
    console.print(f"[bold]{spec.name}[/], played by [bold]{policy}[/] (one of {', '.join(POLICIES)})")
    while not episode.step.done:
        decision = player.decide(policy, [episode], explore=False)[0]
        _show(episode, decision, cfg.rows)
        index = _ask(episode, decision) if cfg.steer else decision.index
        if index is None:
            break
        chosen = Decision(index, decision.visit_probs, decision.root_value, decision.prior_logprobs)
        action = episode.step.valid_actions[index]
        step = session.envs.step([0], [action])[0]
        action_id = int(player.vocabulary.add(step.game, [action])[0])
        episode.advance(chosen, action_id, step, player.encode([step.observation])[0])
        console.print(f"[bold green]> {action}[/]   reward {step.reward:+g}")
    last = episode.step
    console.print(Panel(last.observation.feedback or "(nothing)", title="the end"))
    console.print(f"score {last.score:g} of {last.max_score:g} after {len(episode.turns)} steps")


def _show(episode: Episode, decision: Decision, rows: int) -> None:
    step = episode.step
    text = "\n\n".join(dict.fromkeys(part.strip() for part in step.observation._replace(score="") if part.strip()))
    console.print(Panel(text, title=f"step {len(episode.turns)}, score {step.score:g} of {step.max_score:g}"))
    table = Table(box=None, header_style="bold")
    for name in ("#", "action", "prior", "world model", "visits", "value"):
        table.add_column(name, justify="left" if name == "action" else "right")
    order = np.argsort(-decision.visit_probs, kind="stable")
    if decision.visits is not None:
        order = np.lexsort((-decision.visit_probs, -decision.visits))
    for i in order[:rows]:
        table.add_row(
            *_row(int(i), step.valid_actions[i], decision), style="bold cyan" if i == decision.index else None
        )
    if len(order) > rows:
        table.add_row("", f"... {len(order) - rows} more", "", "", "", "")
    console.print(table)


def _row(i: int, action: str, d: Decision) -> tuple[str, ...]:
    prior = "" if d.prior_logprobs is None else f"{np.exp(d.prior_logprobs[i]):.3f}"
    world_model = "" if d.world_model_probs is None else f"{d.world_model_probs[i]:.3f}"
    visits = "" if d.visits is None else str(d.visits[i])
    value = "" if d.q is None or d.visits is None or not d.visits[i] else f"{d.q[i]:.2f}"
    return str(i), action, prior, world_model, visits, value


def _ask(episode: Episode, decision: Decision) -> int | None:
    """The action that the user wants: Enter for the agent's, a number, an action's text, or q to leave."""
    valid = episode.step.valid_actions
    while True:
        try:
            answer = console.input("[dim]Enter: the agent's choice; a number or an action; q to leave >[/] ").strip()
        except EOFError:
            return None
        if not answer:
            return decision.index
        if answer == "q":
            return None
        if answer.isdigit() and int(answer) < len(valid):
            return int(answer)
        if answer in valid:
            return valid.index(answer)
        console.print(f"[red]{answer!r} is not a valid action here[/]")
