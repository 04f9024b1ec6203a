"""Finds the valid actions of a Z-machine game: those that change its world.

Source: Hausknecht et al. 2020, "Interactive Fiction Games: A Colossal Adventure", section 3 (templates, world-change
detection). Jericho's filter plays the candidates one after the other, in C and in this process.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from ctypes import create_string_buffer
from typing import Any

import numpy as np

from priorzero.envs.hang import ended_after
from priorzero.envs.object_words import ObjectWords, Peeker
from priorzero.envs.templates import Experience, Filling, Templates, tried_digests

ALGORITHM = 3  # part of every key of a cache: raise it when the actions of a state may differ from those of before
_HUNG_S = 1.0  # processor time beyond what the candidates should take, after which the game does not come back
_CANDIDATE_S = 0.005  # one takes up to half a millisecond in C (Acorn Court), and one more one by one
_EFFECT_WORDS = 128  # 16-bit numbers that the filter writes for one valid action


class ActionFinder:
    """Finds the valid actions of the current state of one game.

    Args:
        peeker: answers commands without consequences.
        game: the ``jericho.FrotzEnv``.
        exact: fill all templates in every state.
        audit: otherwise, the share of searches that do so, to see what the others miss.

    Attributes:
        known: what was learned; without effect if ``exact``.
        counts: ``searches``, ``candidates``, ``audits``, ``audit_effects`` (effects in the audited states),
            ``audit_found`` (how many of them would have been found without the audit), ``halts`` (searches in which a
            candidate ended the interpreter).
    """

    def __init__(self, peeker: Peeker, game: Any, exact: bool, audit: float = 0.0) -> None:
        self._game, self._exact, self._audit = game, exact, audit
        self._words = ObjectWords(peeker, game)
        self._templates = Templates(game.act_gen.templates, game.bindings["max_word_length"], _verb_counts())
        self._chance = random.Random(0)
        self._slowest = 0.0  # seconds of a candidate, in the slowest search
        self.known = Experience()
        self.counts: Counter[str] = Counter()

    def seed(self, seed: int) -> None:
        """Which searches are audited depends on the seed of the episode: not the same ones in every process."""
        self._chance.seed(f"audit {seed}")

    def find(self, room: str, carried: str) -> tuple[list[str], set[int], set[Filling]]:
        """One action for each different effect on the world, the shortest natural phrase, sorted.

        Args:
            room: the game's answer to "look".
            carried: the game's answer to "inventory".

        Returns:
            The actions, and what is new in ``known``: what was tried, what was useful.
        """
        things = self._words.things(room, carried)
        audited = not self._exact and self._chance.random() < self._audit
        full = self._exact or audited
        candidates = self._templates.fill_all(things) if full else self._templates.fill(things, self.known)
        effects = self.effects(list(candidates))
        self.counts.update(searches=1, candidates=len(candidates))
        if audited:
            self._count_audit(effects, self._templates.fill(things, self.known))
        chosen = sorted({min(actions, key=self._templates.unnaturalness) for actions in effects})
        if self._exact:
            return chosen, set(), set()
        useful = {candidates[action] for action in chosen if candidates[action].first}
        tried, useful = self._learn(tried_digests(things), useful)
        return chosen, tried, useful

    def effects(self, candidates: Sequence[str]) -> list[list[str]]:
        """The candidates that change the world, the score or the end of the game, grouped by what they change.

        One from which the game does not come back ends the process, see `ended_after`.
        """
        game = self._game
        if not candidates or game.game_over() or game.victory() or game._emulator_halted():
            return []
        before = game.get_state()
        lines = ";".join(candidates).encode()
        valid = create_string_buffer(b" " * (len(lines) + 1))
        effects = np.zeros((len(candidates), _EFFECT_WORDS), np.uint16)
        start, each = time.process_time(), 5 * self._slowest or _CANDIDATE_S
        with ended_after(_HUNG_S + each * len(candidates)):
            count = game.frotz_lib.filter_candidate_actions(lines, valid, np.ctypeslib.as_ctypes(effects.reshape(-1)))
        if game._emulator_halted():  # the filter stopped there: play the candidates one by one, past the halt
            self.counts["halts"] += 1
            game.reset()
            game.set_state(before)
            with ended_after(_HUNG_S + _CANDIDATE_S * len(candidates)):
                return list(game._filter_candidate_actions(candidates).values())
        self._slowest = max(self._slowest, (time.process_time() - start) / max(len(candidates), 100))
        game.set_state(before)
        groups: dict[bytes, list[str]] = {}
        for effect, action in zip(effects[:count], valid.value.decode().split(";"), strict=False):
            groups.setdefault(effect.tobytes(), []).append(action)
        return list(groups.values())

    def _learn(self, tried: set[int], useful: set[Filling]) -> tuple[set[int], set[Filling]]:
        new = tried - self.known.tried, useful - self.known.useful
        self.known.tried |= tried
        self.known.useful |= useful
        return new

    def _count_audit(self, effects: Iterable[Sequence[str]], candidates: dict[str, Filling]) -> None:
        found = [any(action in candidates for action in actions) for actions in effects]
        self.counts.update(audits=1, audit_effects=len(found), audit_found=sum(found))


def _verb_counts() -> dict[str, int]:
    """How often each verb occurs in the transcripts of ClubFloyd, people playing together; comes with Jericho."""
    from jericho import util

    util.verb_usage_count("look")  # reads the file
    return util.clubfloyd_verb_counts
