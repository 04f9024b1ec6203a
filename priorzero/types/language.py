"""What a language model is asked, and what it wrote. Tokens are numbers, kept as they were sampled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


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
