"""The only place that writes a prompt: a situation becomes chat tokens, its actions become answer tokens.

A prompt is the system text, the output format, the goal, the last turns, the current observation, optionally the valid
actions, and the *answer prefix* (``Action:``). What all prompts share comes first, so that it is computed once for many
of them (``policy.packing``). The answer prefix belongs to the prompt, so that constant tokens never count as
tokens of an action. An answer is the action's own tokens and one token that ends it: without the end, "open" would be a
prefix of "open mailbox".

The wording was chosen among some 15 with SmolLM2-135M-Instruct on 20 states of 4 TextWorld cooking games, by the mean
probability of the walkthrough's next action: it is the shortest of those that did best, and the differences between
those are within noise.
"""

from __future__ import annotations

import logging
import zlib
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from priorzero.types import Message, Observation, PromptRow, Situation, Turn

log = logging.getLogger(__name__)

Chat = tuple[Message, ...]

SYSTEM = "You are playing a text adventure game."


class PromptTooLongError(ValueError):
    """The current observation alone does not fit into the token budget."""


@dataclass(frozen=True)
class AnswerFormat:
    """How an answer is written. ``opening`` + reasoning + ``prefix`` + gap + action + ``end`` is a whole answer."""

    instruction: str
    opening: str  # before a reasoning; empty where the format has none
    prefix: str  # before the action, without the gap
    gap: str  # between prefix and action
    end: str  # after the action; empty: the tokenizer's end-of-turn token


FORMATS = {
    "plain": AnswerFormat("Answer with one action, written as: Action: <action>", "", "Action:", " ", ""),
    "reasoning": AnswerFormat(
        "Think in one or two sentences, then choose one action. Write:\nReasoning: <your reasoning>\nAction: <action>",
        "Reasoning:",
        "\nAction:",
        " ",
        "",
    ),
    "think_answer": AnswerFormat(
        "Think briefly, then choose one action. Write:\n<think>your reasoning</think>\n<answer>the action</answer>",
        "<think>",
        "</think>\n<answer>",
        "",
        "</answer>",
    ),
}


@dataclass(frozen=True)
class PromptConfig:
    """What a prompt shows.

    Attributes:
        format: "plain", "reasoning" or "think_answer".
        history_steps: how many past turns are shown at most; 0 shows none.
        max_tokens: budget of the whole prompt, answer prefix and reasoning included, answers not.
        show: the parts of the current observation that are shown: feedback, look, inventory.
        show_valid_actions: list the valid actions. Their order depends on the situation and has no meaning: sorted, the
            first of them would be a habit that is right often enough to keep a model from reading the rest.
        show_rewards: write the reward after an action of the history that got one.
        truncate_observation: where the current observation alone is too long, cut the end of the room description,
            then of the feedback (logged and counted) instead of raising.
        system: the system text, None for the built-in one. ``{goal}`` and ``{format}`` in it stand for the goal and the
            format's instruction; a line with ``{goal}`` is left out where a game states none.
    """

    format: str
    history_steps: int
    max_tokens: int
    show: tuple[str, ...]
    show_valid_actions: bool
    show_rewards: bool
    truncate_observation: bool
    system: str | None

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(f"unknown prompt format {self.format!r}: choose one of {', '.join(FORMATS)}")
        if not self.show or not set(self.show) <= set(Observation._fields):
            raise ValueError(f"show names parts of an observation ({', '.join(Observation._fields)}), not {self.show}")
        if self.history_steps < 0 or self.max_tokens < 1:
            raise ValueError("history_steps must be 0 or more and max_tokens positive")


