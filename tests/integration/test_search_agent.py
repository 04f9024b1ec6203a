"""`experiment=search_agent` with a random language model and a real search service: it trains, or says why not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from search_service import needs_retriever, search_service
from toy_runs import config

from benchmarks.question_set import Room, documents_of, plain_row, questions_of, search_row
from priorzero.app.build import build_run
from priorzero.app.train import _rounds
from priorzero.data.prompts import write_prompts
from priorzero.rollout import retriever
from priorzero.rollout.web import ToolError

ROOMS = [Room("sauna", (("mop", "on the floor"),)), Room("attic", (("pen", "in the box"), ("egg", "on the shelf")))]
PLAIN = ["agent=plain", "tool=none"]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    needs_retriever()
    limits = retriever.Limits(body=100_000, queries=8, query_chars=1000, topk=5, requests=4)
    with search_service(retriever.Bm25Index(documents_of("Harper Farm", ROOMS)), limits, topk=1) as address:
        yield address


def prompts(folder: Path, plain: bool) -> str:
    rows = map(plain_row if plain else search_row, questions_of("Harper Farm", ROOMS))
    write_prompts(folder / "prompts.jsonl", rows)
    return f"experience.prompt_file={folder / 'prompts.jsonl'}"


@pytest.mark.parametrize("setting", [["experience.mask_given=false", "objective=ppo"], PLAIN])
def test_it_trains(setting: list[str], url: str, tiny_encoder: Path, tmp_path: Path):
    plain = setting == PLAIN
    service = [] if plain else [f"tool.search.url={url}"]
    file = prompts(tmp_path, plain)
    cfg = config(
        tmp_path / "a", tiny_encoder, ["experiment=search_agent", *setting, *service, file, "trainer.max_rounds=1"]
    )
    run = build_run(cfg)
    try:
        _rounds(run)
        metrics = run.learners["policy"].trainer.callback_metrics
        assert run.learners["policy"].module.global_step == 1
        assert {"reward/exact", "reward/answered", "rollout/tool_calls"} <= metrics.keys()
        assert len(run.replay) == 0  # nobody plays
        records = [json.loads(line) for line in (tmp_path / "a" / "generations.jsonl").read_text().splitlines()]
        assert {record["right"] for record in records} <= {"sauna", "attic"}
    finally:
        run.close()


def test_a_service_that_is_down_is_told_before_anything_is_done(tiny_encoder: Path, tmp_path: Path):
    settings = ["experiment=search_agent", prompts(tmp_path, False), "tool.search.url=http://127.0.0.1:1/retrieve"]
    with pytest.raises(ToolError, match=r"is the service up\? Start ours with python retrieve.py"):
        build_run(config(tmp_path / "a", tiny_encoder, settings))
