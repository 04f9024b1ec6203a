import threading
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from segment_factory import GAMMA, make_segment, same_segment, segments

from priorzero.data.replay import FILE_NAME, Replay
from priorzero.types import SegmentId


def make_replay(capacity: int = 100, *, prioritised: bool = False, alpha=1.0, beta=1.0, seed=0) -> Replay:
    return Replay(capacity, prioritised=prioritised, alpha=alpha, beta=beta, gamma=GAMMA, seed=seed)


# ------------------------------------------------------------------------------------------------------- keeping count


def test_the_oldest_whole_segments_leave():
    replay = make_replay(7)
    numbers = [replay.add(make_segment(3, episode=e)) for e in range(3)]
    assert numbers == [0, 1, 2]
    assert (len(replay), replay.segments, replay.steps_added) == (6, 2, 9)
    assert replay.get(2).episode == 2
    with pytest.raises(KeyError, match="segment 0 is not in the replay"):
        replay.get(0)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=20), st.integers(5, 12))
def test_capacity_is_never_exceeded_nor_wasted(lengths, capacity):
    replay = make_replay(capacity)
    for episode, length in enumerate(lengths):
        replay.add(make_segment(length, episode=episode, terminated=True))
        kept = lengths[episode + 1 - replay.segments : episode + 1]
        assert len(replay) == sum(kept) <= capacity
        older = lengths[: episode + 1 - replay.segments]
        assert not older or sum(kept) + older[-1] > capacity


def test_what_cannot_be_stored_is_refused():
    replay = make_replay(4)
    with pytest.raises(ValueError, match="cannot fit capacity_steps=4"):
        replay.add(make_segment(5))
    replay.add(make_segment(2))
    with pytest.raises(ValueError, match="vectors are 2 wide, those stored 3"):
        replay.add(make_segment(2, episode=1, vectors=np.zeros((3, 2))))
    with pytest.raises(ValueError, match="at least one step"):
        make_replay(0)
    assert len(replay) == 2


def test_newest_first():
    replay = make_replay()
    for episode in range(2):
        replay.add(make_segment(2, episode=episode))
    assert replay.newest(3) == [SegmentId(1, 1), SegmentId(1, 0), SegmentId(0, 1)]
    assert len(replay.newest(99)) == 4
    assert replay.newest(0) == []


# ------------------------------------------------------------------------------------------------------------- returns


def test_the_end_of_an_episode_gives_earlier_segments_their_returns():
    replay = make_replay()
    replay.add(make_segment(2, episode=5, start=0, rewards=[1, 2]))
    replay.add(make_segment(2, episode=6, start=0))  # another episode in between
    replay.add(make_segment(1, episode=5, start=2, rewards=[4]))
    assert replay.get(0).returns is None
    replay.add(make_segment(2, episode=5, start=3, rewards=[8, 16], terminated=True))
    # backwards with gamma 1/2: 16, 8 + 8, 4 + 8, 2 + 6, 1 + 4
    assert replay.get(3).returns.tolist() == [16.0, 16.0]
    assert replay.get(2).returns.tolist() == [12.0]
    assert replay.get(0).returns.tolist() == [5.0, 8.0]
    assert replay.get(1).returns is None


def test_returns_count_intrinsic_rewards():
    replay = make_replay()
    replay.add(make_segment(2, start=0, rewards=[1, 2], intrinsic=np.array([0.5, 0], np.float32)))
    replay.add(make_segment(1, start=2, rewards=[4], terminated=True))
    assert replay.get(0).returns.tolist() == [1.5 + 0.5 * 4, 2 + 0.5 * 4]


def test_returns_reach_back_over_a_truncation_and_over_evictions():
    replay = make_replay(4)
    for start in (0, 2):
        replay.add(make_segment(2, start=start, rewards=[1, 1]))
    replay.add(make_segment(2, start=4, rewards=[0, 0], truncated=True, returns=np.array([4.0, 8.0])))
    assert replay.segments == 2
    assert replay.get(1).returns.tolist() == [1 + 0.5 * 3, 1 + 0.5 * 4]


def test_segments_of_an_episode_come_in_order():
    replay = make_replay()
    replay.add(make_segment(2, episode=5))
    with pytest.raises(ValueError, match="stored up to step 2, but a segment of zork from step 4"):
        replay.add(make_segment(2, episode=5, start=4))
    with pytest.raises(ValueError, match="add the segments of an episode in order"):
        replay.add(make_segment(2, episode=5, start=2, game="detective"))


# ------------------------------------------------------------------------------------------------------------ sampling


