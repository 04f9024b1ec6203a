"""The commands that a game understands, as templates with holes for objects, and what was learned about them.

Filling every template with every pair of objects is slow, and nearly all of it is the same futile question asked again.
`Experience` remembers what was tried, so that a template is filled with objects again only where it worked before with
one of them, or where the objects are in a condition in which nothing was tried yet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import NamedTuple

from priorzero.envs.sanitise import action_fault

HOLE = "OBJ"
MATURE = 2000  # digests known, from which on less is tried again
ALL = "all"  # games understand it in place of one object
# Prepositions that old games cut to six letters; verbs are completed from Jericho's counts of use.
_LONG_PREPOSITIONS = ("around", "behind", "beneath", "between", "against", "outside", "through", "toward", "underneath")


class Thing(NamedTuple):
    """An object in reach."""

    name: str  # one word
    condition: int  # digest of what is known of it: its name, whether it is carried, its attributes
    spot: int  # digest of the condition and the room


class Filling(NamedTuple):
    """The template and the words that an action was made of; "" where there is no object."""

    template: str
    first: str = ""
    second: str = ""


@dataclass
class Experience:
    """What was learned about one game.

    Attributes:
        tried: digests of things, of pairs of things and of pairs of words with which the templates were filled.
        useful: the fillings with objects that were chosen as valid actions.
    """

    tried: set[int] = field(default_factory=set)
    useful: set[Filling] = field(default_factory=set)


def digest(*parts: object) -> int:
    """A number below 2**63 that does not depend on the process."""
    return int.from_bytes(blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1


def pair_digest(first: int, second: int) -> int:
    """A number below 2**63 for two digests in this order."""
    return (first * 0x9E3779B97F4A7C15 + second) & (2**63 - 1)


class Templates:
    """The templates of a game by their number of holes, with verbs in full and without refused commands.

    Args:
        templates: as Jericho has them.
        word_length: how many letters of a word the game reads.
        verb_counts: how often people use a verb; the verbs that the templates cut short are among the keys.
    """

    def __init__(self, templates: Iterable[str], word_length: int, verb_counts: Mapping[str, int]) -> None:
        full = (_in_full(template, word_length, verb_counts) for template in templates)
        allowed = [template for template in dict.fromkeys(full) if not action_fault(template.replace(HOLE, "it"))]
        self.plain, self.single, self.double = (
            [template for template in allowed if template.count(HOLE) == holes] for holes in range(3)
        )
        self._usage = verb_counts

    def fill_all(self, things: Sequence[Thing]) -> dict[str, Filling]:
        """Every action that the templates and the things give."""
        return self._fill(things, Experience(), always=True)

    def fill(self, things: Sequence[Thing], known: Experience) -> dict[str, Filling]:
        """The actions that are worth trying, given what is known."""
        return self._fill(things, known, always=False)

    def unnaturalness(self, action: str) -> tuple[bool, int, int, str]:
        """Sorts actions with the same effect: a phrase without "all" first, then short ones, then common verbs."""
        words = action.split()
        return (ALL in words, len(words), -self._usage.get(words[0], 0), action)

    def _fill(self, things: Sequence[Thing], known: Experience, always: bool) -> dict[str, Filling]:
        actions = {template: Filling(template) for template in self.plain}
        worked = {filling.template for filling in known.useful}
        proven = [template for template in self.single if template in worked]
        for thing in things:
            new = always or thing.spot not in known.tried
            for template in self.single if new else proven:
                actions.setdefault(template.replace(HOLE, thing.name), Filling(template, thing.name))
        partners = _Partners(known.useful, strict=len(known.tried) >= MATURE)
        for a, b in _pairs(things):
            for template in self._for_pair(a, b, known, partners) if not always else self.double:
                action = template.replace(HOLE, a.name, 1).replace(HOLE, b.name, 1)
                actions.setdefault(action, Filling(template, a.name, b.name))
        return actions

    def _for_pair(self, a: Thing, b: Thing, known: Experience, partners: _Partners) -> Sequence[str]:
        if pair_digest(a.condition, b.condition) in known.tried:
            return partners.templates(a.name, b.name)
        fresh = ALL in (a.name, b.name) or pair_digest(digest(a.name), digest(b.name)) not in known.tried
        return self.double if fresh or len(known.tried) < MATURE else partners.all_templates


class _Partners:
    """Which templates are worth filling with two words again.

    Those that worked with both; and those that worked with one of them and two others, if ``strict`` only where they
    worked with the second one as well.
    """

    def __init__(self, useful: Iterable[Filling], strict: bool) -> None:
        self._strict = strict
        self._together: dict[tuple[str, str], set[str]] = {}
        count: Counter[tuple[int, str, str]] = Counter()
        for template, first, second in useful:
            if second:
                self._together.setdefault((first, second), set()).add(template)
                count.update([(0, first, template), (1, second, template)])
        self._once: dict[tuple[int, str], set[str]] = {}
        self._twice: dict[tuple[int, str], set[str]] = {}
        for (hole, word, template), partners in count.items():
            self._once.setdefault((hole, word), set()).add(template)
            if partners > 1:
                self._twice.setdefault((hole, word), set()).add(template)
        self.all_templates = sorted(set().union(*self._together.values()))

    def templates(self, first: str, second: str) -> list[str]:
        none: set[str] = set()
        worked = self._twice.get((0, first), none) | self._twice.get((1, second), none)
        if self._strict:
            worked &= self._once.get((0, first), none) & self._once.get((1, second), none)
        return sorted(worked | self._together.get((first, second), none))


def tried_digests(things: Sequence[Thing]) -> set[int]:
    """What belongs into `Experience.tried` after a search among these things."""
    pairs = _pairs(things)
    met = {pair_digest(digest(a.name), digest(b.name)) for a, b in pairs}
    return met | {pair_digest(a.condition, b.condition) for a, b in pairs} | {thing.spot for thing in things}


def _pairs(things: Sequence[Thing]) -> list[tuple[Thing, Thing]]:
    return [(a, b) for a in things for b in things if a is not b]


def _in_full(template: str, word_length: int, verb_counts: Mapping[str, int]) -> str:
    verb, *rest = template.split()
    if len(verb) == word_length and verb not in verb_counts:
        longer = [word for word in verb_counts if word.startswith(verb) and word.isalpha()]
        verb = min(longer, key=lambda word: (-verb_counts[word], word), default=verb)
    words = [_preposition_in_full(word) if len(word) == word_length else word for word in rest]
    return " ".join([verb, *words])


def _preposition_in_full(word: str) -> str:
    return next((full for full in _LONG_PREPOSITIONS if full.startswith(word)), word)
