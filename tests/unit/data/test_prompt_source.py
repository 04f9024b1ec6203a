import hashlib

import numpy as np
import pytest
from segment_factory import GAMMA, make_segment
from small_llm import small_llm

from priorzero.data.prompt_source import FixedPrompts, PlayedPrompts, unfit_sources
from priorzero.data.replay import Replay
from priorzero.text.prompt import PromptBuilder, PromptConfig
from priorzero.types import Message, PromptRow

ROWS = [PromptRow((Message("user", str(i)),), data_source="qa" if i else "", group_id="of the file") for i in range(5)]
VISITS = tuple(np.array(row, np.float32) for row in ([0.1, 0.2, 0.6, 0.1], [0.7, 0.1, 0.1, 0.1], [0, 0, 0, 0]))


@pytest.fixture(scope="module")
def builder():
    config = PromptConfig(
        format="plain", history_steps=1, max_tokens=512, show=("feedback", "look", "inventory"), system=None,
        show_valid_actions=True, show_rewards=True, truncate_observation=True,
    )  # fmt: skip
    return PromptBuilder(small_llm().tokenizer, config)


def played(builder, *segments, newest_steps=100, seed=0, extras=None):
    replay = Replay(1000, prioritised=False, alpha=0.6, beta=0.4, gamma=GAMMA, seed=0)
    for segment in segments:
        replay.add(segment)
    return PlayedPrompts(replay, builder, newest_steps=newest_steps, seed=seed, extras=extras)


def contents(rows):
    return [row.messages[0].content for row in rows]


# ------------------------------------------------------------------------------------------------------------- a file


def test_every_row_once_in_another_order_each_time():
    source = FixedPrompts(ROWS, seed=3)
    epochs = [contents(source.take(5)) for _ in range(6)]
    assert [sorted(epoch) for epoch in epochs] == [list("01234")] * 6
    assert len({tuple(epoch) for epoch in epochs}) > 3
    assert contents(FixedPrompts(ROWS, seed=3).take(30)) == [c for epoch in epochs for c in epoch]
    assert contents(FixedPrompts(ROWS, seed=4).take(30)) != [c for epoch in epochs for c in epoch]


def test_rows_are_handed_out_as_groups_of_their_own():
    rows = FixedPrompts(ROWS, seed=0).take(12)
    assert [row.group_id for row in rows] == [str(n) for n in range(12)]


def test_a_resumed_file_goes_on_in_the_middle():
    source = FixedPrompts(ROWS, seed=0)
    source.take(7)
    other = FixedPrompts(ROWS, seed=0)
    other.load_state_dict(source.state_dict())
    assert other.take(6) == source.take(6)


def test_no_rows():
    with pytest.raises(ValueError, match="there are no prompts to train on"):
        FixedPrompts([], seed=0)


# --------------------------------------------------------------------------------------------------------------- play


def test_the_right_answer_is_what_the_search_chose_most(builder):
    segment = make_segment(visit_probs=VISITS)  # steps 0 and 1; nobody searched step 2
    rows = played(builder, segment).take(40)
    assert {row.answer for row in rows} == {"take lamp", "east"}
    for row in rows:
        step = {"take lamp": 0, "east": 1}[row.answer]
        assert f"room {step}" in row.messages[-1].content
        assert ("> east" in row.messages[-1].content) == (step == 1), "the turn before it"
        assert row.valid_actions == segment.valid_actions[step]
        assert row.answer_prefix == "Action:"
        assert row.data_source == "game"
        assert row.extra == {}
    assert [row.group_id for row in rows] == [str(n) for n in range(1, 41)]


def test_equal_situations_have_equal_states(builder):
    games = [make_segment(1, episode=i, game=game) for i, game in enumerate(["zork", "zork", "enchanter"])]
    rows = played(builder, *games).take(60)
    messages = rows[0].messages
    assert all(row.messages == messages for row in rows)
    expected = {
        hashlib.blake2b(repr((messages, game)).encode(), digest_size=8).hexdigest() for game in ("zork", "enchanter")
    }
    assert {row.state_id for row in rows} == expected


def test_only_the_newest_steps_are_asked_about(builder):
    old, new = make_segment(3, valid=("a", "b")), make_segment(3, episode=1, valid=("c", "d"))
    assert {row.valid_actions for row in played(builder, old, new, newest_steps=3).take(20)} == {("c", "d")}
    assert len({row.valid_actions for row in played(builder, old, new, newest_steps=6).take(20)}) == 2


def test_extras_go_to_their_rows(builder):
    segment = make_segment(3)

    def extras(segments, steps):
        assert [s.actions for s in segments] == [segment.actions] * len(steps)
        return [{"step": step} for step in steps]

    for row in played(builder, segment, extras=extras).take(10):
        assert f"room {row.extra['step']}" in row.messages[-1].content


def test_resumed_draws_go_on(builder):
    segment = make_segment(8)
    source, other = played(builder, segment), played(builder, segment, seed=9)
    source.take(3)
    other.load_state_dict(source.state_dict())
    assert other.take(8) == source.take(8)


@pytest.mark.parametrize(
    "segments", [(), (make_segment(2, valid=("wait",)),), (make_segment(3, visit_probs=(VISITS[2],) * 3),)]
)
def test_nothing_that_a_search_chose(segments, builder):
    with pytest.raises(ValueError, match=r"no step with two valid actions and visits.*collector\.policy=wm_prior"):
        played(builder, *segments).take(1)


# ------------------------------------------------------------------------------------------------------------ rewards


def test_data_sources(builder):
    assert FixedPrompts(ROWS, seed=0).data_sources == {"", "qa"}
    assert played(builder).data_sources == {"game"}


@pytest.mark.parametrize(
    ("rows", "rewards", "problem"),
    [
        ({"qa"}, {"qa": {"exact": 1.0}}, ""),
        ({"qa"}, {"qa": {"exact": 1.0}, "game": {"exact": 0.0}}, ""),
        (
            {"qa", "game"},
            {"game": {"exact": 1.0}},
            "reward.sources has no rewards for ['qa'], it has some for ['game']",
        ),
        ({""}, {"game": {"exact": 1.0}}, "or set the data_source of the prompts that have none"),
        (
            {"qa"},
            {"qa": {"exact": 1.0}, "game": {"exact": 0.5}},
            "reward.sources.game gives weight to rewards of prompts",
        ),
    ],
)
def test_rewards_that_do_not_fit(rows, rewards, problem):
    found = unfit_sources(rows, rewards)
    assert problem in found
    assert bool(problem) == bool(found)