class PromptBuilder:
    """Writes prompts and answers as tokens of one tokenizer. Thread safe.

    Args:
        tokenizer: a transformers tokenizer with a chat template and an end-of-turn (eos) token.
        config: what a prompt shows.

    Raises:
        ValueError: the tokenizer has no chat template or no eos token.
    """

    def __init__(self, tokenizer: Any, config: PromptConfig) -> None:
        if not tokenizer.chat_template:
            raise ValueError("the tokenizer has no chat template: choose an instruct model")
        if tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no eos token, which ends an answer: set eos_token in its files")
        self.tokenizer = tokenizer
        self.config = config
        self.format = FORMATS[config.format]
        self.truncated = 0  # prompts whose observation was cut
        self._prefix_ids = self._encode(self.format.prefix)
        self._answer = lru_cache(maxsize=65_536)(self._encode_answer)
        # what was written and counted to see whether it fits is the prompt itself, and games repeat themselves
        self._write = lru_cache(maxsize=512)(self._write_chat)
        self._tokens = lru_cache(maxsize=512)(lambda text: tuple(self._encode(text)))

    def prompt(self, situation: Situation, reasoning: str | None = None) -> list[int]:
        """Tokens of the prompt; an answer's tokens follow directly.

        The oldest turns are dropped first where it is longer than ``max_tokens``.

        Args:
            situation: what is known.
            reasoning: text put before the answer prefix, for the formats with reasoning; None for none.

        Raises:
            PromptTooLongError: the prompt does not fit even without history.
            ValueError: a reasoning is given and the format has none.
        """
        return list(self._tokens(self.text(situation, reasoning)))

    def text(self, situation: Situation, reasoning: str | None = None) -> str:
        """The prompt as text, as ``prompt`` tokenises it. Same arguments and errors."""
        answer = self._answer_start(reasoning)
        return self._write(self._messages(situation, answer), answer)

    def row(self, situation: Situation) -> PromptRow:
        """The prompt as a task whose answer the model writes itself, reasoning included where the format has one.

        Answer, data source and ids of the row are the caller's.

        Raises:
            PromptTooLongError: the prompt does not fit even without history.
        """
        opening = self.format.opening or self.format.prefix
        messages = self._messages(situation, opening)
        return PromptRow(messages=messages, valid_actions=situation.valid_actions, answer_prefix=opening)

    def answers(self, actions: Sequence[str]) -> list[list[int]]:
        """Tokens of each action after the answer prefix, each with the token that ends it.

        Raises:
            ValueError: an action is empty, or the tokenizer merges it with the answer prefix.
        """
        return [list(self._answer(action)) for action in actions]

    def _messages(self, situation: Situation, answer: str) -> Chat:
        """The chat, within the budget."""
        turns = [self._turn(t, situation.goal) for t in self._recent(situation)]

        def with_turns(keep: int) -> Chat:
            return self._chat(situation, turns[len(turns) - keep :])

        keep = self._most(with_turns, len(turns), answer)
        return self._cut(situation, answer) if keep is None else with_turns(keep)

    def _recent(self, situation: Situation) -> tuple[Turn, ...]:
        count = min(self.config.history_steps, len(situation.history))
        return situation.history[len(situation.history) - count :]

    def _turn(self, turn: Turn, goal: str) -> str:
        reward = f" ({turn.reward:+g} points)" if self.config.show_rewards and turn.reward else ""
        return _lines(_without(brief(turn.observation), goal), f"> {turn.action}{reward}")

    def _answer_start(self, reasoning: str | None) -> str:
        if reasoning and not self.format.opening:
            raise ValueError(f"format {self.config.format!r} has no place for a reasoning: choose another")
        text = f" {reasoning.strip()}" if reasoning and self.format.gap else (reasoning or "").strip()
        return f"{self.format.opening}{text}{self.format.prefix}"

    def _system(self, goal: str) -> str:
        template = SYSTEM if self.config.system is None else self.config.system
        lines = (line for line in template.split("\n") if goal or "{goal}" not in line)
        return "\n".join(lines).replace("{goal}", goal).replace("{format}", self.format.instruction)

    def _chat(self, situation: Situation, turns: Sequence[str]) -> Chat:
        goal = squeeze(situation.goal)
        current = _without(observation_text(self._shown(situation.observation)), goal)
        listing = (
            f"Valid actions: {_listed(situation.valid_actions, current)}" if self.config.show_valid_actions else ""
        )
        user = _lines(self.format.instruction, f"Goal: {goal}" if goal else "", *turns, current, listing)
        return Message("system", self._system(goal)), Message("user", user)

    def _write_chat(self, messages: Chat, answer: str) -> str:
        chat = [{"role": message.role, "content": message.content} for message in messages]
        return self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) + answer

    def _shown(self, observation: Observation) -> Observation:
        return observation._replace(**{part: "" for part in Observation._fields if part not in self.config.show})

    def _most(self, chat: Callable[[int], Chat], limit: int, answer: str) -> int | None:
        """The largest n up to ``limit`` whose text fits into the budget, None where even 0 does not."""

        def too_long(n: int) -> bool:
            return len(self._tokens(self._write(chat(n), answer))) > self.config.max_tokens

        if not too_long(limit):
            return limit
        fitting = bisect_right(range(limit), False, key=too_long)
        return fitting - 1 if fitting else None

    def _cut(self, situation: Situation, answer: str) -> Chat:
        """Cut the end of the room description, then of the feedback; the inventory stays whole."""
        observation = self._shown(situation.observation)
        feedback, look = squeeze(observation.feedback).split(" "), squeeze(observation.look).split(" ")
        words = len(feedback) + (0 if " ".join(look) in " ".join(feedback) else len(look))

        def with_words(keep: int) -> Chat:
            rest = " ".join(look[: max(0, keep - len(feedback))])
            shortened = observation._replace(feedback=" ".join(feedback[:keep]), look=rest)
            return self._chat(replace(situation, observation=shortened), ())

        keep = self._most(with_words, words, answer) if self.config.truncate_observation else None
        if keep is None:
            needed = len(self._tokens(self._write(self._chat(situation, ()), answer)))
            raise PromptTooLongError(
                f"the current observation needs a prompt of {needed} tokens without any history, and the budget is "
                f"{self.config.max_tokens}: raise max_tokens of the prompt, or set truncate_observation"
                + (" (already set: the observation is not what is too long)" * self.config.truncate_observation)
            )
        self.truncated += 1
        if self.truncated.bit_count() == 1:  # at 1, 2, 4, 8, ...
            log.warning("cut an observation to %d of its %d words in a prompt (%d so far)", keep, words, self.truncated)
        return with_words(keep)

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _encode_answer(self, action: str) -> tuple[int, ...]:
        if not action.strip():
            raise ValueError("an action is empty")
        start = len(self._prefix_ids)
        ids = self._encode(f"{self.format.prefix}{self.format.gap}{action}")
        if ids[:start] != self._prefix_ids:
            raise ValueError(f"this tokenizer merges the answer prefix with {action!r}: choose another prompt format")
        if not self.format.end:
            return (*ids[start:], self.tokenizer.eos_token_id)
        closed = self._encode(f"{self.format.prefix}{self.format.gap}{action}{self.format.end}")
        if closed[: len(ids)] != ids:
            raise ValueError(f"this tokenizer merges {action!r} with what follows: choose another prompt format")
        return tuple(closed[start : len(ids) + 1])


