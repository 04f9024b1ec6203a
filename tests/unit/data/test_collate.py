import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from segment_factory import ACTIONS, make_segment, make_vocabulary, segments

from priorzero.data.collate import MIN_VISIT_PROB, policy_batch, situation, world_model_batch
from priorzero.data.segments import check_segment
from priorzero.policy.packing import pack
from priorzero.text.vocabulary import ActionVocabulary
from priorzero.types import Observation, Turn

RNG = np.random.default_rng(0)


def collate(segs, starts, *, unroll=2, bootstrap=2, vocabulary=None, max_known=None, rng=RNG):
    n = len(segs)
    return world_model_batch(
        segs,
        starts,
        unroll=unroll,
        bootstrap=bootstrap,
        vocabulary=vocabulary or make_vocabulary(*segs),
        weight=np.full(n, 0.5),
        index=np.arange(n) + 7,
        max_known=max_known,
        rng=rng,
    )


# -------------------------------------------------------------------------------------------------------- world model


def test_intrinsic_rewards_are_learned_and_not_shown_as_points():
    segment = make_segment(3, rewards=[1, 0, 4], intrinsic=np.array([0.5, 0.25, 0], np.float32))
    assert collate([segment], [0], unroll=3, bootstrap=0).reward[0].tolist() == [1.5, 0.25, 4.0]
    assert [turn.reward for turn in situation(segment, 2).history] == [1.0, 0.0]


def test_a_whole_window():
    batch = collate([make_segment(6)], [1])
    assert batch.observation[0].tolist() == [[0, t, 1] for t in range(1, 6)]
    assert batch.reward.tolist() == [[1, 2, 3, 4]]
    assert (batch.length.tolist(), batch.terminated.tolist()) == ([4], [False])
    assert batch.action.tolist() == [[1, 2, 3, 0]]  # candidates are ACTIONS, step t plays number t % 4
    assert batch.legal.shape == batch.policy.shape == (1, 2, 4)
    assert batch.legal.all()
    assert batch.policy.flatten().tolist() == [0.25] * 8
    assert (batch.weight.tolist(), batch.index.tolist(), batch.unroll) == ([0.5], [7], 2)
    dtypes = [
        getattr(batch, name).dtype for name in ("observation", "action", "reward", "length", "candidates", "index")
    ]
    assert dtypes == [torch.float32, torch.int64, torch.float32, torch.int64, torch.float32, torch.int64]


@pytest.mark.parametrize("terminated", [True, False])
def test_windows_past_the_end_are_padded(terminated):
    segment = make_segment(3, terminated=terminated, truncated=not terminated)
    batch = collate([segment, segment], [1, 2], unroll=3, bootstrap=1)
    assert batch.length.tolist() == [2, 1]
    assert batch.terminated.tolist() == [terminated] * 2
    assert batch.reward.tolist() == [[1, 2, 0, 0], [2, 0, 0, 0]]
    after = [0, 3, 1] if terminated else [0, 0, 0]  # a true end is an absorbing state
    assert batch.observation[1].tolist() == [[0, 2, 1], [0, 3, 1], after, after, after]
    padding = [batch.action[0, 2:], batch.action[1, 1:]]
    assert (batch.action[0, :2].tolist(), batch.action[1, :1].tolist()) == ([1, 2], [2])
    assert all((row < len(batch.candidates)).all() and (terminated or not row.any()) for row in padding)
    assert batch.legal.any(-1).tolist() == [[True, True, False], [True, False, False]]
    assert batch.policy.sum(-1).tolist() == [[1, 1, 0], [1, 0, 0]]


def test_a_window_that_stops_before_the_end_of_the_game_is_not_terminated():
    segment = make_segment(5, terminated=True)
    assert collate([segment, segment], [0, 1]).terminated.tolist() == [False, True]


