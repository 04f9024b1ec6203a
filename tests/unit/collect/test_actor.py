import io
import itertools
import logging
import os
import signal
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from toy_games import CorridorSpec

from priorzero.collect.actor import Actor, CollectConfig
from priorzero.collect.episode import Episode
from priorzero.collect.novelty import NoveltyConfig, Plan
from priorzero.envs.vector import VectorEnv
from priorzero.types import Segment, Turn

NONE, NEW = (
    NoveltyConfig(
        weight=weight,
        try_share=0.0,
        return_share=0.0,
        return_policy="own",
        return_try_share=0.5,
        imitate_share=0.5,
        imitate_first=0,
        cross_share=0.0,
        carry_share=0.5,
        rare_place_share=0.0,
        count_passing=False,
        of=("look",),
    )
    for weight in (0.0, 0.5)
)
GAMES = (CorridorSpec(3), CorridorSpec(4))


def collect_config(**changes) -> CollectConfig:
    settings = {"num_envs": 2, "groups": 1, "policy": "random", "segment_steps": 3}
    return CollectConfig(**(settings | {"history_steps": 2, "gamma": 0.9, "seed": 0, "novelty": NONE} | changes))


@pytest.fixture(scope="module")
def four() -> Iterator[VectorEnv]:
    with VectorEnv(4, timeout_s=20, reset_timeout_s=30) as vector:
        yield vector


