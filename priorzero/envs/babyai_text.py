"""A BabyAI level in words: the view, the hands, and which of the six actions do something.

The wording is that of BabyAI-Text (Carta et al. 2023, "Grounding Large Language Models in Interactive Environments with
Online Reinforcement Learning"): one clause a thing, "You see a red ball 1 step left and 2 steps forward", walls only
where nothing stands before them in a straight line. A level is a `minigrid.envs.babyai.core.roomgrid_level` object; it
is taken as it comes, so that this module does not need the library.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

# In the order of minigrid's action numbers 0 to 5. Its seventh, "done", does nothing.
ACTIONS = ("turn left", "turn right", "go forward", "pick up", "drop", "toggle")
_STRAIGHT = ((0, 1), (-1, 0), (1, 0))  # ahead, left, right: steps to the right, steps forward


def view(level: Any) -> str:
    """What the player sees: one line, with walls first and then the things from left to right, far ones first."""
    grid, visible = level.gen_obs_grid()
    middle, own_row = grid.width // 2, grid.height - 1

    def at(right: int, forward: int) -> Any:
        column, row = middle + right, own_row - forward
        return grid.get(column, row) if 0 <= column < grid.width and row >= 0 and visible[column, row] else None

    clauses = [_clause(at(x, y), x, y) for x, y in _walls(at, max(grid.width, grid.height))]
    for x in range(-middle, grid.width - middle):
        for y in range(own_row, -1, -1):
            if (x, y) != (0, 0) and at(x, y) is not None and at(x, y).type != "wall":
                clauses.append(_clause(at(x, y), x, y))
    return ", ".join(clauses) or "You see nothing"


def _walls(at: Any, reach: int) -> Iterator[tuple[int, int]]:
    for right, forward in _STRAIGHT:
        line = ((right * steps, forward * steps) for steps in range(1, reach))
        first = next((place for place in line if at(*place) is not None), None)
        if first is not None and at(*first).type == "wall":
            yield first


def _clause(thing: Any, right: int, forward: int) -> str:
    sideways = _steps(abs(right), "right" if right > 0 else "left")
    return f"You see {_name(thing)} " + " and ".join(filter(None, (sideways, _steps(forward, "forward"))))


def _steps(count: int, direction: str) -> str:
    return f"{count} step{'s' if count > 1 else ''} {direction}" if count else ""


def _name(thing: Any) -> str:
    """For example "a red ball", "an open blue door" or "a wall"."""
    if thing.type == "wall":
        return "a wall"
    if thing.type != "door":
        return f"a {thing.color} {thing.type}"
    if thing.is_open:
        return f"an open {thing.color} door"
    return f"a {'locked' if thing.is_locked else 'closed'} {thing.color} door"


def hands(level: Any) -> str:
    """What the player carries."""
    return "You carry nothing" if level.carrying is None else f"You carry {_name(level.carrying)}"


def useful_actions(level: Any) -> list[str]:
    """The actions that change the world, sorted. Turning always does."""
    ahead, carried = level.grid.get(*level.front_pos), level.carrying
    useful = {"turn left", "turn right"}
    if ahead is None or ahead.can_overlap():
        useful.add("go forward")
    if ahead is None and carried is not None:
        useful.add("drop")
    if ahead is not None and ahead.can_pickup() and carried is None:
        useful.add("pick up")
    if ahead is not None and (ahead.type == "box" or (ahead.type == "door" and _opens(ahead, carried))):
        useful.add("toggle")
    return sorted(useful)


def _opens(door: Any, carried: Any) -> bool:
    fits = carried is not None and carried.type == "key" and carried.color == door.color
    return fits or not door.is_locked


def world_hash(level: Any) -> str:
    """Identifies the state: the grid with what boxes hold, the player's place and hands, how far the mission is."""
    cells = [_content(cell) for cell in level.grid.grid]
    place = (int(level.agent_pos[0]), int(level.agent_pos[1]), int(level.agent_dir))
    state = repr((level.mission, place, cells, _content(level.carrying), list(_progress(level.instrs))))
    return hashlib.blake2b(state.encode(), digest_size=16).hexdigest()


def _content(thing: Any) -> Any:
    return None if thing is None else (*map(int, thing.encode()), _content(thing.contains))


def _progress(instruction: Any) -> Iterator[tuple[Any, Any]]:
    """Which parts of a mission in several parts are done."""
    if hasattr(instruction, "instr_a"):
        yield instruction.a_done, instruction.b_done
        yield from _progress(instruction.instr_a)
        yield from _progress(instruction.instr_b)
