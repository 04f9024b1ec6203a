"""The nouns: what flows from the games to the gradient. No behaviour lives here.

Shape letters, used in every docstring of the project:

=====  ==========================================================
``B``  batch: environments in search, windows in training
``S``  steps of a training window, unroll and bootstrap together
``T``  unroll steps: the steps of a window that are trained
``A``  actions of one state, padded
``K``  actions of an interior tree node
``U``  distinct actions of a batch, or of the whole vocabulary
``E``  width of a sentence vector
``O``  width of an observation vector (observation parts x E)
``D``  width of the world model
``L``  language-model tokens
``N``  nodes of a search tree
=====  ==========================================================

``legal`` masks are True where an action is legal. Log-probabilities end in ``_logprobs``, probabilities in ``_probs``.
Versions count weight updates that reached the collector: 0 is the untrained model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

# ----------------------------------------------------------------------------------------------------------- games


class Observation(NamedTuple):
    """What the player sees. Parts that an environment does not give are empty strings."""

    feedback: str  # what the game printed after the last action
    look: str = ""  # the description of the room
    inventory: str = ""  # what the player carries


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
class Root:
    """The decision to search from. Actions are ids of the vocabulary, -1 where padded."""

    actions: np.ndarray  # [B, A] int32
    probs: np.ndarray  # [B, A] float32, prior with noise already mixed in, 0 where padded
    value: np.ndarray  # [B] float32

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
    rewards: np.ndarray  # [T] float32
    visit_probs: tuple[np.ndarray, ...]  # T arrays [A_t], over valid_actions[t]
    root_values: np.ndarray  # [T] float32, what the search thought of the state
    prior_logprobs: tuple[np.ndarray | None, ...]  # T arrays [A_t], None where no language model was asked
    terminated: bool  # the last step ended the game
    truncated: bool  # the last step hit a limit; False with terminated False: the episode goes on in another segment
    world_model_version: int
    policy_version: int
    returns: np.ndarray | None = None  # [T] discounted returns to the episode's end, None while that is unknown

    def __len__(self) -> int:
        return len(self.actions)


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


# ------------------------------------------------------------------------------------------------------- generation


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a chat."""

    role: str  # system | user | assistant
    content: str


@dataclass(frozen=True, slots=True)
class PromptRow:
    """One task for the language model: what it is asked, and what its rewards need to judge the answer."""

    messages: tuple[Message, ...]  # the chat so far; the model writes the next message
    answer: str = ""  # the right answer, for a game the action that the search chose; empty: none is known
    valid_actions: tuple[str, ...] = ()
    data_source: str = ""  # chooses the rewards
    state_id: str = ""  # equal for equal situations (anchor of GiGPO)
    group_id: str = ""  # equal for the samples that are compared with each other (GRPO, RLOO)
    answer_prefix: str = ""  # text that starts the model's message and is not sampled
    extra: Mapping[str, Any] = field(default_factory=dict)  # plain values for rewards and tools


@dataclass(frozen=True, slots=True)
class Generation:
    """What the language model wrote after a prompt. Token ids are kept as sampled and never tokenised again."""

    tokens: tuple[int, ...]  # without the prompt; with the token that ended it, if one did
    logprobs: np.ndarray  # [len(tokens)] float32, of the distribution that was sampled from (after temperature)
    finish: str  # "stop": end of turn or a stop string; "length": max_tokens


@dataclass(frozen=True, slots=True)
class Dialogue:
    """One finished sample: a prompt, and everything after it in one sequence of tokens.

    Tokens that the model did not write (prompt, results of tools) have ``written`` False and take part in no loss.
    """

    row: PromptRow
    tokens: tuple[int, ...]  # [L], the prompt first
    written: np.ndarray  # [L] bool: sampled by the model
    rollout_logprobs: np.ndarray  # [L] float32, 0 where not written
    turn_ends: tuple[int, ...]  # index of the last written token of each turn, ascending
    turn_rewards: tuple[float, ...]  # one a turn, of the tools or the environment; rewards of rules are added later
    text: str  # all after the prompt, decoded
    finish: str  # "stop" | "length" | "turns" (no turn left) | "fault" (a tool failed for good)
    counts: Mapping[str, float] = field(default_factory=dict)  # for the log: tool calls, time-outs, invalid turns
    valid: bool = True  # False: masked out of training (and counted), for example after a fault


@dataclass(frozen=True, slots=True)
class Imagined:
    """What the world model expects of an action."""

    reward: float  # of the step, in points of the game
    value: float  # of the state that it leads to, in points
    likely_actions: tuple[str, ...]  # there, most likely first


