"""Times the prior: 20 actions after a prompt of 500 tokens, packed as runs do it, and each action as a row of its own.

From the root of the repository: ``python -m benchmarks.prior_scoring`` (CPU, two threads, float32) or
``python -m benchmarks.prior_scoring --device cuda`` (bfloat16, 1 and 8 prompts at once). Minutes on a CPU, nearly all
of them in the naive ways.

The naive way is that of the PriorZero of LightZero where its own model scores actions (``Actor.forward`` in
``zoo/jericho/priorzero/models/actor.py``, main at 97c9843): each action is a row of prompt and action, rows are padded
on the left to one length, and micro-batches of 32 go through the whole model and a float32 log-softmax over the
vocabulary: at every token ("padded rows, all logits"), or only where the actions are ("action logits", its
``logits_to_keep``). "One row at a time" is the plain loop. All of these get their prompts as tokens, and so does
"packed"; the time of the prior as a whole, from situations, is a row of its own.

First all ways must give the same log-probabilities in float32: the program ends with 1 where they differ by more than
1e-4. The column ``max_difference`` is the largest difference of an action's log-probability from the naive float32 one.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.llm_inputs import builder, situations, spread
from benchmarks.timing import machine, row, show, write_json
from priorzero.policy.load import LanguageModel, load_llm
from priorzero.prior.llm import LLMPrior
from priorzero.prior.scorer import PackedScorer

TOLERANCE = 1e-4
NAIVE = "naive: padded rows, all logits"
PEERS = {NAIVE: "x", "naive: padded rows, action logits": "x_action_logits", "naive: one row at a time": "x_one_by_one"}


@torch.no_grad()
def naive(language_model: LanguageModel, asked: Asked, micro_batch: int, all_logits: bool) -> list[np.ndarray]:
    """Log-probabilities of the actions of each prompt, normalised over them; see above."""
    rows = [
        (prompt, answer) for prompt, answers in zip(asked.prompts, asked.answers, strict=True) for answer in answers
    ]
    device = next(language_model.model.parameters()).device
    sums: list[Tensor] = []
    for part in (rows[i : i + micro_batch] for i in range(0, len(rows), micro_batch)):
        padded, mask, position = left_padded(part, language_model.pad_id, device)
        lengths = torch.tensor([len(answer) for _, answer in part], device=device)
        keep = 0 if all_logits else int(lengths.max()) + 1  # 0: all
        out = language_model.model(
            input_ids=padded, attention_mask=mask, position_ids=position, use_cache=False, logits_to_keep=keep
        )
        logits = out.logits.float()[:, :-1]
        count = logits.shape[1]
        logprobs = logits.gather(-1, padded[:, -count:, None])[..., 0] - logits.logsumexp(-1)
        own = torch.arange(count, device=device) >= count - lengths[:, None]
        sums.append(logprobs.where(own, 0.0).sum(-1))
    return [s.log_softmax(-1).cpu().numpy() for s in torch.cat(sums).split([len(a) for a in asked.answers])]


def left_padded(
    rows: Sequence[tuple[Sequence[int], Sequence[int]]], pad_id: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, attention mask and positions [B, L] of rows of prompt and answer."""
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    gaps = [width - len(prompt) - len(answer) for prompt, answer in rows]
    tokens = [[pad_id] * gap + [*prompt, *answer] for gap, (prompt, answer) in zip(gaps, rows, strict=True)]
    mask = torch.arange(width) >= torch.tensor(gaps)[:, None]
    position = (mask.long().cumsum(-1) - 1).clamp(min=0)
    return torch.tensor(tokens, device=device), mask.long().to(device), position.to(device)


@dataclass(frozen=True)
class Asked:
    """What every way is asked."""

    prompts: list[list[int]]
    answers: list[list[list[int]]]


def packed(scorer: PackedScorer, asked: Asked) -> list[np.ndarray]:
    """The same from our scorer."""
    found: list[np.ndarray] = [np.zeros(0)] * len(asked.prompts)
    for order, sums, _ in scorer.score(asked.prompts, asked.answers):
        for i, own in zip(order, sums, strict=True):
            found[i] = own[: len(asked.answers[i])].log_softmax(-1).numpy()
    return found


def timed(
    run: Callable[[], list[np.ndarray]], samples: int, warm_ups: int, device: torch.device
) -> tuple[list[np.ndarray], list[float], float]:
    """What ``run`` returned, milliseconds of each sample, seconds of processor time a sample."""
    for _ in range(warm_ups):
        run()
    times, begin, found = [], time.process_time(), []
    for _ in range(samples):
        start = time.perf_counter()
        found = run()  # ends with a copy to the host
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append((time.perf_counter() - start) * 1e3)
    return found, times, (time.process_time() - begin) / samples


def make_scorer(
    language_model: LanguageModel, options: argparse.Namespace, graphs: bool, compiled: bool = False
) -> PackedScorer:
    """The class that runs use, with their settings."""
    return PackedScorer(
        language_model.model,
        language_model.pad_id,
        row_tokens=512,
        max_batch_tokens=options.max_batch_tokens,
        cuda_graphs=graphs,
        compiled=compiled,
    )


