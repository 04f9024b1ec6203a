import pytest
from hypothesis import given
from hypothesis import strategies as st

from priorzero.app.schedule import Round, ScheduleConfig, phases, rounds

WM, LLM = Round("world_model", True), Round("policy", False)


def schedule(mode: str, **changes) -> list[Round]:
    settings = {
        "rounds": 3, "policy_rounds": 2, "phase_rounds": 2, "wm_llm_ratio": 5, "world_model_updates": 10,
        "policy_updates": 2,
    }  # fmt: skip
    return rounds(ScheduleConfig(mode=mode, **(settings | changes)))


def test_every_mode():
    assert schedule("world_model") == [WM] * 3
    assert schedule("llm") == [Round("policy", True)] * 3
    assert schedule("parallel") == [WM, LLM] * 3
    assert schedule("sequential") == [WM, WM, WM, LLM, LLM]


def test_alternating_splits_the_updates():
    # a phase has 2 x 10 updates of the world model, so 20 / 5 = 4 of the language model: 2 rounds of 2
    assert schedule("alternating", rounds=4) == [WM, WM, LLM, LLM] * 2
    assert schedule("alternating", rounds=3) == [WM, WM, LLM, LLM, WM, LLM, LLM]
    assert schedule("alternating", wm_llm_ratio=10) == [WM, WM, LLM, WM, LLM]


@pytest.mark.parametrize(
    ("mode", "changes", "message"),
    [
        ("both", {}, "unknown mode 'both': use parallel, sequential, alternating, world_model or llm"),
        ("parallel", {"rounds": 0}, "at least one round, not 0: raise trainer.max_rounds"),
        ("sequential", {"policy_rounds": 0}, "set it to 1 or more"),
        (
            "alternating",
            {"wm_llm_ratio": 50},
            "leave the language model 0.40 updates a phase.*raise schedule.phase_rounds",
        ),
    ],
)
def test_what_cannot_be_is_refused(mode, changes, message):
    with pytest.raises(ValueError, match=message):
        schedule(mode, **changes)


@given(st.lists(st.sampled_from([WM, LLM]), max_size=20), st.integers(0, 20), st.integers(1, 5))
def test_phases_cover_what_is_left_in_order(whole, start, longest):
    found = list(phases(whole, start, longest))
    assert [r for phase in found for r in phase] == whole[start:]
    assert all(len(set(phase)) == 1 and len(phase) <= longest for phase in found)


def test_phases_are_as_long_as_they_may():
    assert [len(p) for p in phases([WM] * 5 + [LLM] * 2, 0, 3)] == [3, 2, 2]
    assert [len(p) for p in phases([WM] * 5 + [LLM] * 2, 4, 3)] == [1, 2]