def test_two_games_share_the_candidates():
    zork = make_segment(2, valid=("east", "west"))
    other = make_segment(2, game="detective", valid=("west", "wait"))
    vocabulary = make_vocabulary(zork, other)  # east 0, west 1, wait 2
    vocabulary.add("zork", ["dig"])  # 3: known in zork, not valid here
    vocabulary.add("omniquest", ["fly"])  # 4: of a game that is not in the batch
    batch = collate([zork, other], [0, 0], vocabulary=vocabulary)
    assert torch.equal(batch.candidates, torch.from_numpy(vocabulary.vectors()[:4].copy()))
    assert batch.known.tolist() == [[True, True, False, True], [False, True, True, False]]
    assert batch.legal[:, 0].tolist() == [[True, True, False, False], [False, True, True, False]]
    assert batch.action[:, :2].tolist() == [[0, 1], [1, 2]]


def test_actions_of_bootstrap_steps_are_candidates_too():
    valid = (("a", "b"), ("a", "b"), ("c",), ())
    segment = make_segment(3, valid=("a", "b"), terminated=True)
    probs = (*segment.visit_probs[:2], np.ones(1, np.float32))
    segment = replace(segment, valid_actions=valid, actions=("a", "b", "c"), visit_probs=probs)
    batch = collate([segment], [0], unroll=1, bootstrap=2, max_known=0)
    assert batch.action.tolist() == [[0, 1, 2]]
    assert batch.legal.tolist() == [[[True, True, False]]]
    assert batch.known.tolist() == [[True, True, True]]


def test_negatives_are_limited_and_repeatable():
    segment = make_segment(2)
    vocabulary = make_vocabulary(segment)
    vocabulary.add("zork", [f"say {n}" for n in range(500)])
    few = [
        collate([segment], [0], vocabulary=vocabulary, max_known=20, rng=np.random.default_rng(s)) for s in (1, 1, 2)
    ]
    assert all(20 <= len(batch.candidates) <= 24 for batch in few)
    assert torch.equal(few[0].candidates, few[1].candidates)
    assert not torch.equal(few[0].candidates, few[2].candidates)
    assert len(collate([segment], [0], vocabulary=vocabulary).candidates) == 504
    assert len(collate([segment], [0], vocabulary=vocabulary, max_known=0).candidates) == 4


def test_steps_without_visits_have_no_policy_target():
    segment = make_segment(2, visit_probs=(np.zeros(0, np.float32), make_segment().visit_probs[0]))
    batch = collate([segment], [0])
    assert batch.policy.sum(-1).tolist() == [[0, 1]]
    assert batch.legal.all()


def test_starts_outside_and_unknown_actions_are_refused():
    with pytest.raises(ValueError, match="step 3 is not a step of a segment of 3 steps"):
        collate([make_segment(3)], [3])
    with pytest.raises(KeyError, match="not in the vocabulary"):
        collate([make_segment(3)], [0], vocabulary=make_vocabulary(make_segment(3, valid=("jump",))))


@given(st.lists(segments(), min_size=1, max_size=3), st.data())
def test_every_number_is_that_of_its_segment(segs, data):
    segs = [check_segment(s) for s in segs]
    starts = [data.draw(st.integers(0, len(s) - 1)) for s in segs]
    unroll, bootstrap = data.draw(st.integers(1, 3)), data.draw(st.integers(0, 3))
    vocabulary = make_vocabulary(*segs)
    batch = collate(segs, starts, unroll=unroll, bootstrap=bootstrap, vocabulary=vocabulary, max_known=2)
    assert batch.observation.shape[:2] == (len(segs), unroll + bootstrap + 1)
    assert (batch.legal <= batch.known[:, None]).all()
    assert not batch.policy[~batch.legal].any()
    vectors = vocabulary.vectors()
    for b, (s, start) in enumerate(zip(segs, starts, strict=True)):
        length = int(batch.length[b])
        assert length == min(unroll + bootstrap, len(s) - start)
        assert batch.observation[b, : length + 1].numpy().tobytes() == s.vectors[start : start + length + 1].tobytes()
        played = vectors[vocabulary.ids(s.actions[start : start + length])]
        np.testing.assert_array_equal(batch.candidates[batch.action[b, :length]].numpy(), played)
        for t in range(min(unroll, length)):
            valid, probs = s.valid_actions[start + t], s.visit_probs[start + t]
            assert int(batch.legal[b, t].sum()) == len(valid)
            order = np.argsort(vocabulary.ids(valid))
            expected = probs[order] if len(probs) else np.zeros(len(valid))
            np.testing.assert_array_equal(batch.policy[b, t][batch.legal[b, t]].numpy(), expected)


