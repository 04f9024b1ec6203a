"""Which rewards an answer gets: by its data source, a weighted sum; every part is kept for the log."""

from __future__ import annotations

import importlib.util
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from priorzero.rl.rewards import Reward
from priorzero.types import Answer


class RewardError(ValueError):
    """A reward is missing, cannot be loaded, or returned what no score is."""


@dataclass(frozen=True, slots=True)
class Grades:
    """The rewards of ``n`` answers."""

    totals: np.ndarray  # [n] float32, weighted sums; 0 where not scored
    scored: np.ndarray  # [n] bool: False where a reward with a weight could not judge; mask those samples
    parts: Mapping[str, np.ndarray]  # reward to [n] float32, unweighted; nan where not used or not judged
    unscorable: Mapping[str, int]  # reward to the number of answers that it could not judge

    def metrics(self) -> dict[str, float]:
        """For the log: mean of the totals (scored answers only), of each part, and counts of what was not judged."""
        means = {name: float(np.nanmean(x)) for name, x in self.parts.items() if not np.isnan(x).all()}
        counts = {f"{name}_unscorable": float(n) for name, n in self.unscorable.items()}
        total = {"total": float(self.totals[self.scored].mean())} if self.scored.any() else {}
        return total | means | counts | {"unscorable": float((~self.scored).sum())}


class Grader:
    """Rewards by name, and for each data source the weights of those that it uses.

    A reward with weight 0 is computed and logged, and neither changes a total nor masks a sample.

    Args:
        rewards: by name.
        sources: data source to {reward: weight}.

    Raises:
        RewardError: a source uses a reward that does not exist or has none at all, or a weight is not a number.
    """

    def __init__(self, rewards: Mapping[str, Reward], sources: Mapping[str, Mapping[str, float]]) -> None:
        for source, weights in sources.items():
            if not weights:
                raise RewardError(f"data source {source!r} has no reward: give it one in reward.sources.{source}")
            for name, weight in weights.items():
                if name not in rewards:
                    raise RewardError(
                        f"data source {source!r} uses reward {name!r}, which is not defined: add it to reward.rewards, "
                        f"or use one of {', '.join(sorted(rewards))}"
                    )
                if not (isinstance(weight, Real) and math.isfinite(weight)):
                    raise RewardError(
                        f"the weight of reward {name!r} in data source {source!r} is {weight!r}: give a number"
                    )
        self.rewards = dict(rewards)
        self.sources = {source: dict(weights) for source, weights in sources.items()}

    def __call__(self, answers: Sequence[Answer]) -> Grades:
        """Grade a batch; each reward is called once, with all answers whose source uses it.

        Raises:
            RewardError: a data source without rewards, or a reward that returned nan, infinity, something that is no
                number, or too few or many scores.
        """
        weights = [self._weights(answer) for answer in answers]
        totals, scored = np.zeros(len(answers), np.float64), np.ones(len(answers), bool)
        parts: dict[str, np.ndarray] = {}
        unscorable: dict[str, int] = {}
        for name, reward in self.rewards.items():
            rows = [i for i, used in enumerate(weights) if name in used]
            if not rows:
                continue
            scores = _call(name, reward, [answers[i] for i in rows])
            parts[name] = np.full(len(answers), np.nan, np.float32)
            parts[name][rows] = scores
            unscorable[name] = int(np.isnan(scores).sum())
            weight = np.array([weights[i][name] for i in rows])
            totals[rows] += np.where(weight == 0, 0.0, weight * np.nan_to_num(scores))
            scored[rows] &= (weight == 0) | ~np.isnan(scores)
        return Grades(np.where(scored, totals, 0.0).astype(np.float32), scored, parts, unscorable)

    def _weights(self, answer: Answer) -> Mapping[str, float]:
        source = answer.row.data_source
        if source not in self.sources:
            raise RewardError(
                f"no reward for data source {source!r}: add it to reward.sources, which has "
                f"{', '.join(sorted(self.sources)) or 'none'}, or set the data_source of the prompt rows"
            )
        return self.sources[source]


def load_reward(path: str, name: str, arguments: Mapping[str, Any] | None = None) -> Reward:
    """A user's own reward: the function ``name`` of the Python file ``path``.

    The function takes a list of ``Answer`` and returns a number or None for each. The file is executed.

    Args:
        path: a Python file, relative to the current folder.
        name: a function in it.
        arguments: further keyword arguments of the function; None for none.

    Raises:
        RewardError: no such file, no such function, or it does not take these arguments.
        Exception: what the file itself raises when it is executed, with a note that names it.
    """
    file = Path(path).resolve()
    if not file.is_file():
        raise RewardError(f"there is no reward file {file}: set path of the reward to a Python file")
    spec = importlib.util.spec_from_file_location(f"priorzero_user_reward_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise RewardError(f"{file} is not a Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        error.add_note(f"raised while the reward file {file} was loaded")
        raise
    functions = [n for n, x in vars(module).items() if inspect.isfunction(x) and x.__module__ == module.__name__]
    function = vars(module).get(name)
    if not callable(function):
        raise RewardError(f"{file} has no function {name!r}; it has {', '.join(functions) or 'none'}")
    return _bound(function, name, file, dict(arguments or {}))


def _bound(function: Callable[..., Any], name: str, file: Path, arguments: dict[str, Any]) -> Reward:
    try:
        inspect.signature(function).bind([], **arguments)
    except TypeError as error:
        raise RewardError(f"reward {name!r} in {file} cannot be called with (answers, {arguments}): {error}") from error
    return partial(function, **arguments)


def _call(name: str, reward: Reward, answers: list[Answer]) -> np.ndarray:
    """Scores [n] float64 of a reward, nan where it said None."""
    try:
        scores = list(reward(answers))
    except Exception as error:
        error.add_note(f"raised by reward {name!r} on {len(answers)} answers")
        raise
    if len(scores) != len(answers):
        raise RewardError(f"reward {name!r} returned {len(scores)} scores for {len(answers)} answers: return one each")
    for score, answer in zip(scores, answers, strict=True):
        if score is not None and not (isinstance(score, Real) and math.isfinite(score)):
            raise RewardError(
                f"reward {name!r} returned {score!r} for an answer of data source {answer.row.data_source!r} "
                f"({answer.text[:80]!r}): return a finite number, or None where it cannot judge"
            )
    return np.array([np.nan if score is None else float(score) for score in scores])
