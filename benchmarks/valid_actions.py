"""Times the search for valid actions, beside Jericho's own, and says how much of the exact search the fast one finds.

Run from the root of the repository on one thread:
``OMP_NUM_THREADS=1 python -m benchmarks.valid_actions --games-dir FOLDER``. All times are milliseconds of CPU of this
process for one step of the environment with everything that it does (step, look, inventory, hash, valid actions):

* cold: random episodes, with an empty cache and nothing learned;
* warm: the same episodes again in a new environment that opens the file which the first left, and refreshes none of it
  (a refresh costs a cold search: with a share of 0.01 add a hundredth of the cold figure);
* stock: one call of ``FrotzEnv.get_valid_actions(use_parallel=False)`` alone, on states spread over the walkthrough. It
  needs a spaCy model (``--spacy-model``, name of an installed package); "none" leaves it out.

Recall counts effect classes (actions that change the world alike) of the exact search for which the fast one offers an
action, on the walkthrough (cold, in its order) and in random play; "stock in exact" counts the effect classes of
Jericho's own search that the exact one finds. States are spread evenly over all there are. The last row counts the
effect classes of all games and of both kinds of play together.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from priorzero.envs.actions import ActionFinder
from priorzero.envs.jericho import JerichoEnv, JerichoSpec

GAMES = {"zork1": 100, "detective": 100, "acorncourt": 50, "omniquest": 100, "pentari": 100}  # steps of an episode
COLUMNS = (
    "game",
    "steps",
    "cold ms",
    "warm ms",
    "stock ms",
    "walk recall",
    "random recall",
    "recall",
    "stock in exact",
)


def main() -> None:
    """Prints a table and writes JSON."""
    args = arguments()
    rows = [measure(name, args) for name in args.games]
    sums = {key: sum(row[key] for row in rows) for key in ("effects", "effects found")}
    rows.append({"game": "all", **sums, "recall": sums["effects found"] / sums["effects"]})
    print("  ".join(f"{column:>14}" for column in COLUMNS))
    for row in rows:
        print("  ".join(f"{cell(row.get(column)):>14}" for column in COLUMNS))
    Path(args.output).parent.mkdir(parents=True, exist_ok=True)
    Path(args.output).write_text(json.dumps(rows, indent=1))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--games-dir", required=True)
    parser.add_argument("--games", nargs="+", default=["zork1", "detective", "acorncourt"], choices=GAMES)
    parser.add_argument("--episodes", type=int, default=12)
    parser.add_argument("--steps", type=int, default=0, help="steps of an episode; 0: as many as the game is given")
    parser.add_argument("--recall-states", type=int, default=20, help="on the walkthrough, and as many in random play")
    parser.add_argument("--stock-states", type=int, default=5)
    parser.add_argument("--spacy-model", default="none")
    parser.add_argument("--output", default="logs/benchmarks/valid_actions.json")
    return parser.parse_args()


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """All figures of one game."""
    (story,) = Path(args.games_dir).glob(f"{name}.z*")
    steps = args.steps or GAMES[name]
    with tempfile.TemporaryDirectory() as folder:
        spec = JerichoSpec(str(story), steps, valid_actions_folder=folder)
        cold, played, counts = play(spec, args.episodes)
        warm, _, warm_counts = play(replace(spec, valid_actions_refresh=0.0), args.episodes)
    silent = JerichoSpec(str(story), 10**6, valid_actions="none").build()
    walk = recall(silent, walkthrough(silent), spacing(len(silent._walkthrough()), args.recall_states))
    env = JerichoSpec(str(story), steps).build()
    rand = recall(env, random_play(env, args.episodes), spacing(counts["searches"], args.recall_states))
    row = {
        "game": name,
        "steps": played,
        "cold ms": cold,
        "warm ms": warm,
        "counts": counts,
        "warm counts": warm_counts,
    }
    (walk_found, walk_effects), (random_found, random_effects) = walk, rand
    row |= {"walk recall": walk_found / walk_effects, "random recall": random_found / random_effects}
    row |= {"effects": walk_effects + random_effects, "effects found": walk_found + random_found}
    row["recall"] = row["effects found"] / row["effects"]
    if args.spacy_model != "none" and args.stock_states:
        row |= stock(str(story), args)
    return row


def spacing(total: int, wanted: int) -> int:
    """Every how many states one is measured."""
    return max(1, total // wanted)


def play(spec: JerichoSpec, episodes: int) -> tuple[float, int, Counter[str]]:
    """Random episodes in a new environment: milliseconds of CPU a step, steps, counts."""
    env, rng, counts, steps = spec.build(), random.Random(0), Counter[str](), 0
    start = time.process_time()
    for seed in range(1, episodes + 1):
        _, info = env.reset(seed=seed)
        counts.update(info["counts"])
        over = False
        while not over:
            _, _, terminated, truncated, info = env.step(rng.choice(info["valid_actions"]))
            counts.update(info["counts"])
            over, steps = terminated or truncated, steps + 1
    passed = time.process_time() - start
    env.close()
    return passed / steps * 1e3, steps, counts


def walkthrough(env: JerichoEnv) -> Iterator[None]:
    """Leads through the walkthrough, and stops in every state."""
    _, info = env.reset(seed=None)
    yield
    for action in info["walkthrough"]:
        env._last = env._play(action)  # without a search of its own
        if env._last.terminated:
            return
        yield


def random_play(env: JerichoEnv, episodes: int) -> Iterator[None]:
    """Leads through random episodes, and stops in every state."""
    rng = random.Random(0)
    for seed in range(1, episodes + 1):
        _, info = env.reset(seed=seed)
        over = False
        while not over:
            yield
            _, _, terminated, truncated, info = env.step(rng.choice(info["valid_actions"]))
            over = terminated or truncated


def recall(env: Any, lead: Iterable[None], every: int) -> tuple[int, int]:
    """Effect classes that a fast search finds, which learns from all states on the way, and those of the exact one."""
    finder = ActionFinder(env, env._game, exact=False)
    seen: set[tuple[str, str, str]] = set()
    effects = found = 0
    for _ in lead:
        state = env._hash, env._room, env._carried
        if state in seen:
            continue
        seen.add(state)
        if len(seen) % every == 0:
            things = finder._words.things(*state[1:])
            candidates = finder._templates.fill(things, finder.known)
            exact = finder.effects(list(finder._templates.fill_all(things)))
            effects += len(exact)
            found += sum(any(action in candidates for action in actions) for actions in exact)
        finder.find(*state[1:])
    env.close()
    return found, effects


def stock(story: str, args: argparse.Namespace) -> dict[str, float]:
    """Jericho's own search on some states of the walkthrough."""
    import jericho.util

    jericho.util.spacy_nlp = importlib.import_module(args.spacy_model).load(exclude=["ner", "parser"])
    env: Any = JerichoSpec(story, 10**6, valid_actions="none").build()
    game = env._game
    finder = ActionFinder(env, game, exact=True)
    every = spacing(len(game.get_walkthrough()), args.stock_states)
    seconds, calls, effects, found = 0.0, 0, 0, 0
    for number, _ in enumerate(walkthrough(env)):
        if number % every:
            continue
        start = time.process_time()
        listed = game.get_valid_actions(use_parallel=False)
        seconds, calls = seconds + time.process_time() - start, calls + 1
        exact = finder._templates.fill_all(finder._words.things(env._room, env._carried))
        groups = finder.effects([*exact, *(action for action in listed if action not in exact)])
        with_stock = [set(actions) for actions in groups if set(listed) & set(actions)]
        effects += len(with_stock)
        found += sum(bool(actions & set(exact)) for actions in with_stock)
    return {"stock ms": seconds / calls * 1e3, "stock in exact": found / effects}


def cell(value: object) -> str:
    """A number with as many digits as it needs."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