def test_a_batch_of_64_takes_some_milliseconds():
    rng = np.random.default_rng(0)
    texts = [f"put thing {n} in box" for n in range(800)]
    segs = []
    for episode in range(64):
        sets = [tuple(sorted(rng.choice(texts, 20, replace=False).tolist())) for _ in range(51)]
        segment = make_segment(50, episode=episode, valid=("a",) * 20, vectors=np.zeros((51, 1152), np.float32))
        actions = tuple(s[0] for s in sets[:50])
        segs.append(check_segment(replace(segment, valid_actions=tuple(sets), actions=actions)))
    vocabulary = ActionVocabulary(lambda t: np.zeros((len(t), 384), np.float32), 384)
    vocabulary.add("zork", texts)
    durations = []
    for _ in range(15):
        start = time.perf_counter()
        batch = collate(segs, [20] * 64, unroll=10, bootstrap=5, vocabulary=vocabulary)
        durations.append(time.perf_counter() - start)
    assert batch.legal.shape == (64, 10, 800)
    assert min(durations) < 0.05, durations  # about 7 ms alone on a machine


# ------------------------------------------------------------------------------------------------------------- policy


class Words:
    """A prompt builder whose tokens are easy to read: the numbers of things."""

    def prompt(self, s):
        return [100 + len(s.history)]

    def answers(self, actions):
        return [[len(a), 1] for a in actions]


def make_policy_batch(segs, steps, **changes):
    arguments = {"prompts": Words(), "pack": pack, "pad_id": 0, "advantages": np.arange(len(steps)) - 1.5}
    return policy_batch(segs, steps, **(arguments | changes))


def test_a_situation_continues_the_history_of_its_segment():
    s = situation(make_segment(3, start=4), 2)
    assert s.observation.feedback == "room 6"
    assert s.history == (
        Turn(Observation("before"), "look", 0.0),
        Turn(Observation("room 4", "a room", "a lamp"), "east", 4.0),
        Turn(Observation("room 5", "a room", "a lamp"), "north", 5.0),
    )
    assert (s.valid_actions, s.goal) == (ACTIONS, "win")


def test_policy_batch_by_hand():
    probs = (np.array([0.5, 0.0, 0.25, 0.25], np.float32),) * 3
    searched = make_segment(3, visit_probs=probs)
    asked = make_segment(
        1,
        valid=("go", "wait"),
        visit_probs=(np.array([0.1, 0.9], np.float32),),
        prior_logprobs=(np.array([-3.0, -2.0], np.float32),),
    )
    batch = make_policy_batch([searched, asked, searched], [2, 0, 1])
    assert batch.prompts.candidates.tolist() == [4, 2, 4]
    assert sorted(batch.prompts.tokens[batch.prompts.position == 0].tolist()) == [100, 101, 102]
    np.testing.assert_allclose(batch.visit_probs.numpy(), [probs[0], [0.1, 0.9, 0, 0], probs[0]], rtol=1e-6)
    assert batch.action.tolist() == [2, 0, 1]
    expected = [np.log(0.25), -3.0, np.log(MIN_VISIT_PROB)]
    np.testing.assert_allclose(batch.behaviour_logprobs.numpy(), expected, rtol=1e-6)
    assert batch.advantage.tolist() == [-1.5, -0.5, 0.5]
    assert batch.weight.tolist() == [1, 1, 1]
    assert make_policy_batch([searched], [0], weight=np.zeros(1)).weight.tolist() == [0]


def test_policy_batch_checks_its_lengths():
    with pytest.raises(ValueError, match="1 steps, 2 advantages"):
        make_policy_batch([make_segment()], [0], advantages=np.zeros(2))
    with pytest.raises(ValueError, match="0 steps"):
        make_policy_batch([], [])
