"""Bad prompts, rewards and tools end a run of ``objective=grpo`` in one sentence, with exit status 1."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from toy_runs import config, last_words

PROMPT = {"prompt": "Where to?", "answer": "go east", "valid_actions": ["go east", "wait"], "data_source": "game"}
ALONE = ["mode=llm", "objective=grpo", "data.advantage=returns"]  # nobody plays: nothing but prompts, answers, updates
REWARDS = """
def no_number(answers):
    return [float("nan")] * len(answers)

def nothing(answers):
    return [None] * len(answers)
"""


def prompts(folder: Path, *lines: object) -> str:
    file = folder / "rows.jsonl"
    file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return f"experience.prompt_file={file}"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([PROMPT, "{broken"], r"rows\.jsonl, line 2: is not JSON .*it is '\{broken'"),
        (
            [PROMPT, PROMPT | {"data_source": "chess"}],
            r"reward\.sources has no rewards for \['chess'\].*for \['game'\]",
        ),
    ],
)
def test_prompts(lines, message, tmp_path: Path, tiny_encoder: Path, caplog):
    cfg = config(tmp_path / "run", tiny_encoder, [*ALONE, prompts(tmp_path, *lines)])
    assert re.search(message, last_words(cfg, caplog), re.DOTALL)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "no_number",
            r"reward 'custom' returned nan for an answer of data source 'game' .*return a finite number, or None",
        ),
        ("nothing", r"none of 4 samples can be trained on \(0 failed, 4 could not be scored\): look at generations"),
    ],
)
def test_rewards_of_the_user(name, message, tmp_path: Path, tiny_encoder: Path, caplog):
    (tmp_path / "mine.py").write_text(REWARDS)
    mine = [f"reward.rewards.custom.path={tmp_path / 'mine.py'}", f"reward.rewards.custom.name={name}"]
    rows = prompts(tmp_path, PROMPT, PROMPT)
    cfg = config(tmp_path / "run", tiny_encoder, [*ALONE, rows, "reward=custom", *mine])
    assert re.search(message, last_words(cfg, caplog), re.DOTALL)


def test_a_retriever_that_is_down(tmp_path: Path, tiny_encoder: Path, caplog):
    tools = ["prompt=think_answer", "agent=tools", "tool=search", "tool.search.url=http://127.0.0.1:1/retrieve"]
    cfg = config(tmp_path / "run", tiny_encoder, [*ALONE, prompts(tmp_path, PROMPT, PROMPT), *tools])
    assert re.search(r"127\.0\.0\.1:1/retrieve cannot be reached .* is the service up\?", last_words(cfg, caplog))
