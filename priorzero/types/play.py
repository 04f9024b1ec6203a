"""What play is made of: observations, situations, searches, segments. Arrays are of numpy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

# ----------------------------------------------------------------------------------------------------------- games


class Observation(NamedTuple):
    """What the player sees. Parts that an environment does not give are empty strings."""

    feedback: str  # what the game printed after the last action
    look: str = ""  # the description of the room
    inventory: str = ""  # what the player carries
    score: str = ""  # as a status line states it, "Score: 35"


@dataclass(frozen=True, slots=True)
class Step:
    """What one environment answers to an action, or to a reset (then ``reward`` is 0)."""

    observation: Observation
    reward: float  # score delta, in points of the game
    terminated: bool  # the game ended: nothing comes after
    truncated: bool  # stopped from outside (step limit, lost worker): the game could have gone on
    valid_actions: tuple[str, ...]  # sorted, without duplicates; empty only where the episode is over
    score: float
    max_score: float
    game: str  # name of the game, the key of its action vocabulary
    goal: str = ""  # the task in words, where the game states one
    world_hash: str = ""  # identifies the state of the game world
    room: str = ""  # identifies where the player is, also where rooms look alike; empty where the game does not tell
    objects: str = ""  # identifies what is in the room and carried, and how, also in closed things; empty likewise
    # what the player has, sorted, each once: "match in raincoat", a line break and what identifies its condition, where
    # the game tells it; empty likewise
    carried: tuple[str, ...] = ()
    fault: str = ""  # why the worker was replaced; empty in normal running

    @property
    def done(self) -> bool:
        """Whether the episode is over, for either reason."""
        return self.terminated or self.truncated


@dataclass(frozen=True, slots=True)
class Turn:
    """One past step as a prompt shows it."""

    observation: Observation
    action: str
    reward: float


@dataclass(frozen=True, slots=True)
class Situation:
    """Everything that a policy may look at to choose an action."""

    observation: Observation
    valid_actions: tuple[str, ...]
    history: tuple[Turn, ...] = ()  # oldest first
    goal: str = ""


# ------------------------------------------------------------------------------------------------------------ prior


@dataclass(frozen=True, slots=True)
class PriorResult:
    """Scores of the valid actions of several situations."""

    logprobs: tuple[np.ndarray, ...]  # one [A] float32 array a situation, normalised over its valid actions
    version: int  # policy version that produced them
    cache_hits: int = 0  # how many situations came from the cache


# ----------------------------------------------------------------------------------------------------------- search


@dataclass(frozen=True, slots=True)
class Context:
    """The last steps of ``B`` episodes, as the world model sees them. Newest last; rows are padded at the front."""

    vectors: np.ndarray  # [B, C, O] float32 encoded observations, the current one last
    actions: np.ndarray  # [B, C - 1] int32 vocabulary ids of the actions between them
    length: np.ndarray  # [B] int64, 1..C: how many of the observations are real


@dataclass(frozen=True, slots=True)
class Subtree:
    """What a search found behind an action that was then taken: how the actions that may follow were searched."""

    actions: np.ndarray  # [K] int32 ids of the vocabulary
    visits: np.ndarray  # [K] int32, above 0
    q: np.ndarray  # [K] float64


@dataclass(frozen=True, slots=True)
class Edges:
    """What is known of the actions of a root before it is searched."""

    visits: np.ndarray  # [B, A] int32
    q: np.ndarray  # [B, A] float64, 0 where there are no visits


@dataclass(frozen=True, slots=True)
class Root:
    """The decision to search from. Actions are ids of the vocabulary, -1 where padded."""

    actions: np.ndarray  # [B, A] int32
    probs: np.ndarray  # [B, A] float32, prior with noise already mixed in, 0 where padded
    value: np.ndarray  # [B] float32
    earlier: Edges | None = None  # of an earlier search; None: nothing

    @property
    def legal(self) -> np.ndarray:
        """[B, A] bool."""
        return self.actions >= 0


@dataclass(frozen=True, slots=True)
class Expansion:
    """What the model says of the states that one simulation reached."""

    reward: np.ndarray  # [B] float32, of the step into the state
    value: np.ndarray  # [B] float32, of the state
    actions: np.ndarray  # [B, K] int32 ids of the vocabulary, -1 where padded
    probs: np.ndarray  # [B, K] float32, 0 where padded


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What the search found at the root."""

    visits: np.ndarray  # [B, A] int32
    q: np.ndarray  # [B, A] float32, 0 where never visited
    value: np.ndarray  # [B] float32, mean of the backed-up values

    @property
    def visit_probs(self) -> np.ndarray:
        """[B, A] float32: each action's share of the visits."""
        total = self.visits.sum(-1, keepdims=True)
        return (self.visits / np.maximum(total, 1)).astype(np.float32)


# ---------------------------------------------------------------------------------------------------------- segments


@dataclass(frozen=True, slots=True)
class Segment:
    """A slice of ``T`` consecutive steps of one episode, with what both models learn from.

    Position ``t`` of ``observations`` and ``valid_actions`` is the state before ``actions[t]``; position ``T`` is the
    state after the last action (its valid actions are empty when the episode is over).
    """

    game: str
    goal: str
    episode: int  # counts the episodes of a run
    start: int  # index of the first step in its episode
    history: tuple[Turn, ...]  # the turns before ``start``, oldest first, as many as prompts may need
    observations: tuple[Observation, ...]  # T + 1
    vectors: np.ndarray  # [T + 1, O] float32, the encoded observations
    valid_actions: tuple[tuple[str, ...], ...]  # T + 1
    actions: tuple[str, ...]  # T
    rewards: np.ndarray  # [T] float32, in points of the game
    intrinsic: np.ndarray  # [T] float32, rewards that exploration adds; 0 without
    visit_probs: tuple[np.ndarray, ...]  # T arrays [A_t], over valid_actions[t]
    root_values: np.ndarray  # [T] float32, what the search thought of the state
    prior_logprobs: tuple[np.ndarray | None, ...]  # T arrays [A_t], None where no language model was asked
    terminated: bool  # the last step ended the game
    truncated: bool  # the last step hit a limit; False with terminated False: the episode goes on in another segment
    world_model_version: int
    policy_version: int
    returns: np.ndarray | None = None  # [T] discounted ``learned_rewards`` to the episode's end, None while unknown

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def learned_rewards(self) -> np.ndarray:
        """[T] float32, what both models learn from: the game's rewards and the intrinsic ones."""
        return self.rewards + self.intrinsic


@dataclass(frozen=True, slots=True)
class SegmentId:
    """Names a step of a stored segment: where a training window starts."""

    segment: int  # serial number given by the replay, never used twice
    step: int


@dataclass(frozen=True, slots=True)
class EpisodeResult:
    """How one finished episode went."""

    game: str
    seed: int
    policy: str  # random | prior | wm | wm_prior | collect
    score: float
    max_score: float
    steps: int
    terminated: bool
    fault: str = ""
