"""How a running dialogue is kept as tokens: one sequence that only grows, or a sequence of its own for each turn.

Sampled ids are never tokenised again. In one sequence only what is added behind them is tokenised: what a tool answers
goes on inside the model's message, or, where the model had closed that, into a user message of the chat template.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from priorzero.text.chat import encode, reply_text, row_tokens
from priorzero.types import Dialogue, Generation, Message, PromptRow

CHARS_PER_TOKEN = 32  # a text is cut to so many characters a token before it is tokenised at all


@dataclass(frozen=True, slots=True)
class Budget:
    """Lengths in tokens."""

    sequence: int  # of a whole sequence, prompt included
    turn: int  # the most that one turn may write
    history_turns: int  # turns that the prompt of a later turn shows, where each turn has its own


@dataclass(frozen=True, slots=True)
class Ending:
    """How a dialogue ended; the fields are those of `Dialogue`."""

    finish: str
    counts: Mapping[str, float]
    valid: bool


class Record(Protocol):
    """The tokens of one running dialogue."""

    row: PromptRow

    def prompt(self) -> list[int] | None:
        """Tokens to continue; None where the next turn might not fit into the budget any more."""
        ...

    def write(self, generation: Generation) -> str:
        """Adds a turn of the model, and says what it wrote since the last result, special tokens left out."""
        ...

    def reward(self, reward: float) -> None:
        """Sets the reward of the last turn."""
        ...

    def give(self, text: str) -> None:
        """Tells the model what came of its last turn."""
        ...

    def dialogues(self, ending: Ending) -> list[Dialogue]:
        """The finished samples, in the order of their turns."""
        ...


class OneSequence:
    """A whole dialogue as one sequence of tokens."""

    def __init__(self, row: PromptRow, tokenizer: Any, budget: Budget) -> None:
        self.row, self._tokenizer, self._budget = row, tokenizer, budget
        self._tokens = row_tokens(tokenizer, row)
        self._start = len(self._tokens)
        self._given: list[int] = []  # not yet part of the sequence: dropped where no turn follows
        self._written = [False] * self._start
        self._logprobs = [0.0] * self._start
        self._ends: list[int] = []
        self._rewards: list[float] = []
        self._special = special_ids(tokenizer)
        self._sent: list[int] = []

    def prompt(self) -> list[int] | None:
        """As in `Record`.

        Raises:
            RuntimeError: the tokens do not start with those that were sent before, so a turn would be scored on a
                text that it was not written for.
        """
        if len(self._tokens) + len(self._given) + self._budget.turn > self._budget.sequence:
            return None
        self._extend(self._given, False, [0.0] * len(self._given))
        self._given = []
        if self._tokens[: len(self._sent)] != self._sent:
            raise RuntimeError("the tokens of a dialogue changed behind its end: report this")
        self._sent = list(self._tokens)
        return list(self._tokens)

    def write(self, generation: Generation) -> str:
        """As in `Record`."""
        prefix = "" if self._ends else self.row.answer_prefix
        check_generation(generation)
        self._extend(generation.tokens, True, generation.logprobs.tolist())
        self._ends.append(len(self._tokens) - 1)
        self._rewards.append(0.0)
        return prefix + plain_text(self._tokenizer, generation.tokens)

    def reward(self, reward: float) -> None:
        """As in `Record`."""
        self._rewards[-1] = reward

    def give(self, text: str) -> None:
        """As in `Record`."""
        last = self._tokens[-1]
        if last in self._special:
            suffix = reply_text(self._tokenizer, self._tokenizer.decode([last]), text)
            self._given = encode(self._tokenizer, suffix)
        else:
            self._given = encode_start(self._tokenizer, f"\n\n{text}\n\n")

    def dialogues(self, ending: Ending) -> list[Dialogue]:
        """As in `Record`: a single one."""
        return [
            Dialogue(
                row=self.row,
                tokens=tuple(self._tokens),
                written=np.array(self._written, bool),
                rollout_logprobs=np.array(self._logprobs, np.float32),
                turn_ends=tuple(self._ends),
                turn_rewards=tuple(self._rewards),
                text=self._tokenizer.decode(self._tokens[self._start :]),
                finish=ending.finish,
                counts=ending.counts,
                valid=ending.valid,
            )
        ]

    def _extend(self, tokens: Sequence[int], written: bool, logprobs: Sequence[float]) -> None:
        self._tokens.extend(tokens)
        self._written.extend([written] * len(tokens))
        self._logprobs.extend(logprobs)


class StepSequences:
    """Each turn a sample of its own, whose prompt shows the last turns as messages of a chat.

    The rows of the samples carry in ``extra`` which turn they are, ``turn`` from 0.
    """

    def __init__(self, row: PromptRow, tokenizer: Any, budget: Budget) -> None:
        self.row, self._tokenizer, self._budget = row, tokenizer, budget
        self._past: list[tuple[Message, Message]] = []
        self._rows: list[PromptRow] = []
        self._prompts: list[list[int]] = []
        self._turns: list[Generation] = []
        self._rewards: list[float] = []

    def prompt(self) -> list[int] | None:
        """As in `Record`. The oldest turns are left out first; the last one is always shown."""
        shown = self._past[-self._budget.history_turns :]
        for first in range(max(1, len(shown))):
            messages = [message for turn in shown[first:] for message in turn]
            row = replace(self.row, messages=(*self.row.messages, *messages))
            tokens = row_tokens(self._tokenizer, row)
            if len(tokens) + self._budget.turn <= self._budget.sequence:
                self._rows.append(replace(row, state_id=self._state_id(row)))
                self._prompts.append(tokens)
                return list(tokens)
        return None

    def _state_id(self, row: PromptRow) -> str:
        if row.state_id and not self._past:
            return row.state_id
        text = "\0".join(f"{message.role}\0{message.content}" for message in row.messages)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]

    def write(self, generation: Generation) -> str:
        """As in `Record`."""
        check_generation(generation)
        self._turns.append(generation)
        self._rewards.append(0.0)
        return self.row.answer_prefix + plain_text(self._tokenizer, generation.tokens)

    def reward(self, reward: float) -> None:
        """As in `Record`."""
        self._rewards[-1] = reward

    def give(self, text: str) -> None:
        """As in `Record`."""
        wrote = self.row.answer_prefix + plain_text(self._tokenizer, self._turns[-1].tokens)
        wrote = without_special(self._tokenizer, wrote)
        self._past.append((Message("assistant", wrote), Message("user", text)))

    def dialogues(self, ending: Ending) -> list[Dialogue]:
        """As in `Record`: one a turn; all share the ending, and the first carries the counts."""
        return [self._dialogue(turn, ending) for turn in range(len(self._turns))]

    def _dialogue(self, turn: int, ending: Ending) -> Dialogue:
        prompt, generation, row = self._prompts[turn], self._turns[turn], self._rows[turn]
        start = len(prompt)
        return Dialogue(
            row=replace(row, extra={**row.extra, "turn": turn}),
            tokens=(*prompt, *generation.tokens),
            written=np.arange(start + len(generation.tokens)) >= start,
            rollout_logprobs=np.concatenate([np.zeros(start, np.float32), generation.logprobs]).astype(np.float32),
            turn_ends=(start + len(generation.tokens) - 1,),
            turn_rewards=(self._rewards[turn],),
            text=self._tokenizer.decode(list(generation.tokens)),
            finish=ending.finish,
            counts=ending.counts if turn == 0 else {},
            valid=ending.valid,
        )


def encode_start(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text that goes on with a tag.

    Blank space at the very end of a text often has a token of its own that is never followed by a word (two line feeds
    in GPT-2's vocabulary and its many heirs): a model that reads it will not write the tag that it would write else.
    """
    tag = encode(tokenizer, "<")
    tokens = encode(tokenizer, f"{text}<")
    start = tokens[: -len(tag)]
    return start if tokens[-len(tag) :] == tag and tokenizer.decode(start) == text else encode(tokenizer, text)


