"""Situations of a made-up text game, and things a model says about them: what the language-model benchmarks ask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from priorzero.text.prompt import PromptBuilder, PromptConfig
from priorzero.types import Observation, Situation, Turn

ROOMS = {
    "Boat House": "A low shed on the bank of the river. Nets hang from the beams, and an oar leans in a corner. A door "
    "leads east, and a slip goes down to the water in the west.",
    "Mill Yard": "Weeds grow between the stones of the yard. The wheel of the mill stands still. A path leads north "
    "along the river, and the door of the mill is to the south.",
    "Grinding Room": "Flour dust lies on everything. A steep ladder goes up to the loft, and a trap door in the floor "
    "is held shut by a rusty bolt.",
    "Loft": "You can only stand upright in the middle. A small round window looks out over the river, and an old chest "
    "stands below it.",
    "Cellar": "It is cold and smells of wet stone. Barrels line the walls, and water drips from somewhere above. A "
    "narrow passage leads east into the dark.",
    "Chapel": "Rows of broken benches face a bare altar. Coloured light falls through the one window that is still "
    "whole. An iron gate closes the steps to the crypt.",
    "Crypt": "Stone lids cover the graves of people whom nobody remembers. One lid has been pushed aside, and there is "
    "something below that shines.",
    "Garden": "Roses have grown over the walls and the paths. A stone bench stands beside a dry fountain, and a gate "
    "in the hedge leads west.",
    "Kitchen": "Pots hang above a cold hearth. There is a table with a drawer, and a door leads out into the garden to "
    "the east.",
    "Library": "Shelves reach to the ceiling, and most of them are empty. A heavy book lies open on a desk. The hall "
    "is to the south.",
}
THINGS = ("brass lantern", "rope", "rusty key", "glass bottle", "silver coin", "oar", "old book", "bread", "shovel")
ACTIONS = (
    "go north", "go south", "go east", "go west", "go up", "go down", "look", "inventory", "take lantern", "take rope",
    "open trap door", "open chest", "unlock gate with key", "read old book", "light brass lantern", "drop glass bottle",
    "eat bread", "dig with shovel", "push stone lid", "look under table", "open drawer", "take silver coin", "wait",
    "put coin in fountain", "tie rope to beam", "climb ladder", "examine altar", "pull rusty bolt", "take oar", "sing",
)  # fmt: skip
THOUGHTS = (
    "I should take the lantern before I go down, because it will be dark there.",
    "The gate is locked, and the key that I carry may fit it.",
    "Nothing happened when I waited, so I will try another way out of this room.",
    "There may be something in the chest that I need later.",
    "I have seen the east side of the house, so now I go west and look at the garden.",
    "The book on the desk may tell me how the fountain works. I read it first.",
)


def situations(count: int, actions: int, seed: int = 0) -> list[Situation]:
    """States after 40 moves, each of a game of its own, with ``actions`` valid actions."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        turns = [Turn(_observation(rng), str(rng.choice(ACTIONS)), float(rng.integers(0, 6) == 5)) for _ in range(40)]
        chosen = tuple(str(a) for a in rng.choice(ACTIONS, actions, replace=False))
        found.append(Situation(_observation(rng), chosen, tuple(turns), "Find the treasure of the old mill."))
    return found


def _observation(rng: np.random.Generator) -> Observation:
    name = str(rng.choice(list(ROOMS)))
    carried = rng.choice(THINGS, 2, replace=False)
    room = f"{name}\n{ROOMS[name]}"
    return Observation(f"{room}\nThere is a {rng.choice(THINGS)} here.", room, "You carry a " + " and a ".join(carried))


def builder(tokenizer: Any, max_tokens: int) -> PromptBuilder:
    """Writes prompts of nearly ``max_tokens``: as much of the history as fits."""
    config = PromptConfig(
        format="plain",
        history_steps=40,
        max_tokens=max_tokens,
        show=("feedback", "look", "inventory"),
        show_valid_actions=False,
        show_rewards=True,
        truncate_observation=False,
        system=None,
    )
    return PromptBuilder(tokenizer, config)


def answers(tokenizer: Any, count: int, lengths: tuple[int, int], seed: int = 0) -> list[list[int]]:
    """Answers of a thought and an action, cut or completed to ``lengths`` (shortest, longest) tokens."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        said = " ".join(str(x) for x in rng.permutation(THOUGHTS)[:3]) + f" Action: {rng.choice(ACTIONS)}"
        length = int(rng.integers(lengths[0], lengths[1] + 1))
        found.append([*tokenizer(said, add_special_tokens=False)["input_ids"][: length - 1], tokenizer.eos_token_id])
    return found


def spread(counts: Sequence[int]) -> str:
    """Smallest and largest of some lengths, for a caption."""
    return f"{min(counts)} to {max(counts)}"
