"""Small segments for tests: hand-made ones, and arbitrary ones from hypothesis."""

from __future__ import annotations

import zlib
from dataclasses import replace

import numpy as np
from hypothesis import strategies as st

from priorzero.rl.returns import discounted_returns
from priorzero.text.vocabulary import ActionVocabulary
from priorzero.types import Observation, Segment, Turn

ACTIONS = ("east", "north", "take lamp", "west")
GAMMA = 0.5
WIDTH = 3


def make_segment(
    steps: int = 3,
    *,
    episode: int = 0,
    start: int = 0,
    terminated: bool = False,
    truncated: bool = False,
    game: str = "zork",
    valid: tuple[str, ...] = ACTIONS,
    rewards: list[float] | None = None,
    **changes,
) -> Segment:
    """Step ``t`` (counted in the episode) plays ``valid[t % len(valid)]`` and has the vector [episode, t, 1]."""
    number = range(start, start + steps)
    done = terminated or truncated
    reward = np.array([float(t) for t in number] if rewards is None else rewards, np.float32)
    segment = Segment(
        game=game,
        goal="win",
        episode=episode,
        start=start,
        history=(Turn(Observation("before"), "look", 0.0),) if start else (),
        observations=tuple(Observation(f"room {t}", "a room", "a lamp") for t in range(start, start + steps + 1)),
        vectors=np.array([[episode, t, 1] for t in range(start, start + steps + 1)], np.float32),
        valid_actions=(valid,) * steps + (() if done else valid,),
        actions=tuple(valid[t % len(valid)] for t in number),
        rewards=reward,
        intrinsic=np.zeros(steps, np.float32),
        visit_probs=tuple(np.full(len(valid), 1 / len(valid), np.float32) for _ in number),
        root_values=np.zeros(steps, np.float32),
        prior_logprobs=(None,) * steps,
        terminated=terminated,
        truncated=truncated,
        world_model_version=1,
        policy_version=2,
        returns=discounted_returns(reward, GAMMA) if done else None,
    )
    return replace(segment, **changes)


def encode(texts) -> np.ndarray:
    """Vectors [n, 3] that depend on nothing but the text."""
    return np.array([[zlib.crc32(t.encode()) % 97, len(t), 1] for t in texts], np.float32)


def make_vocabulary(*segments: Segment) -> ActionVocabulary:
    vocabulary = ActionVocabulary(encode, WIDTH)
    for segment in segments:
        for actions in segment.valid_actions:
            vocabulary.add(segment.game, actions)
    return vocabulary


def same_segment(a: Segment, b: Segment) -> bool:
    """Equal in every bit."""

    def same(x, y) -> bool:
        if isinstance(x, np.ndarray):
            return isinstance(y, np.ndarray) and (x.dtype, x.shape) == (y.dtype, y.shape) and x.tobytes() == y.tobytes()
        if isinstance(x, tuple):
            return type(x) is type(y) and len(x) == len(y) and all(map(same, x, y))
        return type(x) is type(y) and x == y

    return all(same(getattr(a, name), getattr(b, name)) for name in Segment.__dataclass_fields__)


TEXTS = st.text(max_size=6)
FLOATS = st.floats(-1e6, 1e6, width=32)
OBSERVATIONS = st.builds(Observation, TEXTS, TEXTS, TEXTS)
TURNS = st.builds(Turn, OBSERVATIONS, TEXTS, st.floats(allow_nan=False))


def arrays(size: int, elements=FLOATS):
    return st.lists(elements, min_size=size, max_size=size).map(lambda x: np.array(x, np.float32))


@st.composite
def segments(draw, episode: int = 0) -> Segment:
    """Any segment that ``check_segment`` accepts, alone in its episode."""
    steps = draw(st.integers(1, 4))
    done = draw(st.booleans())
    valid = [tuple(sorted(draw(st.sets(TEXTS, min_size=1, max_size=3)))) for _ in range(steps)]
    probs = st.floats(0, 1, width=32)
    visits = [draw(st.sampled_from([0, len(actions)]).flatmap(lambda n: arrays(n, probs))) for actions in valid]
    return Segment(
        game=draw(TEXTS),
        goal=draw(TEXTS),
        episode=episode,
        start=draw(st.integers(0, 1000)),
        history=tuple(draw(st.lists(TURNS, max_size=3))),
        observations=tuple(draw(st.lists(OBSERVATIONS, min_size=steps + 1, max_size=steps + 1))),
        vectors=draw(arrays((steps + 1) * WIDTH)).reshape(steps + 1, WIDTH),
        valid_actions=(*valid, () if done else ("wait",)),
        actions=tuple(draw(st.sampled_from(actions)) for actions in valid),
        rewards=draw(arrays(steps)),
        intrinsic=draw(arrays(steps)),
        visit_probs=tuple(visits),
        root_values=draw(arrays(steps)),
        prior_logprobs=tuple(draw(st.none() | arrays(len(actions))) for actions in valid),
        terminated=done and draw(st.booleans()),
        truncated=done,
        world_model_version=draw(st.integers(0, 9)),
        policy_version=draw(st.integers(0, 9)),
        returns=draw(arrays(steps)) if done or draw(st.booleans()) else None,
    )