def written_text(tokenizer: Any, dialogue: Dialogue) -> str:
    """What the model wrote, answer prefix included, results of tools and special tokens left out (`Answer.text`)."""
    edges = np.flatnonzero(np.diff(dialogue.written, prepend=False, append=False))
    runs = [dialogue.tokens[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True)]
    return dialogue.row.answer_prefix + "".join(plain_text(tokenizer, run) for run in runs)


def plain_text(tokenizer: Any, tokens: Sequence[int]) -> str:
    """The text of the tokens, special tokens left out."""
    return tokenizer.decode(list(tokens), skip_special_tokens=True)


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Ids of the tokens that stand for no text, such as the end of a message."""
    return frozenset(number for number, token in tokenizer.added_tokens_decoder.items() if token.special)


def without_special(tokenizer: Any, text: str) -> str:
    """``text`` without the names of special tokens, so that it cannot close a message when it is tokenised."""
    names = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    pattern = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    while pattern and (shorter := re.sub(pattern, "", text)) != text:  # what is left may be a name again
        text = shorter
    return text


def cut_text(tokenizer: Any, text: str, tokens: int) -> tuple[str, bool]:
    """The first ``tokens`` tokens of a text, special ones taken out, and whether anything was cut."""
    start = without_special(tokenizer, text[: tokens * CHARS_PER_TOKEN])
    ids = encode(tokenizer, start)
    if len(ids) > tokens:
        return plain_text(tokenizer, ids[:tokens]), True
    return start, len(text) > tokens * CHARS_PER_TOKEN


def check_generation(generation: Generation) -> None:
    """Raises ValueError where a backend returned no token, or not one log-probability a token."""
    if not generation.tokens or len(generation.logprobs) != len(generation.tokens):
        raise ValueError(
            f"the text generator returned {len(generation.tokens)} tokens with {len(generation.logprobs)} "
            "log-probabilities; it must return at least one token, and one log-probability for each"
        )