def ways(
    language_model: LanguageModel, options: argparse.Namespace, count: int
) -> tuple[Asked, dict[str, Callable[[], list[np.ndarray]]]]:
    """Our ways, then the naive ones: the short ones warm the machine up."""
    prompts = builder(language_model.tokenizer, options.tokens)
    played = situations(count, options.actions)
    asked = Asked([prompts.prompt(s) for s in played], [prompts.answers(s.valid_actions) for s in played])
    prior = LLMPrior(
        language_model,
        prompts,
        temperature=1.0,
        normalise_length=False,
        cache_size=0,  # every call computes
        row_tokens=512,
        max_batch_tokens=options.max_batch_tokens,
        cuda_graphs=True,
        compiled=False,
    )
    found: dict[str, Callable[[], list[np.ndarray]]] = {}
    for graphs in (False, True) if options.device == "cuda" else (False,):
        scorer = make_scorer(language_model, options, graphs)
        found["packed, CUDA graphs" if graphs else "packed"] = lambda scorer=scorer: packed(scorer, asked)
    found["prior.score, from situations"] = lambda: list(prior.score(played).logprobs)
    forms = ((options.micro_batch, True), (options.micro_batch, False), (1, False))
    for name, (micro_batch, all_logits) in zip(PEERS, forms, strict=True):
        found[name] = lambda m=micro_batch, a=all_logits: naive(language_model, asked, m, a)
    return asked, found


def load(options: argparse.Namespace, dtype: str) -> LanguageModel:
    """The model, on the device."""
    return load_llm(
        options.source,
        dtype=dtype,
        device=options.device,
        attn_implementation="sdpa",
        lora=None,
        gradient_checkpointing=False,
    )


def measure(options: argparse.Namespace, count: int) -> tuple[list[dict[str, Any]], float]:
    """Rows of the table for ``count`` prompts at once, and the largest difference in float32."""
    device, language_model = torch.device(options.device), load(options, "float32")
    asked, runs = ways(language_model, options, count)
    print(
        f"\n{count} prompts of {spread([len(p) for p in asked.prompts])} tokens, {options.actions} actions of "
        f"{spread([len(a) for answers in asked.answers for a in answers])} tokens each", flush=True
    )  # fmt: skip
    results: dict[str, tuple[list[np.ndarray], list[float], float]] = {}
    worst, reference = 0.0, None
    if device.type == "cuda":  # in float32 first, untimed; the second call is recorded, the third replayed
        exact = {name: [run() for _ in range(1 if name in PEERS else 3)][-1] for name, run in runs.items()}
        reference = exact[NAIVE]
        worst = max(difference(found, reference) for found in exact.values())
        language_model = load(options, "bfloat16")
        _, runs = ways(language_model, options, count)
    if options.compile:  # made when its turn comes, as the last: it changes the layers of the model
        make = cache(lambda: make_scorer(language_model, options, graphs=True, compiled=True))
        runs["packed, compiled, CUDA graphs"] = lambda: packed(make(), asked)
    for name, run in runs.items():
        peer = name in PEERS
        samples = (options.naive_samples or (5 if device.type == "cuda" else 1)) if peer else options.samples
        results[name] = timed(run, samples, 0 if peer and device.type == "cpu" else 3, device)
        print(f"  {name}: {min(results[name][1]):,.1f} ms", flush=True)
    if reference is None:
        reference = results[NAIVE][0]
        worst = max(difference(found, reference) for found, _, _ in results.values())
    rows = [
        row(name, times, B=count, cpu_s=round(cpu, 3), max_difference=f"{difference(found, reference):.1g}")
        for name, (found, times, cpu) in results.items()
    ]
    medians = {r["what"]: r["median_ms"] for r in rows}
    for r in rows:
        r["states_per_s"] = count / r["median_ms"] * 1e3
        r |= {column: medians[peer] / r["median_ms"] for peer, column in PEERS.items()}
    return rows, worst


def difference(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> float:
    """The largest difference of an action's log-probability."""
    return max(float(np.abs(x - y).max()) for x, y in zip(a, b, strict=True))


def main() -> None:
    """Prints the table and writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--source", default="smollm2-135m-instruct", help="a model, as in llm.source")
    parser.add_argument("--batches", type=int, nargs="*", help="prompts at once; 1 on a CPU, 1 and 8 on a GPU")
    parser.add_argument("--tokens", type=int, default=500, help="of a prompt, at most")
    parser.add_argument("--actions", type=int, default=20)
    parser.add_argument("--micro-batch", type=int, default=32, help="rows of the naive ways in one forward pass")
    parser.add_argument("--max-batch-tokens", type=int, default=16384, help="as prior.max_batch_tokens")
    parser.add_argument("--samples", type=int, default=7)
    parser.add_argument("--naive-samples", type=int, help="1 on a CPU, 5 on a GPU")
    parser.add_argument("--compile", action="store_true", help="also with compiled layers (a minute more)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", default="", help="where to write the rows, if not to logs/benchmarks")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows, worst = [], 0.0
    for count in options.batches or ((1, 8) if options.device == "cuda" else (1,)):
        more, apart = measure(options, count)
        rows, worst = rows + more, max(worst, apart)
    print(machine())
    show(rows)
    print(f"largest difference of a log-probability between the ways in float32: {worst:.2g}")
    write_json(
        options.json or f"prior_scoring-{options.device}", rows, settings=vars(options), float32_difference=worst
    )
    if not worst <= TOLERANCE:
        sys.exit(f"FAILED: in float32 the ways differ by more than {TOLERANCE}")


if __name__ == "__main__":
    main()
