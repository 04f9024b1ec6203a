"""Questions about houses made by hand: what is asked, what the prompts show, which houses are held out."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.question_set import (
    Question,
    Room,
    documents_of,
    findable,
    make_houses,
    plain_row,
    questions_of,
    search_row,
    split,
)
from priorzero.data.prompts import read_prompts, write_prompts
from priorzero.rl.rewards import QuestionMatch
from priorzero.types import Answer

ROOMS = [
    Room("sauna", (("mop", "on the floor"), ("apple", "in the chest"))),
    Room("steam room", (("red apple", "on the shelf"), ("pen", "in the box"))),
    Room("attic", ()),
]


def test_a_room_is_a_document():
    documents = documents_of("Harper Farm", ROOMS)
    assert [document.contents for document in documents] == [
        "Harper Farm: sauna\nmop on the floor, apple in the chest.",
        "Harper Farm: steam room\nred apple on the shelf, pen in the box.",
        "Harper Farm: attic\nnothing to take.",
    ]
    assert len({document.id for document in documents}) == 3


def test_a_thing_is_asked_for_where_its_name_means_one_thing():
    asked = questions_of("Harper Farm", ROOMS)
    assert [question.text for question in asked] == [
        "Where in Harper Farm is the mop?",
        "Where in Harper Farm is the red apple?",  # "apple" could be either
        "Where in Harper Farm is the pen?",
    ]
    assert [question.room for question in asked] == ["sauna", "steam room", "steam room"]


def test_a_full_room_fills_several_documents():
    things = tuple((f"thing {n}", "on the floor") for n in "abcde")
    first, second = documents_of("Mason Inn", [Room("vault", things)])
    assert (first.title, first.text.count("thing"), second.title) == ("Mason Inn: vault", 4, "Mason Inn: vault")
    assert second.text == "thing e on the floor."
    assert first.id != second.id


def test_questions_whose_words_do_not_find_their_document_are_left_out():
    pytest.importorskip("bm25s", reason="the extra 'retriever' is not installed")
    houses = {name: ROOMS for name in ("Harper Farm", "Harper Hall", "Mason Farm")}
    documents = [document for house, rooms in houses.items() for document in documents_of(house, rooms)]
    questions = [question for house, rooms in houses.items() for question in questions_of(house, rooms)]
    assert findable(questions, documents) == questions
    elsewhere = Question("Mason Farm", "mop", "attic")
    assert findable([*questions, elsewhere], documents) == questions


def test_prompts_show_how_and_rewards_read_the_answer(tmp_path: Path):
    (question, *_) = questions_of("Harper Farm", ROOMS)
    rows = [search_row(question), plain_row(question)]
    write_prompts(tmp_path / "rows.jsonl", rows)
    assert read_prompts(tmp_path / "rows.jsonl", {}) == rows
    assert [row.answer_prefix for row in rows] == ["<search>", "<answer>"]
    assert rows[0].messages[-1] == rows[1].messages[-1]
    assert "<search>Cooper Palace mop</search>" in rows[0].messages[2].content
    reward = QuestionMatch(value=1.0, format_value=0.0)
    said = "<search>Harper Farm mop</search><answer>the Sauna</answer>", "<search>mop</search><answer>attic</answer>"
    assert list(reward([Answer(rows[0], text, None, "stop") for text in said])) == [1.0, 0.0]


def test_held_out_houses_are_never_trained_on():
    questions = [q for house in ("A Farm", "B Farm", "C Farm", "D Farm") for q in questions_of(house, ROOMS)]
    train, heldout = split(list(questions), 0.25, seed=0)
    assert len(train) == 9
    assert {q.house for q in train}.isdisjoint(q.house for q in heldout)
    assert split(list(questions), 0.25, seed=0) == (train, heldout)


@pytest.mark.slow
def test_houses_are_made_the_same_way_every_time():
    houses = make_houses(2, 0, 4, 12)
    assert make_houses(2, 0, 4, 12) == houses
    assert all(len(rooms) == 4 for rooms in houses.values())
    assert sum(len(questions_of(house, rooms)) for house, rooms in houses.items()) > 4