@lru_cache(maxsize=16_384)
def squeeze(text: str) -> str:
    """``text`` without blank lines, drawings (lines without a letter or digit) and repeated spaces."""
    lines = (" ".join(line.split()) for line in text.splitlines())
    return "\n".join(line for line in lines if any(c.isalnum() for c in line))


def observation_text(observation: Observation) -> str:
    """The parts of an observation, one below the other, without empty parts and parts that another contains."""
    parts = [squeeze(part) for part in observation]
    kept = []
    for i, part in enumerate(parts):
        others = parts[:i] + [p for p in parts[i + 1 :] if len(p) > len(part)]
        if part and not any(part in other for other in others):
            kept.append(part)
    return "\n".join(kept)


def brief(observation: Observation) -> str:
    """A past observation: what the game answered, with a room description cut to its first line."""
    feedback, look = squeeze(observation.feedback), squeeze(observation.look)
    return feedback.replace(look, look.split("\n", 1)[0]) if look else feedback


def _without(text: str, goal: str) -> str:
    """``text`` without the goal, which the prompt states elsewhere."""
    goal = squeeze(goal)
    return squeeze(text.replace(goal, "")) if goal else text


def _listed(actions: Sequence[str], where: str) -> str:
    """The actions, mixed: always in the same order after the same text ``where``."""
    return "; ".join(sorted(actions, key=lambda action: zlib.crc32(f"{where}\n{action}".encode())))


def _lines(*parts: str) -> str:
    return "\n".join(filter(None, parts))
