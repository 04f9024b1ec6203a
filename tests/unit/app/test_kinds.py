"""A setting keeps the kind that it has in the files of the configuration."""

from __future__ import annotations

from typing import Any

import pytest
from omegaconf import OmegaConf

from priorzero.app.kinds import check_kinds
from priorzero.app.refusals import ConfigError

FILES = {
    "gamma": 0.9,
    "name": "toy",
    "ckpt_path": None,
    "env": {"max_steps": 100, "games": ["a", "b"], "hints": True},
    "optim": {"gamma": "${gamma}", "lr": "${nowhere}", "device": "cpu"},
}


def check(changes: dict[str, Any]) -> None:
    given = OmegaConf.create(FILES)
    for name, value in changes.items():
        OmegaConf.update(given, name, value)
    check_kinds(given, OmegaConf.create(FILES), list(changes))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("gamma", 1),
        ("gamma", None),
        ("env.max_steps", 1.5),  # what is wrong with it is told where it is read
        ("env.games", []),
        ("env.hints", False),
        ("env", {"max_steps": 3}),
        ("name", 7),
        ("name", ["a", "list"]),
        ("ckpt_path", "last"),
        ("optim.gamma", "${env.max_steps}"),
        ("optim.lr", "nothing to compare it with"),
        ("optim.momentum", "new"),
    ],
)
def test_what_fits(name: str, value: Any):
    check({name: value})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("gamma", "x", r"gamma=x: it must be a number; without this it is 0\.9"),
        ("gamma", True, "gamma=true: it must be a number"),
        ("env.hints", "maybe", "env.hints=maybe: it must be true or false; without this it is true"),
        ("env.hints", 1, "env.hints=1: it must be true or false"),
        ("env.games", "a", r"env.games=a: it must be a list, in \[brackets\]; without this it is \[a,b\]"),
        ("env.max_steps", [1, 2], r"env.max_steps=\[1,2\]: it must be a number"),
        ("env", {"max_steps": "many"}, "env.max_steps=many: it must be a number; without this it is 100"),
        ("env.max_steps", "${name}", "env.max_steps=toy: it must be a number"),
        ("optim.gamma", "x", r"optim.gamma=x: it must be a number; without this it is 0\.9"),
    ],
)
def test_what_does_not(name: str, value: Any, message: str):
    with pytest.raises(ConfigError, match=f"^{message}"):
        check({name: value})


def test_what_was_not_given_is_not_looked_at():
    given = OmegaConf.create(FILES | {"gamma": "x"})
    check_kinds(given, OmegaConf.create(FILES), ["env.max_steps", "nowhere"])
