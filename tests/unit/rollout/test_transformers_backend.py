import threading

import numpy as np
import pytest
import torch
from plain_generation import LORA, naive, sampling, weights
from small_llm import small_llm

from priorzero.policy.logprobs import packed_token_logprobs
from priorzero.policy.packing import pack
from priorzero.rollout.transformers_backend import TransformersGenerator


@pytest.fixture(scope="module")
def tiny():
    return small_llm()


TEXTS = ("open mailbox", "You are in the kitchen. On the table is a brown sack.", "go")


def build(language_model, **changes):
    return TransformersGenerator(language_model, **{"max_batch_tokens": 4096, "seed": 0, **changes})


def encode(language_model, texts=TEXTS):
    return [language_model.tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts]


CASES = [
    {"temperature": 1.0},
    {"temperature": 0.0},
    {"temperature": 0.6},
    {"temperature": 1.5, "top_p": 0.7},
    {"temperature": 1.0, "stop": ("e", "in the")},
]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("samples", [1, 3])
def test_equals_the_naive_loop(tiny, case, samples):
    prompts, how = encode(tiny), sampling(**case)
    got = build(tiny).generate(prompts, how, samples)
    uniform = torch.rand(
        len(prompts) * samples, how.max_tokens, generator=torch.Generator().manual_seed(3), dtype=torch.float64
    )
    assert [len(row) for row in got] == [samples] * len(prompts)
    for i, prompt in enumerate(prompts):
        for j in range(samples):
            tokens, logprobs, finish = naive(tiny.model, tiny.tokenizer, prompt, how, uniform[i * samples + j])
            assert got[i][j].tokens == tuple(tokens)
            assert got[i][j].finish == finish
            assert got[i][j].logprobs.dtype == np.float32
            np.testing.assert_allclose(got[i][j].logprobs, logprobs, atol=1e-4)