def test_an_empty_replay_says_so():
    with pytest.raises(RuntimeError, match="the replay is empty"):
        make_replay().sample_ids(1)


@pytest.mark.parametrize("prioritised", [False, True])
def test_every_step_is_drawn_equally_often(prioritised):
    replay = make_replay(prioritised=prioritised)
    for episode, length in enumerate((1, 3, 6)):
        replay.add(make_segment(length, episode=episode, terminated=True))
    draw = replay.sample_ids(10_000)
    counts = Counter(draw.ids)
    assert set(counts) == {SegmentId(e, t) for e, n in enumerate((1, 3, 6)) for t in range(n)}  # the last ones too
    assert all(850 < n < 1150 for n in counts.values())  # 1000 +- 5 deviations
    assert draw.weight.tolist() == [1.0] * 10_000
    assert all(s.episode == i.segment for s, i in zip(draw.segments[:50], draw.ids, strict=False))
    assert draw.steps[:50] == [i.step for i in draw.ids[:50]]


def test_priorities_by_hand():
    replay = make_replay(prioritised=True, alpha=0.5, beta=1.0)
    replay.add(make_segment(2))
    index = np.unique(replay.sample_ids(50).index)
    replay.update_priorities(index, np.array([1.0, 9.0]))  # masses 1 and 3
    draw = replay.sample_ids(8000)
    share = np.mean(np.array(draw.steps) == 1)
    assert abs(share - 0.75) < 0.03
    # (n p)^-1: 1 / (2 / 4) = 2 and 1 / (2 * 3 / 4) = 2 / 3; divided by the greatest: 1 and 1 / 3
    expected = np.where(np.array(draw.steps) == 1, 1 / 3, 1.0)
    np.testing.assert_allclose(draw.weight, expected, rtol=1e-6)


def test_new_segments_get_the_greatest_priority():
    replay = make_replay(prioritised=True)
    replay.add(make_segment(1))
    replay.update_priorities(replay.sample_ids(1).index, np.array([3.0]))
    replay.add(make_segment(1, episode=1))
    draw = replay.sample_ids(4000)
    assert abs(np.mean([i.segment for i in draw.ids]) - 0.5) < 0.05
    assert draw.weight.tolist() == [1.0] * 4000


def test_priority_zero_is_still_drawn_from_where_nothing_else_is():
    replay = make_replay(prioritised=True)
    replay.add(make_segment(1))
    replay.update_priorities(replay.sample_ids(1).index, np.array([0.0]))
    assert replay.sample_ids(2).steps == [0, 0]


def test_priorities_of_evicted_steps_are_passed_over():
    replay = make_replay(2, prioritised=True)
    replay.add(make_segment(2))
    old = replay.sample_ids(4)
    replay.add(make_segment(2, episode=1))  # takes the place of the first
    replay.update_priorities(old.index, np.full(4, 1e6))
    new = replay.sample_ids(1)
    replay.update_priorities(new.index, np.array([3.0]))
    state = replay.state_dict()
    assert sorted(state["mass"].tolist()) == [1.0, 3.0]
    assert [s.episode for s in old.segments] == [0] * 4  # a draw outlives the eviction
    assert len(replay.draw_of(old.index).ids) == 0
    assert replay.draw_of(np.concatenate([old.index, new.index])).ids == new.ids


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_bad_priorities_are_refused(bad):
    replay = make_replay(prioritised=True)
    replay.add(make_segment(2))
    with pytest.raises(ValueError, match="diverged"):
        replay.update_priorities(replay.sample_ids(1).index, np.array([bad]))
    with pytest.raises(ValueError, match="cannot take"):
        replay.update_priorities(replay.sample_ids(2).index, np.array([1.0]))


def test_decisions_have_a_choice_and_visits():
    replay, rng = make_replay(), np.random.default_rng(0)
    assert replay.sample_decisions(3, rng).ids == []
    replay.add(make_segment(2, valid=("wait",)))
    assert replay.sample_decisions(3, rng).ids == []
    probs = make_segment().visit_probs
    replay.add(make_segment(3, episode=1, visit_probs=(probs[0], np.zeros(0), np.zeros(4))))
    assert set(replay.sample_decisions(20, rng).ids) == {SegmentId(1, 0)}
    replay.add(make_segment(3, episode=2, terminated=True))
    everything = {SegmentId(1, 0), *(SegmentId(2, t) for t in range(3))}
    assert set(replay.sample_decisions(200, rng).ids) == everything
    assert set(replay.sample_decisions(200, rng, newest_steps=2).ids) == {SegmentId(2, 1), SegmentId(2, 2)}
    assert set(replay.sample_decisions(200, rng, newest_steps=99).ids) == everything
    assert set(replay.sample_decisions(200, rng, finished=True).ids) == everything - {SegmentId(1, 0)}
    replay.add(make_segment(1, episode=1, start=3, terminated=True))
    assert SegmentId(1, 0) in replay.sample_decisions(200, rng, finished=True).ids


