"""The embedded SmolLM2-135M-Instruct: prompts, packed scoring against the naive computation, one update."""

import numpy as np
import pytest
import torch

from priorzero.policy.load import LoraSettings, load_llm
from priorzero.policy.logprobs import answer_logprobs
from priorzero.policy.packing import pack
from priorzero.prior.llm import LLMPrior
from priorzero.text.prompt import PromptBuilder, PromptConfig
from priorzero.types import Observation, Situation, Turn

pytestmark = pytest.mark.slow

LORA = LoraSettings(r=4, alpha=8, dropout=0.0, target_modules="all-linear")
ACTIONS = ("go north", "go south", "open", "open mailbox", "take leaflet from mailbox", "look")
FIELD = Observation(
    "Opening the mailbox reveals a leaflet.", "West of House\nYou are in an open field. Score: 10  Moves: 3"
)
SITUATIONS = [
    Situation(FIELD, ACTIONS, (Turn(Observation("Welcome."), "open mailbox", 5.0),), goal="Find the treasure."),
    Situation(Observation("It is dark."), ("light lamp",)),
    Situation(Observation("A fork."), ("go east", "go west")),
]


@pytest.fixture(scope="module")
def language_model(llm_path):
    return load_llm(
        llm_path,
        dtype="float32",
        device="cpu",
        attn_implementation="sdpa",
        lora=LORA,
        gradient_checkpointing=False,
    )


def builder(tokenizer, format="plain"):
    config = PromptConfig(
        format=format,
        history_steps=2,
        max_tokens=512,
        show=("feedback", "look", "inventory"),
        show_valid_actions=False,
        show_rewards=True,
        truncate_observation=False,
        system=None,
    )
    return PromptBuilder(tokenizer, config)


def naive(model, prompt, answers):
    sums = []
    for answer in answers:
        logprobs = model(input_ids=torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        positions = torch.arange(len(prompt) - 1, len(prompt) + len(answer) - 1)
        sums.append(logprobs[positions, torch.tensor(answer)].sum())
    return torch.stack(sums)


@pytest.mark.parametrize("format", ["plain", "reasoning", "think_answer"])
def test_prompt_and_answer_are_the_tokens_of_the_whole_text(language_model, format):
    tokenizer = language_model.tokenizer
    prompts = builder(tokenizer, format)
    text = prompts.text(SITUATIONS[0])
    assert tokenizer.decode(prompts.prompt(SITUATIONS[0])) == text
    for action, answer in zip(ACTIONS, prompts.answers(ACTIONS), strict=True):
        whole = tokenizer(text + prompts.format.gap + action, add_special_tokens=False)["input_ids"]
        assert prompts.prompt(SITUATIONS[0]) + answer[:-1] == whole
        assert tokenizer.decode(answer[-1:]) == ("</" if format == "think_answer" else "<|im_end|>")


def test_packed_scores_equal_the_naive_ones(language_model):
    prompts = builder(language_model.tokenizer)
    tokens = [prompts.prompt(s) for s in SITUATIONS]
    answers = [prompts.answers(s.valid_actions) for s in SITUATIONS]
    with torch.no_grad():
        sums, _ = answer_logprobs(language_model.model, pack(tokens, answers, language_model.pad_id))
        for row, prompt, candidates in zip(sums, tokens, answers, strict=True):
            want = naive(language_model.model, prompt, candidates)
            torch.testing.assert_close(row[: len(want)], want, atol=1e-4, rtol=0)


def test_packed_gradients_equal_the_naive_ones(language_model):
    model, prompts = language_model.model, builder(language_model.tokenizer)
    prompt, answers = prompts.prompt(SITUATIONS[2]), prompts.answers(SITUATIONS[2].valid_actions)

    def gradients(sums):
        model.zero_grad()
        (-sums.log_softmax(-1)[0]).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if "lora_B" in name}

    packed = gradients(answer_logprobs(model, pack([prompt], [answers], language_model.pad_id))[0][0])
    for name, want in gradients(naive(model, prompt, answers)).items():
        torch.testing.assert_close(packed[name], want, atol=1e-4, rtol=1e-3, msg=name)
    model.zero_grad()


def test_prior_knows_something(language_model):
    prior = LLMPrior(
        language_model,
        builder(language_model.tokenizer),
        temperature=1.0,
        normalise_length=False,
        cache_size=10,
        row_tokens=256,
        max_batch_tokens=4096,
        cuda_graphs=False,
        compiled=False,
    )
    thirsty = Situation(
        Observation("You stand in the kitchen with a glass of water. You are very thirsty."),
        ("drink water", "jump on oven", "sing glass"),
        goal="Drink the water.",
    )
    result = prior.score([thirsty, *SITUATIONS])
    assert np.argmax(result.logprobs[0]) == 0
    assert [len(row) for row in result.logprobs] == [3, 6, 1, 2]
    assert prior.score([thirsty]).cache_hits == 1
