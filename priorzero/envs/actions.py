"""Finds the valid actions of a Z-machine game: those that change its world.

Jericho names the objects of a room with a part-of-speech tagger. Here they are the words of the room and inventory
texts that the game's own dictionary calls nouns or adjectives, and the names in the object tree: ten times faster, no
tagger to install, and a superset of the effects found (measured on zork1, detective and omniquest).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from priorzero.envs.base import action_fault

COMMON_VERBS = 24  # "fast" fills the two-object templates of the most used verbs only
# "fast" asks every other verb to use something carried.
FREE_VERBS = frozenset({"aim", "attach", "connect", "plug", "point", "set", "tie", "turn"})
_WORD = re.compile(r"[a-z][a-z'-]*[a-z]|[a-z]")
_FUNCTION_WORDS = frozenset(
    _WORD.findall(
        "a an the all and but or of to in on at by up down out it its is are be you your me my that this these those "
        "another both each every everything few here there no not one two three some i he she him her them his their "
        "with from for into as y n s e w u d q x z l g again"
    )
)


class Peeker(Protocol):
    """Asks a game something without consequences."""

    def peek(self, command: str) -> str:
        """The answer to a command that is undone."""


class ActionFinder:
    """Finds the valid actions of the current state of one game.

    Args:
        peeker: answers commands without consequences.
        game: the ``jericho.FrotzEnv``.
        exact: fill the two-object templates with every pair of objects and every verb.
    """

    def __init__(self, peeker: Peeker, game: Any, exact: bool) -> None:
        from jericho.util import recognized, verb_usage_count

        self._peeker, self._game, self._exact = peeker, game, exact
        self._recognized, self._usage = recognized, verb_usage_count
        words = game.get_dictionary()
        self._word_length = max(len(word.word) for word in words)
        self._nouns = {word.word for word in words if word.is_noun}
        self._objects = self._nouns | {word.word for word in words if word.is_adj}
        self._templates = _by_holes(game.act_gen.templates)
        if not exact:
            pairs = self._templates[2]
            common = sorted({pair.split()[0] for pair in pairs}, key=lambda verb: (-verb_usage_count(verb), verb))
            kept = set(common[:COMMON_VERBS])
            self._templates[2] = [pair for pair in pairs if pair.split()[0] in kept]

    def find(self, room: str, carried: str) -> list[str]:
        """One action for each different effect on the world, sorted.

        Args:
            room: the game's answer to "look".
            carried: the game's answer to "inventory".
        """
        names, held = self._object_names(room, carried)
        candidates = [action for action in self._fill(names, held) if not action_fault(action)]
        effects = self._game._filter_candidate_actions(candidates, use_ctypes=True, use_parallel=False)
        return sorted({min(actions, key=self._naturalness) for actions in effects.values()})

    def _naturalness(self, action: str) -> tuple[bool, int, int, str]:
        words = action.split()
        return ("all" in words, len(words), -self._usage(action), action)

    def _object_names(self, room: str, carried: str) -> tuple[list[str], set[str]]:
        """One name for each object in reach, and the names that belong to something carried."""
        tree, tree_held = self._tree_names()
        carried_words = set(_words([carried])) | tree_held
        candidates = {word for word in {*_words([room]), *carried_words, *tree} if self._may_name(word)}
        heads = {name.split()[-1] for name in tree if name.split()}
        by_reply: dict[str, list[str]] = {}
        for word in sorted(candidates):
            reply = self._peeker.peek(f"examine {word}")
            if self._recognized(" ".join(reply.split())):
                by_reply.setdefault(reply, []).append(word)
        chosen = [min(same, key=lambda word: self._name_rank(word, heads)) for same in by_reply.values()]
        held = {name for name, same in zip(chosen, by_reply.values(), strict=True) if carried_words.intersection(same)}
        return sorted(chosen), held

    def _may_name(self, word: str) -> bool:
        return word not in _FUNCTION_WORDS and word[: self._word_length] in self._objects

    def _name_rank(self, word: str, heads: set[str]) -> tuple[bool, bool, int, str]:
        return (word not in heads, word[: self._word_length] not in self._nouns, len(word), word)

    def _tree_names(self) -> tuple[set[str], set[str]]:
        """Words in the names of the objects around the player, and of those inside the player."""
        objects = self._game.get_world_objects()
        player = self._game.player_obj_num
        parent = objects[player].parent
        around = _below(objects, parent, {player})
        inside = _below(objects, player, set())
        names = {number: _words([objects[number].name]) for number in around | inside}
        held = {word for number in inside for word in names[number]}
        return {word for words in names.values() for word in words}, held

    def _fill(self, names: Sequence[str], held: set[str]) -> list[str]:
        nothing, one, two = self._templates
        actions = list(nothing)
        actions += [template.replace("OBJ", name) for template in one for name in (*names, "all")]
        pairs = [(a, b) for a in names for b in names if a != b]
        near = [(a, b) for a, b in pairs if a in held or b in held]
        for template in two:
            free = self._exact or template.split()[0] in FREE_VERBS
            actions += [template.replace("OBJ", a, 1).replace("OBJ", b, 1) for a, b in (pairs if free else near)]
        return list(dict.fromkeys(actions))


def _by_holes(templates: Iterable[str]) -> list[list[str]]:
    groups: list[list[str]] = [[], [], []]
    for template in dict.fromkeys(templates):
        groups[template.count("OBJ")].append(template)
    return groups


def _words(texts: Iterable[str]) -> list[str]:
    return [word for text in texts for word in _WORD.findall(text.lower())]


def _below(objects: Any, root: int, without: set[int]) -> set[int]:
    """Numbers of all objects inside an object, at any depth."""
    found: set[int] = set()
    waiting = [objects[root].child] if 0 < root < len(objects) else []
    while waiting:
        number = waiting.pop()
        if not 0 < number < len(objects) or number in found:
            continue
        found.add(number)
        waiting += [objects[number].child, objects[number].sibling]
    return found - without
