from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from segment_factory import ACTIONS, make_segment, same_segment, segments

from priorzero.data.segments import check_segment, pack_segments, unpack_segments


@given(st.lists(segments(), max_size=4))
def test_packing_is_exact(originals):
    originals = [check_segment(s) for s in originals]
    unpacked = unpack_segments(pack_segments(originals))
    assert len(unpacked) == len(originals)
    assert all(map(same_segment, originals, unpacked))


def test_packing_repeats_nothing():
    state = pack_segments([check_segment(make_segment(3, episode=0, start=t)) for t in (0, 3, 0)])
    assert len(state["texts"]) == len(set(state["texts"]))
    assert len(state["vectors"]) == 7  # rooms 0 to 6
    assert len(state["observations"]) == 7 + 1  # and the one of the history
    assert state["action_sets_length"].tolist() == [len(ACTIONS)]


def test_packed_state_is_plain(tmp_path):
    torch.save(pack_segments([check_segment(make_segment(3, terminated=True))]), tmp_path / "x.pt")
    (segment,) = unpack_segments(torch.load(tmp_path / "x.pt", weights_only=True))
    assert same_segment(segment, check_segment(make_segment(3, terminated=True)))


def test_checking_gives_float32_and_shared_strings():
    observations = tuple(o._replace(look="".join(["a ", "hut"])) for o in make_segment().observations)
    segment = check_segment(make_segment(observations=observations, root_values=np.arange(3)))
    assert segment.root_values.dtype == np.float32
    assert segment.observations == observations
    assert segment.observations[0].look is segment.observations[1].look


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": np.zeros(2)}, "rewards has length 2, it must be 3"),
        ({"vectors": np.zeros((3, 3))}, "vectors has length 3, it must be 4"),
        ({"actions": ("east", "fly", "east")}, "played 'fly', which is not among"),
        ({"visit_probs": (np.ones(2),) * 3}, "4 valid actions but 2 probabilities"),
        ({"prior_logprobs": (np.zeros(0),) * 3}, "4 valid actions but 0 probabilities"),
        ({"returns": np.zeros(1)}, "returns has length 1"),
        ({"truncated": True}, "must carry its returns"),
        ({"actions": ()}, "has 0 steps"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        check_segment(replace(make_segment(3), **changes))
