"""Which of the drawn windows get fresh targets, and what stays as it was."""

from __future__ import annotations

import numpy as np
import pytest
from segment_factory import GAMMA, make_segment

from priorzero.data.reanalysis import FreshPolicies, ReanalysisConfig
from priorzero.data.replay import Draw, Replay
from priorzero.data.segments import MAX_STEPS


class Searcher:
    """Writes down what it is asked; its policy puts everything on the first action."""

    def __init__(self) -> None:
        self.asked: list[list[tuple[int, int]]] = []

    def __call__(self, segments, steps) -> list[np.ndarray]:
        self.asked.append([(segment.episode, step) for segment, step in zip(segments, steps, strict=True)])
        return [np.eye(len(s.valid_actions[t]), dtype=np.float32)[0] for s, t in zip(segments, steps, strict=True)]


def make_replay(episodes: int = 3, **changes) -> Replay:
    replay = Replay(1000, prioritised=False, alpha=0, beta=0, gamma=GAMMA, seed=0)
    for episode in range(episodes):
        replay.add(make_segment(6, episode=episode, terminated=True, **changes))
    return replay


def fresh_steps(segment) -> list[int]:
    return [t for t, probs in enumerate(segment.visit_probs) if probs[0] == 1]


def windows(replay: Replay, *at: tuple[int, int]) -> Draw:
    """A draw of these (episode, step); an episode is a segment here."""
    return replay.draw_of(np.array([episode * MAX_STEPS + step for episode, step in at]))


def test_the_trained_steps_of_the_share_are_searched_once_and_at_once():
    replay, search = make_replay(), Searcher()
    draw = windows(replay, (0, 1), (0, 2), (1, 5), (2, 0))
    segments = FreshPolicies(replay, search, ratio=0.75, unroll=2)(draw, 0)
    assert search.asked == [[(0, 1), (0, 2), (0, 3), (1, 5)]]
    assert replay.reanalysed == 4
    assert [fresh_steps(s) for s in segments] == [[1, 2, 3], [1, 2, 3], [5], []]
    assert [s.episode for s in segments] == [0, 0, 1, 2]
    assert segments[3] is draw.segments[3]
    assert all(fresh_steps(replay.get(n)) == [] for n in range(3))  # what is stored stays


def test_a_share_that_is_no_whole_number_is_over_several_draws():
    replay, search = make_replay(), Searcher()
    fresh = FreshPolicies(replay, search, ratio=0.3, unroll=1)
    counts = [sum(bool(fresh_steps(s)) for s in fresh(windows(replay, (0, 0), (1, 0)), n)) for n in range(10)]
    assert sum(counts) == 6
    assert set(counts) == {0, 1}
    assert len(search.asked) == 6  # not at all where nothing is due


def test_steps_without_a_choice_are_left_alone():
    replay, search = make_replay(valid=("wait",)), Searcher()
    draw = windows(replay, (0, 0), (1, 3))
    assert FreshPolicies(replay, search, ratio=1.0, unroll=3)(draw, 0) is draw.segments
    assert (search.asked, replay.reanalysed) == ([], 0)


def test_steps_that_nobody_searched_get_a_target():
    replay, search = make_replay(visit_probs=(np.zeros(0, np.float32),) * 6), Searcher()
    (segment,) = FreshPolicies(replay, search, ratio=1.0, unroll=2)(windows(replay, (0, 4)), 0)
    assert [len(probs) for probs in segment.visit_probs] == [0, 0, 0, 0, 4, 4]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ratio": -0.1}, r"data\.reanalysis_ratio=-0\.1: it is the share .* between 0 and 1"),
        ({"ratio": 1.5}, r"data\.reanalysis_ratio=1\.5"),
        ({"ratio": float("nan")}, r"data\.reanalysis_ratio=nan"),
        ({"ratio": "half"}, r"data\.reanalysis_ratio=half"),
        ({"states": 0}, r"data\.reanalysis_states=0: it must be a whole number"),
    ],
)
def test_what_is_no_share_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ReanalysisConfig(**({"ratio": 0.5, "states": 8} | changes))