# ------------------------------------------------------------------------------------------------------------- keeping


@settings(max_examples=25)
@given(st.lists(segments(), min_size=1, max_size=5))
def test_state_is_exact_and_sampling_goes_on(originals):
    replay = make_replay(10, prioritised=True, alpha=0.6, beta=0.4)
    for episode, segment in enumerate(originals):
        replay.add(replace(segment, episode=episode))
    draw = replay.sample_ids(4)
    replay.update_priorities(draw.index, np.arange(4.0))
    restored = make_replay(10, prioritised=True, alpha=0.6, beta=0.4, seed=9)
    restored.load_state_dict(replay.state_dict())
    assert (len(restored), restored.steps_added) == (len(replay), replay.steps_added)
    for _ in range(2):
        a, b = replay.sample_ids(8), restored.sample_ids(8)
        assert a.ids == b.ids
        assert a.weight.tolist() == b.weight.tolist()
        assert all(map(same_segment, a.segments, b.segments))
        number = {r.add(make_segment(2, episode=99, start=0, terminated=True)) for r in (replay, restored)}
        assert len(number) == 1


def test_open_episodes_survive_a_restart():
    replay, restored = make_replay(), make_replay()
    replay.add(make_segment(2, rewards=[1, 1]))
    restored.load_state_dict(replay.state_dict())
    restored.add(make_segment(1, start=2, rewards=[4], terminated=True))
    assert restored.get(0).returns.tolist() == [2.5, 3.0]
    assert len(restored.sample_decisions(5, np.random.default_rng(0), finished=True).ids) == 5


def test_a_smaller_replay_keeps_the_newest():
    replay, restored = make_replay(), make_replay(3)
    for episode in range(3):
        replay.add(make_segment(2, episode=episode))
    restored.load_state_dict(replay.state_dict())
    assert (len(restored), restored.get(2).episode) == (2, 2)


def test_empty_state():
    restored = make_replay()
    restored.load_state_dict(make_replay().state_dict())
    assert len(restored) == 0
    assert restored.add(make_segment(2)) == 0


def test_save_and_load(tmp_path):
    replay, restored = make_replay(prioritised=True), make_replay(prioritised=True, seed=3)
    replay.add(make_segment(3, terminated=True))
    replay.save(tmp_path / "rank0")
    assert [p.name for p in (tmp_path / "rank0").iterdir()] == [FILE_NAME]
    torch.load(tmp_path / "rank0" / FILE_NAME, weights_only=True)
    restored.load(tmp_path / "rank0")
    assert same_segment(restored.get(0), replay.get(0))
    assert replay.sample_ids(9).ids == restored.sample_ids(9).ids
    with pytest.raises(FileNotFoundError, match="no replay at"):
        restored.load(tmp_path)


# ------------------------------------------------------------------------------------------------------------- threads


def test_threads_add_sample_update_and_save_at_once():
    replay = make_replay(60, prioritised=True, alpha=0.6, beta=0.4)
    replay.add(make_segment(5, episode=10_000))
    errors, stop = [], threading.Event()

    def guarded(work):
        def run():
            try:
                while not stop.is_set():
                    work()
            except BaseException as error:
                errors.append(error)

        return threading.Thread(target=run, daemon=True)

    def learn():
        draw = replay.sample_ids(16)
        assert all(i.step < len(s) for i, s in zip(draw.ids, draw.segments, strict=True))
        replay.update_priorities(draw.index, np.random.default_rng(0).random(16))

    rng = np.random.default_rng(1)
    threads = [guarded(learn), guarded(learn), guarded(replay.state_dict)]
    threads.append(guarded(lambda: replay.sample_decisions(8, rng, newest_steps=20, finished=True)))
    for thread in threads:
        thread.start()
    try:
        for episode in range(200):  # two segments an episode
            replay.add(make_segment(3, episode=episode))
            replay.add(make_segment(2, episode=episode, start=3, terminated=True))
    finally:
        stop.set()
    for thread in threads:
        thread.join(20)
    assert not errors
    assert (len(replay), replay.steps_added) == (60, 1005)
    assert all(replay.get(i.segment).returns is not None for i in replay.newest(60))
