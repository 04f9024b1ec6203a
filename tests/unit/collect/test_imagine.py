from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_games import CorridorSpec

from priorzero.collect.episode import Decision, Episode
from priorzero.collect.imagine import Scene, imagine, scene_of
from priorzero.types import Observation, Segment, Turn

CONTEXT = 3  # steps that the world model of these players looks at
SEEN = [Observation(f"seen {t}", f"room {t}", "nothing") for t in range(6)]
# Steps 2, 3 and 4 of an episode, with the two turns before them.
SEGMENT = Segment(
    game="corridor-3", goal="win", episode=0, start=2,
    history=tuple(Turn(SEEN[t], f"action {t}", 0.0) for t in range(2)),
    observations=tuple(SEEN[2:6]), vectors=np.zeros((4, 2), np.float32),
    valid_actions=(("east", "wait"),) * 4, actions=("action 2", "action 3", "action 4"),
    rewards=np.zeros(3, np.float32), intrinsic=np.zeros(3, np.float32),
    visit_probs=(np.array([0.5, 0.5], np.float32),) * 3,
    root_values=np.zeros(3, np.float32), prior_logprobs=(None,) * 3, terminated=False, truncated=False,
    world_model_version=0, policy_version=0,
)  # fmt: skip
SCENES = [
    Scene("corridor-3", tuple(SEEN[:1]), ()),
    Scene("corridor-3", tuple(SEEN[:3]), ("go east", "wait")),
    Scene("corridor-4", tuple(SEEN[:2]), ("wait",)),
]
ACTIONS = ["wait", "go east", "go west"]


@pytest.fixture
def make_lively(make_player):
    """Players whose world model has random heads: a new one says 0 of everything."""

    def make():
        player, random = make_player(), torch.Generator().manual_seed(0)
        state = player.planner.model.state_dict()
        player.planner.load_weights(
            {name: x + 0.3 * torch.randn(x.shape, generator=random) for name, x in state.items()}
        )
        return player

    return make


@pytest.mark.parametrize(
    ("step", "context", "first", "last"),
    [(0, 1, 2, 2), (0, 2, 1, 2), (0, 3, 0, 2), (0, 9, 0, 2), (2, 1, 4, 4), (2, 2, 3, 4), (2, 4, 1, 4), (2, 9, 0, 4)],
)
def test_a_scene_reaches_back_as_far_as_it_may(step, context, first, last):
    scene = scene_of(SEGMENT, step, context)
    assert scene.observations == tuple(SEEN[first : last + 1])
    assert scene.actions == tuple(f"action {t}" for t in range(first, last))
    assert scene.game == "corridor-3"


def test_an_episode_without_a_past():
    scene = scene_of(replace(SEGMENT, history=(), start=0), 0, CONTEXT)
    assert (scene.observations, scene.actions) == ((SEEN[2],), ())


def test_it_is_what_the_search_sees_after_one_step(envs, make_lively):
    """The same numbers as of a planner that is asked about the running episode."""
    player, spec = make_lively(), CorridorSpec(4)
    (step,) = envs.reset([0], [spec], [1])
    episode = Episode(spec, 1, 0, step, player.encode([step.observation])[0], history_steps=2)
    for action in ("wait", "go east", "go east"):
        if episode.pending == 2:
            context, valid = player._contexts([episode], CONTEXT), episode.step.valid_actions
        player.vocabulary.add(step.game, step.valid_actions)
        decision = Decision(step.valid_actions.index(action), np.ones(len(step.valid_actions), np.float32), 0.0)
        (step,) = envs.step([0], [action])
        vector = player.encode([step.observation])[0]
        episode.advance(decision, int(player.vocabulary.ids([action])[0]), step, vector)
    segment = episode.cut(gamma=0.9, world_model_version=0, policy_version=0)

    (found,) = imagine(player, [scene_of(segment, 2, CONTEXT)], ["go east"], CONTEXT)

    ids = player.vocabulary.ids(["go east"])
    known = np.zeros((1, len(player.vocabulary)), bool)
    known[0, player.vocabulary.members(segment.game)] = True
    player.planner.root(context, ids[:, None], known)
    expansion = player.planner.expand(1, np.zeros(1, np.int32), ids)
    assert valid == segment.valid_actions[2]
    assert found.reward == pytest.approx(float(expansion.reward[0]), abs=1e-6)
    assert found.value == pytest.approx(float(expansion.value[0]), abs=1e-6)
    likely = sorted(zip(-expansion.probs[0], expansion.actions[0].tolist(), strict=True))
    assert list(found.likely_actions) == [player.vocabulary.text(action) for _, action in likely if action >= 0]


def test_scenes_do_not_disturb_each_other(make_lively):
    player = make_lively()
    together = imagine(player, SCENES, ACTIONS, CONTEXT)
    for one, scene, action in zip(together, SCENES, ACTIONS, strict=True):
        (alone,) = imagine(player, [scene], [action], CONTEXT)
        assert alone.reward == pytest.approx(one.reward, abs=1e-5)
        assert alone.value == pytest.approx(one.value, abs=1e-5)
        assert alone.likely_actions == one.likely_actions
    assert len({round(one.value, 6) for one in together}) == 3


def test_action_and_past_matter(make_lively):
    player = make_lively()
    scenes = [SCENES[1], SCENES[1], replace(SCENES[1], actions=("go west", "wait"))]
    values = [one.value for one in imagine(player, scenes, ["wait", "go east", "wait"], CONTEXT)]
    assert len({round(value, 6) for value in values}) == 3


def test_likely_actions_are_those_of_the_game(make_player):
    player = make_player()
    player.vocabulary.add("another game", ["fly", "swim"])
    found = imagine(player, SCENES, ACTIONS, CONTEXT)
    assert set(found[0].likely_actions) == {"go east", "wait"}
    assert set(found[2].likely_actions) == {"go west", "wait"}


def test_nothing_to_imagine_and_nothing_to_imagine_with(make_player):
    assert imagine(make_player(), [], [], CONTEXT) == []
    with pytest.raises(ValueError, match="nothing can be imagined without a world model"):
        imagine(make_player(planner=None), SCENES, ACTIONS, CONTEXT)
    with pytest.raises(ValueError, match="shorter"):
        imagine(make_player(), SCENES, ACTIONS[:1], CONTEXT)
