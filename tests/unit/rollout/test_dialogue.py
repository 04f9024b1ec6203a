"""The mask of written tokens is exact, and a loss that keeps to it sees nothing else."""

import numpy as np
import pytest
import torch
from dialogues import play
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import perturb_given

from priorzero.rl.aggregation import UpdateSize, aggregate
from priorzero.rl.token_loss import LossInputs, ppo
from priorzero.rollout.dialogue import encode_start
from priorzero.text.chat import encode

PARTS = st.sampled_from(
    ["Hm, ", "é ☃ ", "<search>", "</search>", "<answer>", "</answer>", "<|im_end|>", "north", " \n"]
)
TURNS = st.lists(st.lists(PARTS, min_size=1, max_size=6).map("".join), min_size=6, max_size=6)


@pytest.fixture(scope="module")
def tokenizer(llm_path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(llm_path)


@settings(max_examples=40)
@given(turns=TURNS, mode=st.sampled_from(["dialogue", "step"]), seed=st.integers(0, 2**32 - 1))
def test_written_is_exactly_what_was_sampled(tokenizer, turns, mode, seed):
    results, generator = play(tokenizer, *turns, samples=2, mode=mode)
    for group, number in zip(results, (0, 1), strict=True):
        sampled = _of_dialogue(generator, number, int(group[0].counts["turns"]))
        assert [run for dialogue in group for run in _turn_runs(dialogue)] == sampled
        for dialogue in group:
            assert ((dialogue.rollout_logprobs != 0) == dialogue.written).all()
            assert len(dialogue.turn_ends) == len(dialogue.turn_rewards)
            _assert_only_written_tokens_matter(dialogue, np.random.default_rng(seed))
    _assert_prompts_only_grow(generator, mode)


def test_a_result_is_tokenised_as_in_a_text_that_goes_on_with_a_tag(tokenizer):
    text = "\n\n<information>b</information>\n\n"
    start = encode_start(tokenizer, text)
    assert tokenizer.decode(start) == text
    assert encode(tokenizer, f"{text}<answer>c</answer>")[: len(start)] == start
    assert encode(tokenizer, text) != start  # two line feeds at an end are a token that no tag follows
    assert tokenizer.decode(encode_start(tokenizer, "none of these x ")) == "none of these x "


def _turn_runs(dialogue):
    """The tokens of each turn, found from the turn ends and the mask alone."""
    starts = [0, *(end + 1 for end in dialogue.turn_ends)]
    turns = [slice(start, end + 1) for start, end in zip(starts, dialogue.turn_ends, strict=False)]
    tokens = np.array(dialogue.tokens)
    assert not dialogue.written[starts[-1] :].any()
    return [tuple(tokens[turn][dialogue.written[turn]].tolist()) for turn in turns]


def _of_dialogue(generator, number, turns):
    """What the generator wrote in the turns of dialogue ``number`` of two; where only one goes on, a call has one."""
    written, place = [], 0
    sizes = [len(prompts) * samples for prompts, _, samples in generator.asked]
    for turn in range(turns):
        at = number if sizes[turn] == 2 else 0
        written.append(generator.written[place + at])
        place += sizes[turn]
    return written


def _assert_prompts_only_grow(generator, mode):
    if mode == "step":
        return
    starts = generator.asked[0][0] * 2
    for prompts, _, _ in generator.asked[1:]:
        for prompt in prompts:
            assert any(prompt[: len(start)] == start for start in starts)
        starts = prompts


def _assert_only_written_tokens_matter(dialogue, rng):
    written = dialogue.written[None]
    values = np.float32(rng.normal(size=(3, 1, len(dialogue.tokens))))

    def loss(logprobs, old, advantages):
        mask = torch.from_numpy(written)
        logprobs = torch.from_numpy(logprobs).requires_grad_()
        inputs = LossInputs(
            logprobs=logprobs, old_logprobs=torch.from_numpy(old), advantages=torch.from_numpy(advantages), mask=mask
        )
        tokens = ppo(inputs, clip_low=0.2, clip_high=0.2, dual_clip=None).loss
        size = UpdateSize(tokens=int(written.sum()), sequences=1, world_size=1)
        total = aggregate(tokens, mask, mode="token-mean", size=size)
        total.backward()
        return total.item(), logprobs.grad

    plain, gradient = loss(*values)
    perturbed, other_gradient = loss(*(perturb_given(v, written, rng) for v in values))
    assert plain == perturbed
    torch.testing.assert_close(gradient, other_gradient, rtol=0, atol=0)
    assert (gradient[~torch.from_numpy(written)] == 0).all()
