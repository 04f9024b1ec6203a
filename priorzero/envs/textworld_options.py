"""The options of TextWorld's families of games, and which values they take. Defaults are those of ``tw-make``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from priorzero.envs.base import EnvError

OptionValue = int | bool | str | None
_LEVEL_LIMIT = {"coin_collector": 300, "treasure_hunter": 30}
_DEFAULTS: dict[str, dict[str, OptionValue]] = {
    "cooking": {
        "recipe": 1,
        "take": 0,
        "go": 1,
        "open": False,
        "cook": False,
        "cut": False,
        "drop": False,
        "recipe_seed": None,
    },
    "simple": {"rewards": "dense", "goal": "detailed"},
    "coin_collector": {"level": 1},
    "treasure_hunter": {"level": 1},
}
_CHOICES: dict[str, tuple[OptionValue, ...]] = {
    "go": (1, 6, 9, 12),
    "rewards": ("dense", "balanced", "sparse"),
    "goal": ("detailed", "brief", "none"),
}


def check_options(family: str, options: Mapping[str, OptionValue]) -> tuple[tuple[str, OptionValue], ...]:
    """Checks the options of a family of games and fills in the defaults.

    Returns:
        All options of the family as sorted pairs.

    Raises:
        EnvError: for an unknown family, option or value; the message names the valid ones.
    """
    if family not in _DEFAULTS:
        raise EnvError(f"There is no TextWorld family {family!r}: choose one of {', '.join(_DEFAULTS)}.")
    defaults = _DEFAULTS[family]
    unknown = sorted(set(options) - set(defaults))
    if unknown:
        valid = ", ".join(defaults)
        raise EnvError(f"The TextWorld family {family!r} has no option {', '.join(unknown)}: its options are {valid}.")
    values = defaults | dict(options)
    for name, value in values.items():
        valid = _valid_values(family, name, values)
        accepted = isinstance(value, bool) if isinstance(defaults[name], bool) else _is_in(value, valid)
        if not accepted:
            shown = f"{valid.start} to {valid.stop - 1}" if isinstance(valid, range) else ", ".join(map(str, valid))
            raise EnvError(f"{name}={value!r} is not valid for the TextWorld family {family!r}: it must be {shown}.")
    return tuple(sorted(values.items()))


def _valid_values(family: str, name: str, values: Mapping[str, Any]) -> Sequence[OptionValue]:
    if name == "level":
        return range(1, _LEVEL_LIMIT[family] + 1)
    if name == "recipe":
        return range(1, 6)
    if name == "take":
        return range(values["recipe"] + 1 if isinstance(values["recipe"], int) else 1)
    if name == "recipe_seed":
        return range(2**32)
    return _CHOICES.get(name, (True, False))


def _is_in(value: OptionValue, valid: Sequence[OptionValue]) -> bool:
    if value is None:
        return valid == range(2**32)  # only the recipe seed may be left open
    return not isinstance(value, bool) and value in valid
