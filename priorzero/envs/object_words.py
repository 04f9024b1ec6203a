"""Names the objects in reach, without a language model.

Jericho asks a part-of-speech tagger for the nouns of the room. Here they are the words of the room and inventory texts
that the game's own dictionary calls nouns or adjectives, and the names in the object tree: faster, and nothing to
install. ``benchmarks.valid_actions`` compares both ways in time and in effects found.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from itertools import pairwise
from typing import Any, Protocol

from priorzero.envs.templates import ALL, Thing, digest

_WORD = re.compile(r"[a-z][a-z'-]*[a-z]|[a-z]")
_FUNCTION_WORDS = frozenset(
    _WORD.findall(
        "a an the all and but or of to in on at by up down out it its is are be you your me my that this these those "
        "another both each every everything few here there no not one two three some i he she him her them his their "
        "with from for into as y n s e w u d q x z l g again then"
    )
)


class Peeker(Protocol):
    """Asks a game something without consequences."""

    def peek(self, command: str) -> str:
        """The answer to a command that is undone."""


class ObjectWords:
    """Finds one word for each object in reach of the player.

    Args:
        peeker: answers commands without consequences.
        game: the ``jericho.FrotzEnv``.
    """

    def __init__(self, peeker: Peeker, game: Any) -> None:
        from jericho.util import recognized

        self._peeker, self._game, self._recognized = peeker, game, recognized
        words = game.get_dictionary()
        self._word_length = max(len(word.word) for word in words)
        self._nouns = {word.word for word in words if word.is_noun}
        self._plurals = {word.word for word in words if word.is_plural}
        self._objects = self._nouns | {word.word for word in words if word.is_adj}
        if not self._objects:  # some dictionaries say nothing of the kinds of words
            self._objects = {word.word for word in words if not (word.is_dir or word.is_meta)}

    def things(self, room: str, carried: str) -> list[Thing]:
        """The objects in reach and the word "all", sorted by name.

        Args:
            room: the game's answer to "look".
            carried: the game's answer to "inventory".
        """
        tree = Surroundings(self._game)
        phrases = [room, carried, *tree.names]
        held_words = {*_words([carried]), *tree.held_words}
        replies = self._by_reply({word for word in _words(phrases) if self._may_name(word)})
        groups = [same for words in replies for same in tree.apart(words)]
        followers = _followers(phrases)
        found = {Thing(ALL, digest(ALL, tree.room), digest(ALL, tree.room))}
        for same in groups:
            name = min(same, key=lambda word: self._name_rank(word, same, tree.heads, followers))
            condition = digest(name, bool(held_words.intersection(same)), tree.attributes.get(name, tree.room))
            found.add(Thing(name, condition, digest(condition, tree.room)))
        return sorted(found)

    def _by_reply(self, words: set[str]) -> list[set[str]]:
        """Words that the game describes in the same words, and plurals, which name all of a kind, apart."""
        groups: dict[tuple[str, bool], set[str]] = {}
        for word in sorted(words):
            reply = self._peeker.peek(f"examine {word}")
            if self._recognized(" ".join(reply.split())):
                plural = word[: self._word_length] in self._plurals or word.removesuffix("s") in words - {word}
                groups.setdefault((reply, plural), set()).add(word)
        return list(groups.values())

    def _may_name(self, word: str) -> bool:
        return word not in _FUNCTION_WORDS and word[: self._word_length] in self._objects

    def _name_rank(
        self, word: str, same: set[str], heads: set[str], followers: set[tuple[str, str]]
    ) -> tuple[bool, bool, bool, int, str]:
        """The noun of "a small wooden mailbox" comes last, and ends the object's name in the tree."""
        is_adjective = any((word, other) in followers for other in same)
        return (word not in heads, is_adjective, word[: self._word_length] not in self._nouns, len(word), word)


class Surroundings:
    """What the object tree says of the place of the player.

    Attributes:
        room: number of the object that the player is in.
        names: names of the objects around the player and of those carried, at any depth.
        held_words: words in the names of those carried.
        heads: the last words of the names.
        attributes: of each word what is known of the objects that it may name: name, attribute bits, where it is,
            whether it holds something. Objects that are alike in all this count once.
    """

    def __init__(self, game: Any) -> None:
        objects = game.get_world_objects()
        player = game.player_obj_num
        self.room: int = objects[player].parent
        inside = below(objects, player)
        near = sorted(below(objects, self.room, {player}) | inside)
        words = {number: _words([objects[number].name]) for number in near}
        self.names = [objects[number].name for number in near]
        self._named = {frozenset(found) for found in words.values()}
        self.held_words = {word for number in inside for word in words[number]}
        self.heads = {found[-1] for found in words.values() if found}
        facts: dict[str, set[tuple[str, str, int, bool]]] = {}
        for number in near:
            thing = objects[number]
            place = thing.parent if thing.parent in (player, self.room) else -1
            for word in words[number]:
                facts.setdefault(word, set()).add((thing.name, bytes(thing._attr).hex(), place, bool(thing.child)))
        self.attributes = {word: sorted(known) for word, known in facts.items()}

    def apart(self, words: set[str]) -> list[set[str]]:
        """Words that the game describes alike, by the objects that they name.

        Mostly one object. But in the dark, all that is in hand may be described alike, and can be used all the same.
        """
        named = {name & words for name in self._named} - {frozenset()}
        objects = [set(some) for some in named if not any(some < more for more in named)]
        if len(objects) < 2:
            return [words]
        rest = words.difference(*objects)
        return [*objects, *([rest] if rest else [])]


def _words(texts: Iterable[str]) -> list[str]:
    return [word for text in texts for word in _WORD.findall(text.lower())]


def _followers(texts: Iterable[str]) -> set[tuple[str, str]]:
    """Pairs of words of which the second comes right after the first."""
    listed = [_words([text]) for text in texts]
    return {pair for words in listed for pair in pairwise(words)}


def below(objects: Any, root: int, without: Collection[int] = ()) -> set[int]:
    """Numbers of all objects inside an object, at any depth."""
    found: set[int] = set()
    waiting = [objects[root].child] if 0 < root < len(objects) else []
    while waiting:
        number = waiting.pop()
        if not 0 < number < len(objects) or number in found:
            continue
        found.add(number)
        waiting += [objects[number].child, objects[number].sibling]
    return found.difference(without)