@dataclass(frozen=True, slots=True)
class Answer:
    """What a reward judges."""

    row: PromptRow
    text: str  # everything that the model wrote (answer prefix included), without special tokens
    action: str | None  # the action parsed from it, None where there is none
    finish: str  # as in Dialogue


# ----------------------------------------------------------------------------------------------------------- batches


@dataclass(frozen=True)
class TensorRecord:
    """A frozen dataclass of tensors (and plain values) that moves between devices as one."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The same record on ``device``."""
        return self._map(lambda x: x.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """The same record in page-locked memory."""
        return self._map(lambda x: x.pin_memory())

    def _map(self, fn: Callable[[Any], Any]) -> Self:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: fn(v) for name, v in values.items() if isinstance(v, (Tensor, TensorRecord))})


@dataclass(frozen=True)
class WorldModelBatch(TensorRecord):
    """``B`` windows of ``S`` steps. Step ``t`` is real where ``t < length``; windows are padded at the end.

    The padding after a true end is the absorbing state: the last observation again, any actions, rewards of 0.

    Tokens in time order: observation 0, action 0, observation 1, ..., observation S. Actions are indices into
    ``candidates``, the distinct actions of the batch.
    """

    observation: Tensor  # [B, S + 1, O] float; real up to index ``length`` inclusive
    action: Tensor  # [B, S] int64 into candidates; where padded 0, or any after a true end
    reward: Tensor  # [B, S] float; 0 where padded
    length: Tensor  # [B] int64, 1..S: real steps
    terminated: Tensor  # [B] bool: step ``length - 1`` ended the game, so observation ``length`` is worth 0
    candidates: Tensor  # [U, E] float, sentence vectors of the actions
    legal: Tensor  # [B, T, U] bool: the valid actions of step t
    known: Tensor  # [B, U] bool: candidates that belong to the vocabulary of the window's game (legal is a subset)
    policy: Tensor  # [B, T, U] float, visit probabilities of the search, 0 outside legal
    weight: Tensor  # [B] float, importance weights of prioritised sampling, mean near 1
    index: Tensor  # [B] int64, row of the replay's last draw, to give priorities back

    @property
    def unroll(self) -> int:
        """T."""
        return self.legal.shape[1]


@dataclass(frozen=True)
class PackedPrompts(TensorRecord):
    """``B`` prompts with candidate answers, laid out as trees in ``R`` rows of ``L`` tokens (``policy.packing``).

    A row is in depth-first order: token i sees token j where ``j <= i < end[j]``. Every candidate's last token is
    scored but not fed. ``score_*`` list the ``M`` tokens of all candidates.
    """

    tokens: Tensor  # [R, L] int64
    position: Tensor  # [R, L] int64: depth in the tree
    end: Tensor  # [R, L] int64: index after the last descendant; on padding the index after itself
    score_position: Tensor  # [M] int64: index into the R * L tokens whose logits predict the token
    score_token: Tensor  # [M] int64: the predicted token
    score_slot: Tensor  # [M] int64: prompt * A + candidate that it belongs to
    candidates: Tensor  # [B] int64: number of candidates of each prompt

    @property
    def max_candidates(self) -> int:
        """A."""
        return int(self.candidates.max())


@dataclass(frozen=True)
class PolicyBatch(TensorRecord):
    """States on which the language model is trained, each with all its valid actions as candidates."""

    prompts: PackedPrompts
    visit_probs: Tensor  # [B, A] float, the search's distribution over the candidates; rows sum to 1
    action: Tensor  # [B] int64, the candidate that was played
    advantage: Tensor  # [B] float, of the played action
    behaviour_logprobs: Tensor  # [B] float, log-probability of the played action when it was played
    weight: Tensor  # [B] float, 0 for padding samples


@dataclass(frozen=True)
class TokenBatch(TensorRecord):
    """A micro-batch of ``N`` generated samples with at most ``L`` tokens after their prompts.

    [N, L] fields count from the end of the prompt; what the model did not write is False in ``mask`` and 0 elsewhere.
    """

    packed: PackedPrompts  # samples of one prompt are its candidates; only written tokens are scored
    place: Tensor  # [M] int64: where each scored token lies in the flattened [N, L]
    mask: Tensor  # [N, L] bool: written, and trained
    rollout_logprobs: Tensor  # [N, L] float, as sampled
    old_logprobs: Tensor  # [N, L] float, of the trainer before the update
    advantages: Tensor  # [N, L] float
    ref_logprobs: Tensor | None  # [N, L] float, of the initial model; None without a KL
    old_values: Tensor | None  # [N, L] float, of the critic before the update; None without a critic
    returns: Tensor | None  # [N, L] float, targets of the critic
    tokens: int  # trained tokens of the whole update, over all micro-batches
    sequences: int  # samples with any
