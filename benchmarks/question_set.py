"""Questions that only a search answers: where things are in houses that TextWorld made up.

python -m benchmarks.question_set --out logs/questions

Each document of the corpus is a room of a house, with what is in it: "Harper Farm: sauna". Each question asks for the
room of one thing: "Where in Harper Farm is the mop?". House and thing stand together in one document only, and
which room it is nobody can know without it. Written are
    corpus.jsonl                             for python retrieve.py
    train.jsonl, heldout.jsonl               the questions, with examples of a search; houses differ
    train_plain.jsonl, heldout_plain.jsonl   the same questions, with examples that answer at once
The same arguments give the same files, byte by byte. Train on them with experiment=search_agent.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from priorzero.data.prompts import write_prompts
from priorzero.rollout.corpus import Document, write_corpus
from priorzero.rollout.retriever import Bm25Index
from priorzero.types import Message, PromptRow

OWNERS = """
Abbot Barker Carver Draper Fisher Fletcher Gardner Glover Harper Hunter Marshall Mason Mercer Miller Osborn Palmer
Parker Porter Potter Sawyer Shepherd Skinner Slater Spencer Tanner Taylor Thatcher Turner Walker Weaver
""".split()
KINDS = "Castle Cottage Farm Hall House Inn Lodge Manor Mill Tower".split()
SOURCE = "qa"  # data source: chooses the rewards
SHOWN = 4  # things in a document: short ones cost little, and BM25 prefers them

SEARCH_SYSTEM = "Search, then answer with the room."
PLAIN_SYSTEM = "Answer with the room."


@dataclass(frozen=True)
class Room:
    """A room of a house."""

    name: str
    things: tuple[tuple[str, str], ...]  # what can be carried, and where it is: ("mop", "in the chest")


@dataclass(frozen=True)
class Question:
    """Where something is."""

    house: str
    thing: str
    room: str

    @property
    def text(self) -> str:
        return f"Where in {self.house} is the {self.thing}?"

    def answered_by(self, document: Document) -> bool:
        """Whether it says where the thing is; one document of the corpus does."""
        things = document.text.rstrip(".").split(", ")
        there = any(thing.startswith((f"{self.thing} in the", f"{self.thing} on the")) for thing in things)
        return there and document.title == f"{self.house}: {self.room}"


# ------------------------------------------------------------------------------------------------------------- houses


def make_rooms(seed: int, rooms: int, things: int) -> list[Room]:
    """The rooms of a house as TextWorld generates it. Runs in a process of its own: textworld is under the GPL."""
    import textworld
    from textworld.generator import make_game

    options = textworld.GameOptions()
    options.seeds = seed
    options.nb_rooms, options.nb_objects = rooms, things
    game = make_game(options)
    held = {  # entity: ("in", the id of what it is in)
        fact.arguments[0].name: (fact.name, fact.arguments[1].name)
        for fact in game.world.facts
        if fact.name in ("in", "on", "at") and fact.arguments[0].type not in ("P", "d", "r")
    }
    found: dict[str, list[tuple[str, str]]] = {room.name: [] for room in game.world.rooms}
    for thing in sorted(held):
        how, place = held[thing]
        room = place if how == "at" else held.get(place, ("", ""))[1]
        if room in found and game.infos[thing].type in ("o", "f", "k"):  # what lies about or is food or a key
            where = "on the floor" if how == "at" else f"{how} the {game.infos[place].name}"
            found[room].append((game.infos[thing].name, where))
    return [Room(game.infos[room].name, tuple(things)) for room, things in sorted(found.items())]


def make_houses(count: int, seed: int, rooms: int, things: int) -> dict[str, list[Room]]:
    """So many houses by name."""
    names = [f"{owner} {kind}" for owner, kind in itertools.product(OWNERS, KINDS)]
    if not 2 <= count <= len(names):
        raise SystemExit(f"--houses is 2 to {len(names)}, not {count}: there are no more names")
    random.Random(seed).shuffle(names)
    os.environ["PYTHONHASHSEED"] = "0"  # of the processes below: the generator goes through sets
    tasks = [(seed * len(names) + number, rooms, things) for number in range(count)]
    with multiprocessing.get_context("spawn").Pool(1) as worker:
        return dict(zip(names, worker.starmap(make_rooms, tasks), strict=False))


# ---------------------------------------------------------------------------------------------- documents, questions


def documents_of(house: str, rooms: list[Room]) -> list[Document]:
    """One a room, or several where there is much in it."""
    found = []
    for room in rooms:
        for first in range(0, max(1, len(room.things)), SHOWN):
            things = [f"{thing} {where}" for thing, where in room.things[first : first + SHOWN]]
            name = f"{house} {room.name} {first // SHOWN + 1}".replace(" ", "-")
            found.append(Document(name, f"{house}: {room.name}", f"{', '.join(things) or 'nothing to take'}."))
    return found


def questions_of(house: str, rooms: list[Room]) -> list[Question]:
    """One for each thing that is there once, and whose name is not part of the name of another one."""
    names = [thing for room in rooms for thing, _ in room.things]
    return [
        Question(house, thing, room.name)
        for room in rooms
        for thing, _ in room.things
        if sum(thing in name for name in names) == 1
    ]


def findable(questions: list[Question], documents: list[Document]) -> list[Question]:
    """Those whose words find a document that answers them before all others."""
    best = Bm25Index(documents).search([question.text for question in questions], 1)
    return [q for q, found in zip(questions, best, strict=True) if found and q.answered_by(found[0].document)]


EXAMPLES = (  # of houses that are not in the corpus
    (Question("Cooper Palace", "mop", "attic"), "mop in the chest, pillow on the floor."),
    (Question("Barton Villa", "red lamp", "garage"), "shoe on the shelf, red lamp on the floor."),
    (Question("Dexter Chapel", "egg", "larder"), "egg in the box, old map on the table."),
)


def search_row(question: Question) -> PromptRow:
    """The question behind examples of a search and an answer."""
    shown = [
        f"<search>{q.house} {q.thing}</search>\n\n<information>Doc 1 (Title: {q.house}: {q.room}) {text}</information>"
        f"\n\n<answer>{q.room}</answer>"
        for q, text in EXAMPLES
    ]
    return _row(question, SEARCH_SYSTEM, shown, "<search>")


def plain_row(question: Question) -> PromptRow:
    """The question behind examples of an answer."""
    return _row(question, PLAIN_SYSTEM, [f"<answer>{q.room}</answer>" for q, _ in EXAMPLES], "<answer>")


def _row(question: Question, system: str, shown: list[str], prefix: str) -> PromptRow:
    chat = [Message("system", system)]
    for (example, _), text in zip(EXAMPLES, shown, strict=True):
        chat += [Message("user", example.text), Message("assistant", text)]
    return PromptRow(
        messages=(*chat, Message("user", question.text)),
        answer=question.room,
        data_source=SOURCE,
        state_id=f"{question.house}, {question.thing}",
        answer_prefix=prefix,
    )


def split(questions: list[Question], share: float, seed: int) -> tuple[list[Question], list[Question]]:
    """Training questions and those of a share of the houses, each in random order."""
    houses = sorted({question.house for question in questions})
    rng = random.Random(seed)
    rng.shuffle(houses)
    held = set(houses[: max(1, round(share * len(houses)))])
    rng.shuffle(questions)
    return [q for q in questions if q.house not in held], [q for q in questions if q.house in held]


# --------------------------------------------------------------------------------------------------------------- main


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--houses", type=int, default=240)
    parser.add_argument("--rooms", type=int, default=6, help="of a house (default %(default)s)")
    parser.add_argument("--things", type=int, default=24, help="of a house, furniture included (default %(default)s)")
    parser.add_argument("--heldout", type=float, default=0.15, help="share of the houses (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    houses = make_houses(arguments.houses, arguments.seed, arguments.rooms, arguments.things)
    documents = [document for house, rooms in houses.items() for document in documents_of(house, rooms)]
    asked = [question for house, rooms in houses.items() for question in questions_of(house, rooms)]
    questions = findable(asked, documents)
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    write_corpus(out / "corpus.jsonl", documents)
    print(f"{out / 'corpus.jsonl'}: {len(documents)} documents about {len(houses)} houses")
    print(f"questions whose own words find their document before all others: {len(questions)} of {len(asked)}; kept")
    room, most = Counter(question.room for question in questions).most_common(1)[0]
    print(f"always answering {room!r} would be right: {most / len(questions):.1%}")
    for name, part in zip(("train", "heldout"), split(questions, arguments.heldout, arguments.seed), strict=True):
        write_prompts(out / f"{name}.jsonl", map(search_row, part))
        write_prompts(out / f"{name}_plain.jsonl", map(plain_row, part))
        print(f"{out / name}.jsonl, {name}_plain.jsonl: {len(part)} questions")


if __name__ == "__main__":
    main()
