"""The agent loop with a real language model and a real search service."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from search_service import needs_retriever, search_service

from priorzero.policy.load import LanguageModel, load_llm
from priorzero.rollout import retriever
from priorzero.rollout.agent import AgentConfig, AgentLoop
from priorzero.rollout.base import Sampling
from priorzero.rollout.calls import CallConfig
from priorzero.rollout.corpus import Document
from priorzero.rollout.dialogue import written_text
from priorzero.rollout.tools import SearchTool
from priorzero.rollout.transformers_backend import TransformersGenerator
from priorzero.text.chat import row_tokens
from priorzero.types import Dialogue, Message, PromptRow

DOCUMENTS = [Document("0", "Lamp", "The brass lamp is in the attic."), Document("1", "Egg", "The egg is in the nest.")]
# All but the last character of a call: the model need only write that one, and then what it likes.
CALLING = PromptRow((Message("user", "Where is the lamp?"),), answer_prefix="<search>lamp</search", group_id="lamp")
FREE = PromptRow((Message("user", "Where is the egg? Say it in three words."),), group_id="egg")
SAMPLING = Sampling(temperature=0.7, top_p=1.0, max_tokens=6, stop=(), seed=3)


@pytest.fixture(scope="module")
def model(llm_path) -> LanguageModel:
    return load_llm(
        llm_path,
        dtype="float32",
        device="cpu",
        attn_implementation="sdpa",
        lora=None,
        gradient_checkpointing=False,
    )


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    needs_retriever()
    limits = retriever.Limits(body=100_000, queries=8, query_chars=1000, topk=5, requests=4)
    with search_service(retriever.Bm25Index(DOCUMENTS), limits, topk=1) as address:
        yield address


def play(model: LanguageModel, url: str, mode: str, rows: list[PromptRow], samples: int) -> list[list[Dialogue]]:
    config = AgentConfig(
        mode=mode,
        max_turns=1,
        max_tokens=600,
        history_turns=2,
        result_tokens=40,
        answer_tag="answer",
        instructions=True,
        invalid_reward=-0.1,
        max_faults=0,
    )
    tool = SearchTool(url=url, topk=1, timeout=10.0, max_bytes=100_000, max_query_chars=200, batch=4)
    calls = CallConfig(timeout=20.0, attempts=2, pause=0.01, threads=2)
    generator = TransformersGenerator(model, max_batch_tokens=4096, seed=0)
    return AgentLoop(generator, model.tokenizer, [tool], config, calls).run(rows, SAMPLING, samples)


def scored(model: LanguageModel, dialogue: Dialogue) -> np.ndarray:
    """[L] what the model gives each token of the sequence when it reads it as a whole; 0 for the first."""
    tokens = torch.tensor([dialogue.tokens])
    with torch.no_grad():
        logprobs = (model.model(tokens).logits[0, :-1].float() / SAMPLING.temperature).log_softmax(-1)
    return np.concatenate([[0.0], logprobs.gather(1, tokens[0, 1:, None])[:, 0].numpy()])


@pytest.fixture(scope="module", params=["dialogue", "step"])
def played(request: pytest.FixtureRequest, model: LanguageModel, url: str) -> list[list[Dialogue]]:
    """Two samples of each of two rows, in either mode."""
    return play(model, url, request.param, [CALLING, FREE], samples=2)


def test_what_was_sampled_is_what_a_trainer_scores(model: LanguageModel, played: list[list[Dialogue]]):
    assert [group[0].row.group_id for group in played] == ["lamp", "lamp", "egg", "egg"]
    for dialogue in (dialogue for group in played for dialogue in group):
        written = dialogue.written
        assert dialogue.valid
        assert dialogue.finish in ("stop", "turns")
        prompt = row_tokens(model.tokenizer, dialogue.row)
        assert list(dialogue.tokens[: len(prompt)]) == prompt
        assert not written[: len(prompt)].any()
        assert written[list(dialogue.turn_ends)].all()
        assert (dialogue.rollout_logprobs[~written] == 0).all()
        np.testing.assert_allclose(dialogue.rollout_logprobs[written], scored(model, dialogue)[written], atol=2e-3)


def test_the_model_reads_what_its_search_found(model: LanguageModel, played: list[list[Dialogue]]):
    asked = [group for group in played[:2] if group[0].counts["tool_calls"]]
    assert asked, "the model closes a tag that lacks its last character"
    for group in asked:
        last = group[-1]
        given = model.tokenizer.decode(np.array(last.tokens)[~last.written].tolist())
        assert "<information>Doc 1 (Title: Lamp) The brass lamp is in the attic.</information>" in given
        assert "<information>Doc 1" not in written_text(model.tokenizer, last)


def test_a_retriever_that_is_down_masks_what_asked_it(model: LanguageModel):
    ((dialogue,),) = play(model, "http://127.0.0.1:1/retrieve", "dialogue", [CALLING], samples=1)
    assert dialogue.counts["tool_calls"] == dialogue.counts["tool_retries"] == 1
    assert (dialogue.finish, dialogue.valid) == ("fault", False)
