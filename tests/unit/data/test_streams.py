import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from segment_factory import GAMMA, make_segment, make_vocabulary
from test_collate import Words

from priorzero.data.limiter import RateLimiter
from priorzero.data.reanalysis import FreshPolicies
from priorzero.data.replay import Replay
from priorzero.data.streams import PolicyDataConfig, PolicyStream, Source, WorldModelDataConfig, WorldModelStream
from priorzero.policy.packing import pack


def make_source(episodes: int = 4, *, limited=False, stall_s=0.2, samples_per_insert=1.0, min_size=1) -> Source:
    replay = Replay(1000, prioritised=True, alpha=0.6, beta=0.4, gamma=GAMMA, seed=0)
    limiter = RateLimiter(samples_per_insert, min_size, tolerance=100.0)
    source = Source(replay=replay, limiter=limiter, limited=limited, stall_s=stall_s, stop=threading.Event())
    for episode in range(episodes):
        replay.add(make_segment(5, episode=episode, terminated=True))
        limiter.insert(5)
    return source


def make_world_model_stream(source: Source, *, max_known: int | None = None) -> WorldModelStream:
    config = WorldModelDataConfig(batch_size=4, unroll=2, bootstrap=1, max_known=max_known)
    vocabulary = make_vocabulary(make_segment())
    vocabulary.add("zork", [f"say {n}" for n in range(50)])
    return WorldModelStream(source, vocabulary, config, seed=3)


def step_numbers(segments, steps) -> np.ndarray:
    """Stands for a world model: the advantage is the step itself."""
    return np.array(steps, np.float32)


def make_policy_stream(source: Source, *, advantages=step_numbers, reduce=None, **changes) -> PolicyStream:
    config = {
        "batch_size": 6,
        "micro_batch_size": 2,
        "newest_steps": 5,
        "newest_share": 0.5,
        "advantage": "world_model",
        "normalisation": "raw",
        "decay": 0.5,
    }
    return PolicyStream(
        source,
        PolicyDataConfig(**(config | changes)),
        prompts=Words(),
        pack=pack,
        pad_id=0,
        advantages=advantages,
        seed=4,
        reduce=reduce,
    )


def same_batch(a, b) -> bool:
    values = [(getattr(a, name), getattr(b, name)) for name in a.__dataclass_fields__]
    return all(torch.equal(x, y) if torch.is_tensor(x) else same_batch(x, y) for x, y in values)


def copy_of(replay: Replay) -> Replay:
    copy = Replay(1000, prioritised=True, alpha=0.6, beta=0.4, gamma=GAMMA, seed=77)
    copy.load_state_dict(replay.state_dict())
    return copy


# -------------------------------------------------------------------------------------------------------- world model


def test_world_model_windows_count_as_samples_where_limited():
    limited = make_source(limited=True)
    batch = next(make_world_model_stream(limited))
    assert batch.observation.shape == (4, 4, 3)
    assert limited.limiter.sampled == 4
    free = make_source()
    next(make_world_model_stream(free))
    assert free.limiter.sampled == 0


def test_priorities_go_back_through_the_index_of_the_batch():
    source = make_source(1)
    batch = next(make_world_model_stream(source))
    source.replay.update_priorities(batch.index.numpy(), np.full(4, 8.0))
    assert {m for m in source.replay.state_dict()["mass"].tolist() if m != 1.0} == {8.0**0.6}


def test_fresh_policies_reach_the_batch_and_go_on_exactly():
    def search(segments, steps) -> list[np.ndarray]:
        return [np.array([0, 1, 0, 0], np.float32)] * len(steps)

    def stream(source: Source, ratio: float) -> WorldModelStream:
        config = WorldModelDataConfig(batch_size=4, unroll=2, bootstrap=1, max_known=None)
        fresh = FreshPolicies(source.replay, search, ratio=ratio, unroll=2)
        return WorldModelStream(source, make_vocabulary(make_segment()), config, seed=3, fresh=fresh)

    source = make_source()
    whole = stream(source, 0.375)  # 1 or 2 of 4 windows
    sure = [(next(whole).policy[:, 0].max(1).values == 1).tolist() for _ in range(2)]
    assert sure == [[True, False, False, False], [True, True, False, False]]
    resumed = stream(replace(source, replay=copy_of(source.replay)), 0.375)
    resumed.load_state_dict(whole.state_dict())
    for _ in range(3):
        assert same_batch(next(whole), next(resumed))
    assert resumed.source.replay.reanalysed == source.replay.reanalysed > 0


def test_world_model_stream_goes_on_exactly():
    source = make_source()
    stream = make_world_model_stream(source, max_known=3)
    next(stream)
    resumed = make_world_model_stream(replace(source, replay=copy_of(source.replay)), max_known=3)
    resumed.load_state_dict(stream.state_dict())
    assert resumed.batches == 1
    for _ in range(3):
        assert same_batch(next(stream), next(resumed))


# ------------------------------------------------------------------------------------------------------------ waiting


@pytest.mark.parametrize("limited", [True, False])
def test_a_stream_waits_for_the_first_segments(limited):
    source = make_source(0, limited=limited, stall_s=20.0, min_size=5)
    result = []
    thread = threading.Thread(target=lambda: result.append(next(make_world_model_stream(source))), daemon=True)
    thread.start()
    source.replay.add(make_segment(5))
    assert not result
    source.limiter.insert(5)
    thread.join(20)
    assert len(result) == 1


