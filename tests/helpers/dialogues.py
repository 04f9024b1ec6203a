"""Dialogues of fixed texts: what the tests of the agent loop share."""

from __future__ import annotations

import numpy as np
from scripted import ScriptedGenerator

from priorzero.rollout.agent import COUNTS, AgentConfig, AgentLoop
from priorzero.rollout.base import Sampling
from priorzero.rollout.calls import CallConfig
from priorzero.rollout.tools import ToolResult
from priorzero.types import Message, PromptRow

ROW = PromptRow((Message("user", "Who?"),), answer="Ann", group_id="g", state_id="s")
SAMPLING = Sampling(temperature=1.0, top_p=1.0, max_tokens=40, stop=(), seed=7)
CONFIG = {
    "mode": "dialogue",
    "max_turns": 2,
    "max_tokens": 1000,
    "history_turns": 4,
    "result_tokens": 20,
    "answer_tag": "answer",
    "instructions": False,
    "invalid_reward": -0.5,
    "max_faults": 0,
}
CALLS = {"timeout": 20.0, "attempts": 1, "pause": 0.0, "threads": 4}


class Echo:
    """Answers a query with the query; reward 0.25."""

    tag, example, purpose, batch, concurrent = "search", "query", "search", 2, True

    def __init__(self):
        self.calls = []

    def call(self, queries, rows):
        self.calls.append(list(queries))
        return [self.answer(query) for query in queries]

    def answer(self, query):
        if query == "bad":
            return ToolResult("No.", problem=True)
        return ToolResult(f"found {query}", reward=0.25)

    def check(self):
        pass


def build(tokenizer, *texts, tools=None, calls=CALLS, **config):
    tools = [Echo()] if tools is None else tools
    generator = ScriptedGenerator(tokenizer, *texts)
    return AgentLoop(generator, tokenizer, tools, AgentConfig(**{**CONFIG, **config}), CallConfig(**calls)), generator


def play(tokenizer, *texts, rows=(ROW,), samples=1, **settings):
    loop, generator = build(tokenizer, *texts, **settings)
    return loop.run(rows, SAMPLING, samples), generator


def the(results):
    """The only dialogue."""
    ((dialogue,),) = results
    return dialogue


def written_runs(dialogue):
    edges = np.flatnonzero(np.diff(dialogue.written, prepend=False, append=False))
    return [dialogue.tokens[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True)]


def counted(dialogue):
    assert set(dialogue.counts) == set(COUNTS)
    return {name: n for name, n in dialogue.counts.items() if n}