def test_what_prompts_share_is_computed_once(tiny):
    start = "You are in the kitchen. On the table is a brown sack. "
    prompts, how = encode(tiny, (f"{start}open mailbox", f"{start}go", f"{start}go", start)), sampling(max_tokens=3)
    generator, fed = build(tiny), []
    hook = generator._causal.register_forward_pre_hook(
        lambda module, args, kwargs: fed.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    got = generator.generate(prompts, how)
    hook.remove()
    shared = len(prompts[3]) - 1
    assert fed[:2] == [(1, shared), (3, len(prompts[0]) - shared)]
    uniform = torch.rand(4, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for prompt, (answer,), random in zip(prompts, got, uniform, strict=True):
        tokens, logprobs, finish = naive(tiny.model, tiny.tokenizer, prompt, how, random)
        assert (answer.tokens, answer.finish) == (tuple(tokens), finish)
        np.testing.assert_allclose(answer.logprobs, logprobs, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("case", [{"stop": ("Hello", ".")}, {"temperature": 0.6, "top_p": 0.9}])
def test_equals_the_naive_loop_with_the_embedded_model(llm_path, case):
    model = small_llm(llm_path)
    ask = [[{"role": "user", "content": t}] for t in ("Name a colour.", "What is two plus two? Be brief.")]
    prompts = [model.tokenizer.apply_chat_template(m, add_generation_prompt=True, return_dict=False) for m in ask]
    how = sampling(max_tokens=8, **case)
    got = build(model).generate(prompts, how, samples=2)
    uniform = torch.rand(4, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for i, prompt in enumerate(prompts):
        for j in range(2):
            tokens, logprobs, finish = naive(model.model, model.tokenizer, prompt, how, uniform[2 * i + j])
            assert (got[i][j].tokens, got[i][j].finish) == (tuple(tokens), finish)
            np.testing.assert_allclose(got[i][j].logprobs, logprobs, atol=1e-4)
    agrees_with_the_trainer(model, prompts, got, how.temperature or 1.0)


def agrees_with_the_trainer(model, prompts, got, temperature):
    if temperature != 1.0:
        return
    packed = pack(prompts, [[list(g.tokens) for g in row] for row in got], model.pad_id)
    with torch.no_grad():
        want = packed_token_logprobs(model.model, packed)
    have = np.zeros(len(want), np.float32)
    for slot, answer in enumerate(g for row in got for g in row):
        have[(packed.score_slot == slot).numpy()] = answer.logprobs
    np.testing.assert_allclose(have, want.numpy(), atol=1e-4)


@pytest.mark.parametrize("lora", [None, LORA])
def test_logprobs_are_those_of_the_trainer(lora):
    model = small_llm(lora=lora)
    generator = build(model)
    generator.load_weights(weights(model.model, add=0.01), version=1)
    prompts = encode(model)
    agrees_with_the_trainer(model, prompts, generator.generate(prompts, sampling(), samples=4), 1.0)


def test_answers_do_not_depend_on_the_batch(tiny):
    prompts, how = encode(tiny), sampling(stop=("e",))
    together = build(tiny).generate(prompts, how, samples=3)
    for budget in (1, 60):
        apart = build(tiny, max_batch_tokens=budget).generate(prompts, how, samples=3)
        assert [[g.tokens for g in row] for row in apart] == [[g.tokens for g in row] for row in together]


def test_batches_keep_the_budget(tiny):
    prompts = [[5] * n for n in (10, 30, 20)]
    generator = build(tiny, max_batch_tokens=80)
    seen = []
    run = generator._run
    generator._run = lambda p, rows, how: (seen.append([len(p[r.prompt]) for r in rows]), run(p, rows, how))
    generator.generate(prompts, sampling(max_tokens=10), samples=2)
    assert seen == [[30, 30], [20, 20], [10, 10]]


def test_eos_is_kept_and_ends_the_answer(tiny):
    generator, eos = build(tiny), tiny.tokenizer.eos_token_id
    answers = generator.generate(encode(tiny), sampling(temperature=3.0, max_tokens=60), samples=8)
    ended = [g for row in answers for g in row if g.finish == "stop"]
    assert ended
    assert all(g.tokens[-1] == eos and eos not in g.tokens[:-1] for g in ended)
    assert all(len(g.tokens) == 60 for row in answers for g in row if g.finish == "length")
    assert all(len(g.tokens) == len(g.logprobs) for row in answers for g in row)


def test_seeds(tiny):
    prompts = encode(tiny)
    first = build(tiny)
    once, again = first.generate(prompts, sampling()), first.generate(prompts, sampling())
    assert once[0][0].tokens == again[0][0].tokens
    stream = [first.generate(prompts, sampling(seed=None))[0][0].tokens for _ in range(2)]
    assert stream[0] != stream[1]
    second = build(tiny)
    assert [second.generate(prompts, sampling(seed=None))[0][0].tokens for _ in range(2)] == stream
    assert build(tiny, seed=1).generate(prompts, sampling(seed=None))[0][0].tokens != stream[0]
    state = torch.random.get_rng_state()
    first.generate(prompts, sampling())
    assert torch.equal(state, torch.random.get_rng_state())


def test_new_weights_change_what_is_written():
    model = small_llm(lora=LORA)
    generator = build(model)
    before = generator.generate(encode(model), sampling())
    generator.load_weights(weights(model.model, add=0.3), version=7)
    after = generator.generate(encode(model), sampling())
    assert generator.version == 7
    assert np.abs(before[0][0].logprobs[0] - after[0][0].logprobs[0]) > 1e-4
    with pytest.raises(ValueError, match="same LoRA settings"):
        generator.load_weights({"nothing": torch.zeros(1)}, version=8)
    assert generator.version == 7


def test_metrics_count_since_the_last_call(tiny):
    generator, prompts = build(tiny), encode(tiny)
    answers = generator.generate(prompts, sampling(max_tokens=5), samples=2)
    metrics = generator.metrics()
    assert metrics["rollout/prompts"] == 3
    assert metrics["rollout/answers"] == 6
    assert metrics["rollout/prompt_tokens"] == sum(map(len, prompts))
    assert metrics["rollout/tokens"] == sum(len(g.tokens) for row in answers for g in row)
    assert metrics["rollout/tokens_per_s"] > 0
    assert metrics["rollout/cut_rate"] == np.mean([g.finish == "length" for row in answers for g in row])
    assert generator.metrics()["rollout/answers"] == 0
    generator.sleep()
    generator.close()


def test_refusals(tiny):
    generator = build(tiny)
    assert generator.generate([], sampling()) == []
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        generator.generate([[5], []], sampling())
    with pytest.raises(ValueError, match="context of 4096"):
        generator.generate([[5] * 4090], sampling())
    with pytest.raises(ValueError, match="samples"):
        generator.generate([[5]], sampling(), samples=0)
    with pytest.raises(ValueError, match="max_batch_tokens"):
        build(tiny, max_batch_tokens=0)
    for wrong in ({"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}, {"max_tokens": 0}, {"stop": ("",)}):
        with pytest.raises(ValueError, match=next(iter(wrong)).partition("_")[0]):
            sampling(**wrong)


def test_broken_weights_are_an_error():
    model = small_llm()
    generator = build(model)
    generator.load_weights({n: torch.full_like(w, torch.nan) for n, w in weights(model.model).items()}, version=1)
    with pytest.raises(RuntimeError, match="nan"):
        generator.generate([[5]], sampling())


def test_weights_may_arrive_while_another_thread_writes():
    model = small_llm(lora=LORA)
    generator, prompts = build(model), encode(model)
    state, want, results = weights(model.model), build(model).generate(prompts, sampling()), []
    thread = threading.Thread(target=lambda: results.extend(generator.generate(prompts, sampling()) for _ in range(5)))
    thread.start()
    for version in range(1, 11):
        generator.load_weights(state, version)
    thread.join()
    assert [row[0].tokens for result in results for row in result] == [row[0].tokens for row in want] * 5