def saved(state: dict) -> dict:
    """What a checkpoint file makes of it."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def same(a: Segment, b: Segment) -> bool:
    arrays = ("vectors", "rewards", "intrinsic", "root_values", "returns")
    for name in arrays:
        left, right = getattr(a, name), getattr(b, name)
        if (left is None) != (right is None) or (left is not None and not np.array_equal(left, right)):
            return False
    for left, right in zip((*a.visit_probs, *a.prior_logprobs), (*b.visit_probs, *b.prior_logprobs), strict=True):
        if not np.array_equal(left, right):
            return False
    empty = dict.fromkeys((*arrays, "visit_probs", "prior_logprobs"))
    return replace(a, **empty) == replace(b, **empty)


@pytest.mark.parametrize(("groups", "steps"), [(1, 80), (2, 39)])  # of 2 groups the second lands one tick later
@pytest.mark.parametrize("policy", ["random", "wm_prior"])
def test_every_step_is_in_exactly_one_segment(policy, groups, steps, envs, make_player):
    actor = Actor(envs, GAMES, make_player(), collect_config(policy=policy, groups=groups))
    check_segments(actor, [segment for _ in range(40) for segment in actor.tick()])
    assert actor.env_steps == steps


def test_new_states_are_rewarded_once_an_episode(envs, make_player):
    plain, curious = (
        Actor(envs, GAMES, make_player(), collect_config(segment_steps=50, novelty=novelty)) for novelty in (NONE, NEW)
    )
    segments = [[segment for _ in range(40) for segment in actor.tick()] for actor in (plain, curious)]
    assert all(np.array_equal(a.rewards, b.rewards) and not a.intrinsic.any() for a, b in zip(*segments, strict=True))
    paid = defaultdict(list)
    for segment in segments[1]:
        looks = [observation.look for observation in segment.observations]
        for t, value in enumerate(segment.intrinsic):
            assert (value > 0) == (looks[t + 1] not in looks[: t + 1])
            if value:
                paid[looks[t + 1]].append((0.5 / value) ** 2)  # the how manieth time
    assert 4 <= len(paid) <= len(curious.novelty) <= 7  # rooms: 3 and 4
    for times in paid.values():  # episodes that go on at the same time, or still do, share the counting
        np.testing.assert_allclose(times, np.round(times), rtol=1e-5)
        assert len(set(np.round(times))) == len(times) >= max(times) - 2


def check_segments(actor: Actor, segments: list[Segment]) -> None:
    """All steps that were played are in the segments, once and in order, or wait for theirs."""
    episodes = defaultdict(list)
    for segment in segments:
        episodes[segment.episode].append(segment)
    assert sum(map(len, segments)) + actor.pending == actor.env_steps
    done = [segments for segments in episodes.values() if segments[-1].terminated or segments[-1].truncated]
    assert len(done) == actor.finished == len(actor.results)
    for segments in episodes.values():
        starts = [segment.start for segment in segments]
        assert starts == [sum(map(len, segments[:i])) for i in range(len(segments))]
        assert all(len(segment) <= 3 for segment in segments)
        for before, after in itertools.pairwise(segments):
            assert before.observations[-1] == after.observations[0]
            assert before.valid_actions[-1] == after.valid_actions[0]
            assert before.returns is None
    for segments in done:
        assert segments[-1].returns is not None
        assert sum(map(len, segments)) <= 8


def test_games_take_turns_and_seeds_differ(envs, make_player):
    actor = Actor(envs, GAMES, make_player(), collect_config())
    while actor.finished < 6:
        actor.tick()
    games = {result.game for result in actor.results}
    seeds = [result.seed for result in actor.results]
    assert games == {"corridor-3", "corridor-4"}
    assert len(set(seeds)) == len(seeds)


def test_segments_carry_the_versions_that_played(envs, make_player):
    actor = Actor(envs, GAMES, make_player(), collect_config(segment_steps=1))
    assert {(s.world_model_version, s.policy_version) for s in actor.tick()} == {(0, 0)}
    actor.versions = (4, 2)
    assert {(s.world_model_version, s.policy_version) for s in actor.tick()} == {(4, 2)}


@pytest.mark.parametrize("policy", ["random", "wm"])
def test_episodes_go_back_to_where_others_have_been(policy, envs, make_player):
    """They take the same actions and come to the same states; these steps count, and only the best are learned from."""
    novelty = replace(NEW, return_share=1.0)
    actor = Actor(envs, GAMES, make_player(), collect_config(segment_steps=50, policy=policy, novelty=novelty))
    plans: dict[int, Plan | None] = {}
    segments, steps = [], 0
    for _ in range(60):
        segments += actor.tick()
        steps += 2
        plans |= {episode.number: episode.plan for episode in actor._episodes}
    planned = {number for number, plan in plans.items() if plan}  # a way without its detours may be empty
    ways = {number: plan.actions if plan else () for number, plan in plans.items()}
    assert actor.env_steps == steps
    assert actor.lost_ways == 0  # a way that was gone before is not lost, and a trial leaves out what is not valid
    assert [ways[n] for n in (0, 1)] == [(), ()]  # nothing was known
    assert any(len(way) > 1 for way in ways.values())
    firsts = [segment for segment in segments if segment.start == 0]
    assert len(firsts) > 4
    kinds = set()
    for segment in firsts:
        plan = plans[segment.episode]
        kind = plan.kind if plan else "none"
        kinds.add(kind)
        n = len(ways[segment.episode])
        if kind != "return":  # these leave out what is not valid, the last time unseen here
            n = min(n, len(segment.actions) - 1)
        assert segment.actions[:n] == ways[segment.episode][:n]
        learned = [bool(len(probs)) for probs in segment.visit_probs]
        assert learned[:n] == [kind == "imitate"] * n
        assert all(learned[n:]) or kind == "trial"
        for t in range(n if kind == "imitate" else 0):
            own = [action == segment.actions[t] for action in segment.valid_actions[t]]
            np.testing.assert_array_equal(segment.visit_probs[t], own)
        assert kind == "trial" or not segment.intrinsic[:n].any()
    assert kinds >= {"none", "imitate", "trial"}
    alone = [s.episode for s in segments if s.episode not in planned and s.returns is not None]
    assert (len(actor.results), actor.finished > len(alone)) == (len(alone), True)


@pytest.mark.parametrize("policy", ["random", "prior"])
def test_whoever_learns_from_a_step_knows_its_actions(policy, envs, make_player):
    """Also those that nobody has taken, and where nobody has searched."""
    actor = Actor(envs, GAMES, make_player(), collect_config(policy=policy))
    for segment in (segment for _ in range(12) for segment in actor.tick()):
        for actions in segment.valid_actions:
            actor.player.vocabulary.ids(actions)


def test_who_went_back_may_go_on_at_random(envs, make_player):
    """The policy is not asked there, and learns no policy from it."""
    novelty = replace(NEW, return_share=1.0, imitate_share=0.0, return_policy="random", return_try_share=0.0)
    player = make_player()
    actor = Actor(envs, GAMES, player, collect_config(segment_steps=50, policy="wm", novelty=novelty))
    ways: dict[int, int] = {}
    asked: list[Episode] = []
    decide = player.decide
    player.decide = lambda policy, episodes, explore: (
        asked.extend(episodes) or decide(policy, episodes, explore=explore)
    )
    segments = []
    for _ in range(40):
        segments += actor.tick()
        ways |= {e.number: len(e.plan.actions) if e.plan else -1 for e in actor._episodes}
    assert {episode.number for episode in asked} == {number for number, n in ways.items() if n < 0} != set()
    firsts = [segment for segment in segments if segment.start == 0 and ways[segment.episode] >= 0]
    assert firsts
    assert not any(len(probs) for segment in firsts for probs in segment.visit_probs)
    later = [segment.actions[ways[segment.episode] :] for segment in firsts]
    assert len({actions[:1] for actions in later if actions}) > 1


def test_a_trial_leaves_out_what_is_not_valid(envs, make_player):
    actor = Actor(envs, GAMES, make_player(), collect_config(segment_steps=50, novelty=replace(NEW, return_share=1.0)))
    actor.tick()
    episode = actor._episodes[0]
    valid = episode.step.valid_actions[0]
    episode.plan = Plan(episode.seed, (*episode.actions, "sing", "dance", valid, "sing"), "trial")
    for _ in range(2):
        actor.tick()
    assert episode.actions[1] == valid
    assert (actor.lost_ways, episode.goes_back, len(episode.turns)) == (0, True, 3)
    assert episode.plan.actions == (*episode.actions[:2],)  # nothing is left of it, and nothing was lost


def test_a_way_that_is_lost_is_left(envs, make_player):
    actor = Actor(envs, GAMES, make_player(), collect_config(segment_steps=50, novelty=replace(NEW, return_share=1.0)))
    actor.tick()
    episode = actor._episodes[0]
    episode.plan = Plan(episode.seed, (*episode.actions, "sing"), "return")
    assert episode.goes_back
    for _ in range(2):
        actor.tick()
    assert (actor.lost_ways, episode.goes_back, len(episode.turns)) == (1, False, 3)
    assert all(len(decision.visit_probs) for decision in episode.decisions)  # it was decided for as ever


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    ("policy", "ticks"),
    [
        ("prior", 0),
        ("random", 4),
        ("errands", 4),
        ("wm_prior", 4),
        ("reuse", 4),
        ("prior", 11),
        ("wm_prior", 11),
        ("reuse", 11),
    ],
)
def test_goes_on_from_its_state(policy, ticks, groups, envs, make_player):
    """Running episodes are played again; what comes after is what would have come."""
    search = replace(make_player().search_config, reuse=policy == "reuse")
    make_player = partial(make_player, search=search)
    wanders = {"wm_prior": "random", "errands": "errands"}.get(policy, "own")
    policy = {"reuse": "wm", "errands": "random"}.get(policy, policy)
    novelty = replace(
        NEW,
        try_share=0.3,
        return_share=0.5,
        return_policy=wanders,
        imitate_share=0.3,
        cross_share=0.3,
        rare_place_share=0.5,
    )
    player, config = make_player(), collect_config(policy=policy, groups=groups, novelty=novelty)
    actor = Actor(envs, GAMES, player, config)
    for _ in range(ticks):
        actor.tick()
    if wanders == "errands":
        assert any(actor.tick() and any(episode.errand for episode in actor._episodes) for _ in range(300))
    state, vocabulary = saved(actor.state_dict()), player.vocabulary.state_dict()
    expected = [segment for _ in range(10) for segment in actor.tick()]
    other = make_player(seed=1)
    other.vocabulary.load_state_dict(vocabulary)
    resumed = Actor(envs, GAMES, other, config)
    resumed.load_state_dict(state)
    found = [segment for _ in range(10) for segment in resumed.tick()]
    assert len(found) == len(expected)
    assert all(map(same, expected, found))
    assert (resumed.env_steps, resumed.started, resumed.finished) == (actor.env_steps, actor.started, actor.finished)
    assert list(resumed.results) == list(actor.results)


def test_one_group_plays_while_the_other_is_decided_for(four, make_player, monkeypatch):
    player = make_player()
    actor = Actor(four, GAMES, player, collect_config(num_envs=4, groups=2, policy="wm"))
    seen, decide = [], player.decide

    def spy(policy, episodes, *, explore):
        slots = [i for i, running in enumerate(actor._episodes) if any(running is e for e in episodes)]
        seen.append((slots, sorted(four._waiting)))
        return decide(policy, episodes, explore=explore)

    monkeypatch.setattr(player, "decide", spy)
    for _ in range(5):
        actor.tick()
    assert seen == [([0, 1], []), ([2, 3], [0, 1]), ([0, 1], [2, 3]), ([2, 3], [0, 1]), ([0, 1], [2, 3])]
    assert actor.env_steps == 8


def test_groups_repeat_with_their_seed_and_need_not_be_equal(four, make_player):
    def collect(groups: int) -> list[Segment]:
        actor = Actor(four, GAMES, make_player(), collect_config(num_envs=4, groups=groups, policy="wm_prior"))
        segments = [segment for _ in range(12 * groups) for segment in actor.tick()]
        check_segments(actor, segments)
        return segments

    for groups in (2, 3):
        first, second = collect(groups), collect(groups)
        assert len(first) == len(second) > 10
        assert all(map(same, first, second))


@pytest.mark.parametrize("groups", [1, 2])
def test_a_lost_worker_ends_one_episode_and_no_step_is_lost(groups, four, make_player):
    actor = Actor(four, GAMES, make_player(), collect_config(num_envs=4, groups=groups))
    before, segments = four.faults["crash"], []
    for tick in range(12):
        if tick == 4:
            assert (3 in four._waiting) == (groups == 2)  # its action is being played if groups take turns
            os.kill(four._workers[3]._process.pid, signal.SIGKILL)
        segments += actor.tick()
    assert four.faults["crash"] == before + 1
    faults = [result for result in actor.results if result.fault]
    assert [(result.fault, result.terminated) for result in faults] == [
        ("crash: the process was killed by SIGKILL", False)
    ]
    check_segments(actor, segments)


def test_another_number_of_groups_begins_with_the_first(four, make_player):
    actor = Actor(four, GAMES, make_player(), collect_config(num_envs=4, groups=2))
    before = [segment for _ in range(3) for segment in actor.tick()]
    other = Actor(four, GAMES, make_player(), collect_config(num_envs=4, groups=4))
    other.load_state_dict(saved(actor.state_dict()))
    check_segments(other, [*before, *(segment for _ in range(40) for segment in other.tick())])


@pytest.mark.parametrize("groups", [0, 3])
def test_groups_are_within_the_number_of_games(groups):
    with pytest.raises(ValueError, match=rf"collector.groups is {groups}: .* up to collector.num_envs \(2\)"):
        collect_config(groups=groups)


def test_games_that_are_gone_drop_the_running_episodes(envs, make_player, caplog):
    actor = Actor(envs, GAMES, make_player(), collect_config())
    actor.tick()
    other = Actor(envs, [CorridorSpec(5)], make_player(), collect_config())
    with caplog.at_level(logging.WARNING):
        other.load_state_dict(saved(actor.state_dict()))
    assert "'corridor-3', 'corridor-4'] are dropped" in caplog.text
    other.tick()
    assert other.env_steps == 4


def test_a_game_that_plays_otherwise_is_noticed(envs, make_player, caplog):
    actor = Actor(envs, GAMES, make_player(), collect_config())
    actor.tick()
    state = saved(actor.state_dict())
    state["episodes"][0]["feedback"] = "something else"
    with caplog.at_level(logging.WARNING):
        Actor(envs, GAMES, make_player(), collect_config()).load_state_dict(state)
    assert "did not play back" in caplog.text


def _to_the_end(actor: Actor, slot: int) -> list[Turn]:
    """Let the episode of this slot end; its turns."""
    episode = actor._episodes[slot]
    while not episode.step.done:
        actor.tick()
    return episode.turns


def test_an_action_that_was_on_its_way_is_decided_for_again_where_others_are_valid(four, make_player):
    config = collect_config(num_envs=4, groups=2)
    actor = Actor(four, GAMES, make_player(), config)
    for _ in range(3):
        actor.tick()
    state = saved(actor.state_dict())
    changed, *kept = sorted(state["sent"])
    assert kept
    state["sent"][changed]["valid"][-1] = "fly"
    resumed = Actor(four, GAMES, make_player(), config)
    resumed.load_state_dict(state)
    assert sorted(resumed._sent) == kept
    check_segments(resumed, [segment for _ in range(40) for segment in resumed.tick()])


@pytest.mark.parametrize("change", ["another action", "another list", "it ends"])
def test_a_game_that_offers_other_actions_begins_anew(change, envs, make_player, caplog):
    """The run goes on: only the episode is lost, the other one plays on."""
    config = collect_config()
    actor = Actor(envs, GAMES, make_player(), config)
    for _ in range(2):
        assert not actor.tick()
    state = saved(actor.state_dict())
    first, second = state["episodes"]
    if change == "another action":
        first["actions"][1] = "fly"
    elif change == "another list":
        first["valid"][1][-1] = "fly"  # as many as before
    else:
        end = [turn.action for turn in _to_the_end(actor, 0)]
        first |= {"actions": end, "start": len(end), "valid": [], "decisions": [], "intrinsic": []}
    resumed = Actor(envs, GAMES, make_player(), config)
    with caplog.at_level(logging.WARNING):
        resumed.load_state_dict(state)
    assert f"game {first['game']}, seed {first['seed']}, does not offer the actions any more" in caplog.text
    fresh, kept = resumed._episodes
    assert (fresh.number, fresh.turns, kept.actions) == (2, [], second["actions"])
    segments = [segment for _ in range(30) for segment in resumed.tick()]
    assert sum(map(len, segments)) + resumed.pending == resumed.env_steps - 2