def test_a_stalled_collector_is_an_error():
    with pytest.raises(RuntimeError, match=r"no batch for 0\.2 s; 0 steps inserted"):
        next(make_world_model_stream(make_source(0, min_size=5)))


def test_a_failed_collector_is_an_error_with_its_cause():
    source = make_source()
    source.limiter.fail(ValueError("env crashed"))
    for stream in (make_world_model_stream(source), make_policy_stream(source)):
        with pytest.raises(RuntimeError) as caught:
            next(stream)
        assert repr(caught.value.__cause__) == "ValueError('env crashed')"


def test_a_stop_ends_the_stream():
    source = make_source(0, stall_s=20.0)
    source.stop.set()
    assert list(make_world_model_stream(source)) == []
    undecided = make_source(0, stall_s=20.0)
    undecided.limiter.insert(1)
    threading.Timer(0.05, undecided.stop.set).start()
    assert list(make_policy_stream(undecided)) == []


# ------------------------------------------------------------------------------------------------------------- policy


def test_policy_batches_are_drawn_whole_and_handed_out_in_parts():
    calls = []

    def advantages(segments, steps):
        calls.append((segments, steps))
        return step_numbers(segments, steps)

    source = make_source(limited=True)
    stream = make_policy_stream(source, advantages=advantages)
    batches = [next(stream) for _ in range(6)]
    assert len(calls) == 2
    assert source.limiter.sampled == 12
    assert all(len(b.action) == 2 for b in batches)
    handed_out = torch.cat([b.advantage for b in batches[:3]]).tolist()
    assert sorted(handed_out) == sorted(calls[0][1])
    assert torch.cat([b.action for b in batches[:3]]).tolist() == [t % 4 for t in map(int, handed_out)]


def test_the_newest_have_their_share():
    seen = []
    stream = make_policy_stream(make_source(20), advantages=lambda s, t: seen.extend(x.episode for x in s) or t)
    for _ in range(3 * 50):
        next(stream)
    assert seen.count(19) / len(seen) == pytest.approx(0.5 + 0.5 / 20, abs=0.06)
    assert len(set(seen)) == 20


def test_without_a_usable_newest_step_the_rest_fills_up():
    source = make_source(1)
    source.replay.add(make_segment(5, episode=9, valid=("wait",), terminated=True))
    assert len(next(make_policy_stream(source, newest_share=1.0)).action) == 2


def test_returns_less_the_mean_of_the_game():
    source = make_source(0)
    source.replay.add(make_segment(1, rewards=[8.0], terminated=True))
    source.replay.add(make_segment(1, episode=1, rewards=[100.0]))  # its episode goes on: no return yet
    source.limiter.insert(2)
    stream = make_policy_stream(source, advantages=None, advantage="returns")
    assert next(stream).advantage.tolist() == [0.0, 0.0]
    assert stream.state_dict()["baseline"] == {"zork": 8.0}


def test_returns_that_never_come_are_an_error():
    source = make_source(0)
    source.replay.add(make_segment(3))
    source.limiter.insert(3)
    with pytest.raises(RuntimeError, match="hold no step with two valid actions and visits and a known return"):
        next(make_policy_stream(source, advantages=None, advantage="returns"))


def test_normalisation_covers_the_whole_draw():
    sizes = []
    stream = make_policy_stream(
        make_source(), normalisation="batch", reduce=lambda sums: sizes.append(int(sums[0])) or sums
    )
    advantage = torch.cat([next(stream).advantage for _ in range(3)])
    assert sizes == [6]
    assert advantage.mean().item() == pytest.approx(0.0, abs=1e-6)
    assert advantage.std(unbiased=False).item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("changes", [{"normalisation": "running"}, {"advantage": "returns", "advantages": None}])
@pytest.mark.parametrize("handed_out", [1, 3])
def test_policy_stream_goes_on_exactly(changes, handed_out, tmp_path):
    source = make_source()
    stream = make_policy_stream(source, **changes)
    for _ in range(handed_out):
        next(stream)
    torch.save(stream.state_dict(), tmp_path / "state.pt")
    resumed = make_policy_stream(replace(source, replay=copy_of(source.replay)), **changes)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for _ in range(7):
        assert same_batch(next(stream), next(resumed))


def test_evicted_steps_are_passed_over_after_a_restart():
    source = make_source(2)
    stream = make_policy_stream(source, newest_share=0.0)
    next(stream)
    empty = Replay(1000, prioritised=False, alpha=0.6, beta=0.4, gamma=GAMMA, seed=0)
    state = source.replay.state_dict() | {"next_serial": 50}
    empty.load_state_dict(state | {"serials": state["serials"] + 40})  # same steps under other numbers
    resumed = make_policy_stream(replace(source, replay=empty))
    resumed.load_state_dict(stream.state_dict())
    assert len(next(resumed).action) == 2


def test_configurations_are_checked():
    with pytest.raises(ValueError, match="multiple of micro_batch_size 4"):
        make_policy_stream(make_source(), micro_batch_size=4)
    with pytest.raises(ValueError, match="newest_share"):
        make_policy_stream(make_source(), newest_share=1.5)
    with pytest.raises(ValueError, match="unknown advantage source 'critic'"):
        make_policy_stream(make_source(), advantage="critic")
    with pytest.raises(ValueError, match="needs a world model"):
        make_policy_stream(make_source(), advantages=None)
