import numpy as np
import pytest
from toy_games import CorridorSpec

from priorzero.collect.episode import Decision, Episode, decision_from_state
from priorzero.collect.novelty import Plan
from priorzero.types import Observation, Step, Turn

VALID = ("east", "wait")


def step(t: int, reward: float = 0.0, terminated: bool = False, truncated: bool = False) -> Step:
    valid = () if terminated or truncated else VALID
    return Step(Observation(f"seen {t}"), reward, terminated, truncated, valid, float(t), 9.0, "corridor-3", goal="win")


def decision(index: int) -> Decision:
    return Decision(
        index, np.array([0.25, 0.75], np.float32), 0.1 * index, np.log(np.array([0.5, 0.5], np.float32)),
        world_model_probs=np.ones(2), visits=np.ones(2), q=np.ones(2),
    )  # fmt: skip


def vector(t: int) -> np.ndarray:
    return np.array([t, 1], np.float32)


def play(steps: int, *, history_steps: int = 2, ends: dict | None = None) -> Episode:
    """Rewards are 1, 2, 3, ...; actions alternate."""
    episode = Episode(CorridorSpec(), 7, 5, step(0), vector(0), history_steps)
    for t in range(1, steps + 1):
        last = ends or {} if t == steps else {}
        episode.advance(decision(t % 2), t % 2, step(t, float(t), **last), vector(t))
    return episode


def cut(episode: Episode):
    return episode.cut(gamma=0.5, world_model_version=3, policy_version=4)


def test_a_whole_episode_is_one_segment():
    segment = cut(play(3, ends={"terminated": True}))
    assert (segment.game, segment.goal, segment.episode, segment.start) == ("corridor-3", "win", 5, 0)
    assert segment.actions == ("wait", "east", "wait")
    assert [o.feedback for o in segment.observations] == ["seen 0", "seen 1", "seen 2", "seen 3"]
    assert segment.valid_actions == (VALID, VALID, VALID, ())
    np.testing.assert_array_equal(segment.vectors, [[0, 1], [1, 1], [2, 1], [3, 1]])
    np.testing.assert_array_equal(segment.rewards, [1, 2, 3])
    np.testing.assert_allclose(segment.returns, [1 + 0.5 * 3.5, 2 + 0.5 * 3, 3])
    np.testing.assert_allclose(segment.root_values, [0.1, 0, 0.1])
    np.testing.assert_array_equal(np.stack(segment.visit_probs), [[0.25, 0.75]] * 3)
    assert (segment.terminated, segment.truncated) == (True, False)
    assert (segment.world_model_version, segment.policy_version) == (3, 4)
    assert segment.history == ()


@pytest.mark.parametrize(("plan", "passes"), [(None, [False] * 3), (("east",) * 3, [True, True, False])])
def test_an_episode_passes_by_what_lies_before_the_end_of_its_plan(plan: tuple[str, ...] | None, passes: list[bool]):
    episode = Episode(CorridorSpec(), 7, 5, step(0), vector(0), 2, plan=plan and Plan(7, plan, "trial"))
    found = []
    for t in range(3):
        found.append(episode.passes)
        episode.advance(decision(0), 0, step(t + 1), vector(t + 1))
    assert found == passes
    assert not episode.passes
    if plan is not None:
        lost = Episode(CorridorSpec(), 7, 5, step(0), vector(0), 2, plan=Plan(7, plan, "return"), lost=True)
        assert not lost.passes


def test_intrinsic_rewards_stand_beside_those_of_the_game():
    episode = play(1)
    episode.advance(decision(0), 0, step(2, 2.0, terminated=True), vector(2), 0.5)
    segment = cut(episode)
    assert (segment.rewards.tolist(), segment.intrinsic.tolist()) == ([1, 2], [0, 0.5])
    assert segment.learned_rewards.tolist() == [1, 2.5]
    np.testing.assert_allclose(segment.returns, [1 + 0.5 * 2.5, 2.5])
    assert [turn.reward for turn in episode.turns] == [1, 2]


def test_a_long_episode_is_cut_where_asked():
    episode = play(3)
    first = cut(episode)
    assert (episode.pending, episode.start) == (0, 3)
    episode.advance(decision(1), 1, step(4, 4.0), vector(4))
    episode.advance(decision(0), 0, step(5, 5.0, truncated=True), vector(5))
    assert episode.pending == 2
    second = cut(episode)
    assert first.returns is None
    assert (first.terminated, first.truncated) == (False, False)
    assert first.valid_actions[-1] == VALID  # the state goes on
    assert (second.start, second.actions) == (3, ("wait", "east"))
    assert second.history == tuple(episode.turns[1:3])
    assert second.history[-1] == Turn(Observation("seen 2"), "wait", 3.0)
    assert (second.terminated, second.truncated) == (False, True)
    np.testing.assert_allclose(second.returns, [4 + 0.5 * 5, 5])
    np.testing.assert_array_equal(second.vectors, [[3, 1], [4, 1], [5, 1]])


@pytest.mark.parametrize(
    ("history_steps", "shown"),
    [(0, []), (1, ["seen 2"]), (2, ["seen 1", "seen 2"]), (9, ["seen 0", "seen 1", "seen 2"])],
)
def test_a_situation_shows_the_last_turns(history_steps: int, shown: list[str]):
    situation = play(3, history_steps=history_steps).situation()
    assert situation.observation.feedback == "seen 3"
    assert situation.valid_actions == VALID
    assert situation.goal == "win"
    assert [turn.observation.feedback for turn in situation.history] == shown


def test_what_only_a_viewer_needs_is_not_kept():
    kept = play(1).decisions[0]
    assert kept.visits is None
    assert kept.q is None
    assert kept.world_model_probs is None


def test_the_result_of_an_episode():
    result = play(3, ends={"truncated": True}).result("wm")
    assert (result.game, result.seed, result.policy, result.score, result.steps) == ("corridor-3", 7, "wm", 3.0, 3)
    assert not result.terminated


def test_the_state_is_plain_and_decisions_come_back():
    episode = play(3)
    cut(episode)
    episode.advance(decision(1), 1, step(4), vector(4))
    state = episode.state_dict()
    assert state["actions"] == ["wait", "east", "wait", "wait"]
    assert (state["start"], state["number"], state["seed"], state["feedback"]) == (3, 5, 7, "seen 4")
    (back,) = map(decision_from_state, state["decisions"])
    assert (back.index, back.root_value) == (1, 0.1)
    np.testing.assert_array_equal(back.visit_probs, decision(1).visit_probs)
    np.testing.assert_array_equal(back.prior_logprobs, decision(1).prior_logprobs)
    unasked = decision_from_state(state["decisions"][0] | {"prior_logprobs": None})
    assert unasked.prior_logprobs is None
