"""What the player's world model expects of single actions, outside of a search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from priorzero.collect.player import Player, padded_context
from priorzero.types import Context, Imagined, Observation, Segment


@dataclass(frozen=True, slots=True)
class Scene:
    """The last steps of an episode: what the world model looks at. Plain values, so that prompts can carry it."""

    game: str
    observations: tuple[Observation, ...]  # oldest first, the current one last
    actions: tuple[str, ...]  # between them


def scene_of(segment: Segment, step: int, context_steps: int) -> Scene:
    """The scene before ``actions[step]``, as far back as the segment and its history reach."""
    turns = [(turn.observation, turn.action) for turn in segment.history]
    turns += [(segment.observations[t], segment.actions[t]) for t in range(step)]
    turns = turns[max(0, len(turns) - context_steps + 1) :]
    observations = (*(observation for observation, _ in turns), segment.observations[step])
    return Scene(segment.game, observations, tuple(action for _, action in turns))


def imagine(player: Player, scenes: Sequence[Scene], actions: Sequence[str], context_steps: int) -> list[Imagined]:
    """One step into the future of each scene, all in one batch.

    Nobody else may search with the player's planner meanwhile.

    Args:
        player: whose encoder, vocabulary and planner.
        scenes: n situations.
        actions: an action for each.
        context_steps: the most steps that the world model looks at.

    Raises:
        ValueError: the player has no world model.
    """
    if player.planner is None:
        raise ValueError("nothing can be imagined without a world model: choose another tool or reward")
    if not scenes:
        return []
    asked = zip(scenes, actions, strict=True)
    ids = [player.vocabulary.add(scene.game, [*scene.actions, action]) for scene, action in asked]
    player.planner.set_actions(player.vocabulary.vectors())
    chosen = np.array([row[-1] for row in ids], np.int32)
    known = player.known([scene.game for scene in scenes])
    player.planner.root(_context(player, scenes, ids, context_steps), chosen[:, None], known)
    found = player.planner.expand(1, np.zeros(len(scenes), np.int32), chosen)
    return [
        Imagined(
            reward=float(found.reward[row]),
            value=float(found.value[row]),
            likely_actions=_likely(player, found.actions[row], found.probs[row]),
        )
        for row in range(len(scenes))
    ]


def _context(player: Player, scenes: Sequence[Scene], ids: Sequence[np.ndarray], steps: int) -> Context:
    shown = [scene.observations[-steps:] for scene in scenes]
    vectors = iter(player.encode([observation for some in shown for observation in some]))
    return padded_context([[next(vectors) for _ in some] for some in shown], [row[:-1] for row in ids], steps)


def _likely(player: Player, actions: np.ndarray, probs: np.ndarray) -> tuple[str, ...]:
    order = np.argsort(-probs, kind="stable")
    return tuple(player.vocabulary.text(int(actions[i])) for i in order if actions[i] >= 0)
