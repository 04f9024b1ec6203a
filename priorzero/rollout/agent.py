"""The multi-turn loop: the model writes, its tools answer, until it has answered or may not go on.

As in Search-R1 (arXiv:2503.09516), a turn ends at the first ``</tag>``; a turn without a call or an answer is told so;
after the last turn with tools the model writes once more without. Unlike there, sampled ids are kept as they are.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from priorzero.rollout.base import Sampling, TextGenerator
from priorzero.rollout.calls import CallConfig, ToolCall, ToolCaller, ToolOutcome
from priorzero.rollout.dialogue import Budget, Ending, OneSequence, Record, StepSequences, cut_text
from priorzero.rollout.tools import Tool
from priorzero.text.chat import reply_text
from priorzero.text.prompt import PromptTooLongError
from priorzero.types import Dialogue, Generation, Message, PromptRow

log = logging.getLogger(__name__)

RECORDS = {"dialogue": OneSequence, "step": StepSequences}
RESULT_TAG = "information"
COUNTS = (
    "turns",  # generations
    "tool_calls",
    "tool_problems",  # calls that the tool answered with a refusal
    "tool_retries",  # further attempts of calls
    "tool_timeouts",
    "tool_faults",  # calls without a result, those that timed out included
    "results_cut",  # results longer than their budget
    "invalid_turns",  # turns with neither a call nor an answer
    "unanswered",  # 1 where the dialogue has tools and ended without an answer
)


@dataclass(frozen=True, kw_only=True)
class AgentConfig:
    """How a dialogue goes.

    Attributes:
        mode: "dialogue": one sample, a sequence of tokens with everything in it; "step": one sample a turn, each with
            a prompt of its own.
        max_turns: turns in which tools may be called; one more without tools follows. 0 with no tools is a plain
            question and answer, and nothing is looked for in the text.
        max_tokens: of a sequence, prompt included. A turn starts only where its longest text still fits.
        history_turns: past turns that a prompt shows (mode "step").
        result_tokens: a result of a tool is cut to so many tokens.
        answer_tag: the model answers in ``<answer_tag>...</answer_tag>``.
        instructions: add to the prompt how to call the tools and how to answer; false where the data says so already.
        invalid_reward: reward of a turn with neither a call nor an answer.
        max_faults: failed calls that a dialogue survives; one more ends it, and it is not trained on.
    """

    mode: str
    max_turns: int
    max_tokens: int
    history_turns: int
    result_tokens: int
    answer_tag: str
    instructions: bool
    invalid_reward: float
    max_faults: int

    def __post_init__(self) -> None:
        if self.mode not in RECORDS:
            raise ValueError(f"the mode of the agent is one of {', '.join(RECORDS)}, not {self.mode!r}")
        if min(self.max_turns, self.max_faults) < 0 or min(self.max_tokens, self.history_turns, self.result_tokens) < 1:
            raise ValueError(
                "max_turns and max_faults of the agent must be 0 or more; max_tokens, history_turns and result_tokens "
                "must be positive"
            )


@dataclass(eq=False)
class _Running:
    """A dialogue that goes on."""

    record: Record
    counts: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(COUNTS, 0)))
    finish: str = ""  # empty while it goes on

    def end(self) -> list[Dialogue]:
        """The finished samples."""
        return self.record.dialogues(Ending(self.finish, dict(self.counts), self.finish != "fault"))


class AgentLoop:
    """Plays dialogues, many at once: one call of the generator a turn for all that go on.

    Args:
        generator: writes.
        tokenizer: a transformers tokenizer with a chat template, the generator's own.
        tools: what the model may call; none for a plain question and answer.
        config: turns, budgets, modes.
        calls: attempts and time-outs of the tools.

    Raises:
        ValueError: tags of the tools are not words, or not different from each other and from the other tags.
        ChatTemplateError: the chat template cannot carry a dialogue on in one sequence.
    """

    def __init__(
        self, generator: TextGenerator, tokenizer: Any, tools: Sequence[Tool], config: AgentConfig, calls: CallConfig
    ) -> None:
        tags = [*(tool.tag for tool in tools), config.answer_tag]
        if len({*tags, RESULT_TAG}) <= len(tags) or not all(re.fullmatch(r"\w+", tag) for tag in tags):
            raise ValueError(f"tags must be words that differ from each other and from {RESULT_TAG}, not {tags}")
        self.generator, self.tokenizer, self.tools, self.config = generator, tokenizer, tuple(tools), config
        self.plain = not tools and config.max_turns == 0
        self._caller = ToolCaller(tools, calls)
        self._stop = tuple(f"</{tag}>" for tag in tags)
        self._call = re.compile(rf"<(?P<tag>{'|'.join(tags)})>(?P<body>.*?)</(?P=tag)>", re.DOTALL)
        if config.mode == "dialogue" and config.max_turns:
            reply_text(tokenizer, "", "x")

    def check(self) -> None:
        """Asks every tool whether it works.

        Raises:
            ToolError: one does not.
        """
        for tool in self.tools:
            tool.check()

    def run(self, rows: Sequence[PromptRow], sampling: Sampling, samples: int) -> list[list[Dialogue]]:
        """Plays every row ``samples`` times.

        Args:
            rows: the tasks.
            sampling: of a turn: its ``max_tokens`` are those that one turn may write. The stop strings that the tags
                need are added. A seed is raised by one a turn.
            samples: dialogues a row.

        Returns:
            ``len(rows) * samples`` lists, the samples of a row beside each other. A list has one dialogue in mode
            "dialogue", and one a turn in mode "step".

        Raises:
            PromptTooLongError: a prompt leaves no room for a turn.
            ValueError: ``samples`` is below 1.
        """
        if samples < 1:
            raise ValueError(f"samples must be at least 1, not {samples}")
        budget = Budget(self.config.max_tokens, sampling.max_tokens, self.config.history_turns)
        stop = sampling.stop if self.plain else tuple(dict.fromkeys((*sampling.stop, *self._stop)))
        record = RECORDS[self.config.mode]
        asked = [self.instructed(row) for row in rows]
        running = [_Running(record(row, self.tokenizer, budget)) for row in asked for _ in range(samples)]
        for turn in range(self.config.max_turns + 1):
            seed = None if sampling.seed is None else sampling.seed + turn
            self._turn(running, turn, replace(sampling, stop=stop, seed=seed), samples)
        return [one.end() for one in running]

    def instructed(self, row: PromptRow) -> PromptRow:
        """The row with the explanation of tools and answer behind its last message, where the configuration asks."""
        if self.plain or not self.config.instructions:
            return row
        last = row.messages[-1]
        message = Message(last.role, f"{last.content}\n\n{self._how_to_go_on()}")
        return replace(row, messages=(*row.messages[:-1], message))

    def _how_to_go_on(self) -> str:
        ways = [f"To {tool.purpose}, write <{tool.tag}>{tool.example}</{tool.tag}>." for tool in self.tools]
        if ways:
            ways.append(f"What comes of it is shown between <{RESULT_TAG}> and </{RESULT_TAG}>.")
        return " ".join([*ways, f"To answer, write <{self.config.answer_tag}>answer</{self.config.answer_tag}>."])

    # -------------------------------------------------------------------------------------------------------- a turn

    def _turn(self, running: Sequence[_Running], turn: int, sampling: Sampling, samples: int) -> None:
        active, prompts = self._prompts(running, turn)
        if not active:
            return
        if turn == 0:  # the samples of a row share their prompt
            drawn = self.generator.generate(prompts[::samples], sampling, samples)
        else:
            drawn = self.generator.generate(prompts, sampling, 1)
        generations = [generation for group in drawn for generation in group]
        last = turn == self.config.max_turns
        calling = []
        for one, generation in zip(active, generations, strict=True):
            call = self._read(one, generation, last)
            if call is not None:
                calling.append((one, call))
        outcomes = self._caller.run([call for _, call in calling])
        for (one, call), outcome in zip(calling, outcomes, strict=True):
            self._tell(one, call, outcome)
        self._log_faults(outcomes)

    def _prompts(self, running: Sequence[_Running], turn: int) -> tuple[list[_Running], list[list[int]]]:
        """The dialogues that go on, and their prompts; those without room for a turn end."""
        active, prompts = [], []
        for number, one in enumerate(running):
            if one.finish:
                continue
            prompt = one.record.prompt()
            if prompt is not None:
                active.append(one)
                prompts.append(prompt)
            elif turn:
                one.finish, one.counts["unanswered"] = "length", 1
            else:
                raise PromptTooLongError(
                    f"the prompt of dialogue {number} and one turn do not fit into agent.max_tokens="
                    f"{self.config.max_tokens}: raise it, let a turn write less, or drop or cut long prompts"
                )
        return active, prompts

    def _read(self, one: _Running, generation: Generation, last: bool) -> ToolCall | None:
        """Adds what the model wrote; returns the call in it, or ends the dialogue, or tells that there is neither."""
        text = one.record.write(generation)
        one.counts["turns"] += 1
        if self.plain:
            one.finish = generation.finish
            return None
        found = self._call.search(text)
        if found is not None and found["tag"] == self.config.answer_tag:
            one.finish = "stop"
        elif last:
            one.finish, one.counts["unanswered"] = "turns", 1
        elif found is not None:
            one.counts["tool_calls"] += 1
            return ToolCall(found["tag"], found["body"].strip(), one.record.row)
        if found is None:
            one.counts["invalid_turns"] += 1
            one.record.reward(self.config.invalid_reward)
            one.record.give(f"My last turn has neither a call nor an answer. {self._how_to_go_on()} Let me try again.")
        return None

    def _tell(self, one: _Running, call: ToolCall, outcome: ToolOutcome) -> None:
        """Shows the model the outcome of its call, or ends a dialogue with too many faults."""
        one.counts["tool_retries"] += outcome.attempts - 1
        if outcome.result is None:
            one.counts["tool_faults"] += 1
            one.counts["tool_timeouts"] += outcome.timed_out
            if one.counts["tool_faults"] > self.config.max_faults:
                one.finish, one.counts["unanswered"] = "fault", 1
            text = f"The {call.tag} tool did not answer{' in time' * outcome.timed_out}."
        else:
            one.record.reward(outcome.result.reward)
            one.counts["tool_problems"] += outcome.result.problem
            text = outcome.result.text
        text, cut = cut_text(self.tokenizer, text, self.config.result_tokens)
        one.counts["results_cut"] += cut
        one.record.give(f"<{RESULT_TAG}>{text.replace(f'</{RESULT_TAG}>', '')}</{RESULT_TAG}>")

    def _log_faults(self, outcomes: Sequence[ToolOutcome]) -> None:
        faults = [outcome.fault for outcome in outcomes if outcome.result is None]
        if faults:
            log.warning("%d of %d tool calls of a turn failed: %s", len(faults), len(outcomes), faults[0])
