"""Times text generation: the plain ``generate`` of transformers, our backend on transformers, and vLLM where it is.

Run from the root of the repository, on an idle machine: ``python -m benchmarks.generation [--device cuda]``. Each way
answers the same prompts with the same number of samples, always ``--max-tokens`` long (the end of a turn is put off, so
that all write equally much). Prints a table and writes JSON: tokens a second, of the fastest of ``--repeats`` runs.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from priorzero.policy.load import LanguageModel, load_llm
from priorzero.rollout.base import Sampling, TextGenerator

ASKS = (
    "You are in an open field west of a white house. There is a small mailbox here. What do you do?",
    "You are in the kitchen of the white house. On the table is a brown sack. Think first, then name one action.",
    "It is pitch black. You are likely to be eaten by a grue. What now?",
    "Name three things that an adventurer should carry, and say why.",
)


def prompts(language_model: LanguageModel, count: int) -> list[list[int]]:
    """Chat prompts of different lengths."""
    told = "You have walked for a while. " * 8
    chats = [[{"role": "user", "content": told * (i % 3) + ASKS[i % len(ASKS)]}] for i in range(count)]
    template = language_model.tokenizer.apply_chat_template
    return [template(chat, add_generation_prompt=True, return_dict=False) for chat in chats]


def plain(language_model: LanguageModel, asked: list[list[int]], sampling: Sampling, samples: int) -> int:
    """``generate`` of transformers as in its documentation: one left-padded batch, every sample a row of its own."""
    rows = [prompt for prompt in asked for _ in range(samples)]
    batch = language_model.tokenizer.pad({"input_ids": rows}, padding_side="left", return_tensors="pt")
    batch = batch.to(next(language_model.model.parameters()).device)
    with torch.no_grad():
        out: Any = language_model.model.generate(
            **batch,
            do_sample=True,
            temperature=sampling.temperature,
            top_k=0,
            max_new_tokens=sampling.max_tokens,
            min_new_tokens=sampling.max_tokens,
            output_logits=True,
            return_dict_in_generate=True,
            use_cache=True,
        )
        torch.stack(out.logits, 1).log_softmax(-1).gather(-1, out.sequences[:, batch["input_ids"].shape[1] :, None])
    return len(rows) * sampling.max_tokens


def endless(generator: Any) -> TextGenerator:
    """The backend without any end of a turn."""
    generator._ends = type(generator._ends)()
    return generator


def fastest(run: Callable[[], int], repeats: int) -> dict[str, float]:
    """Tokens a second, after one run that is not counted."""
    run()
    rows = []
    for _ in range(repeats):
        begin = time.perf_counter()
        tokens = run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        rows.append((time.perf_counter() - begin, tokens))
    seconds, tokens = min(rows)
    return {"tokens": tokens, "seconds": round(seconds, 3), "tokens_per_s": round(tokens / seconds, 1)}


def written(generator: TextGenerator, asked: list[list[int]], sampling: Sampling, samples: int) -> int:
    """Tokens that a backend wrote."""
    return sum(len(g.tokens) for row in generator.generate(asked, sampling, samples) for g in row)


def vllm_generator(options: argparse.Namespace, dtype: str) -> TextGenerator:
    """A vLLM engine for the same model."""
    from priorzero.rollout.vllm_backend import EngineConfig, VLLMGenerator

    cpu = options.device == "cpu"
    engine = EngineConfig(
        dtype=dtype,
        max_model_len=2048,
        kv_cache_gib=1.0 if cpu else 8.0,
        block_size=32,
        enforce_eager=cpu,
        sleep=False,
        seed=0,
    )
    return VLLMGenerator(options.source, engine, None)


def measure(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """One entry a way."""
    dtype = "float32" if options.device == "cpu" else "bfloat16"
    language_model = load_llm(
        options.source,
        dtype=dtype,
        device=options.device,
        attn_implementation="sdpa",
        lora=None,
        gradient_checkpointing=False,
    )
    from priorzero.rollout.transformers_backend import TransformersGenerator

    sampling = Sampling(temperature=1.0, top_p=1.0, max_tokens=options.max_tokens, stop=(), seed=0)
    asked = prompts(language_model, options.prompts)
    ours = endless(TransformersGenerator(language_model, max_batch_tokens=options.max_batch_tokens, seed=0))
    found = {
        "transformers generate": fastest(
            lambda: plain(language_model, asked, sampling, options.samples), options.repeats
        ),
        "rollout=transformers": fastest(lambda: written(ours, asked, sampling, options.samples), options.repeats),
    }
    if importlib.util.find_spec("vllm") is None:
        print("vLLM is not installed here: its row is left out", file=sys.stderr)
        return found
    engine = endless(vllm_generator(options, dtype))
    found["rollout=vllm"] = fastest(lambda: written(engine, asked, sampling, options.samples), options.repeats)
    engine.close()
    return found


def main() -> None:
    """Prints the table and writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--source", default="smollm2-135m-instruct", help="a model, as in llm.source")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--samples", type=int, default=4, help="answers to each prompt")
    parser.add_argument("--max-tokens", type=int, default=64, help="length of every answer")
    parser.add_argument("--max-batch-tokens", type=int, default=65536, help="of our transformers backend")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", type=Path, default=Path("logs/benchmarks/generation.json"))
    options = parser.parse_args()
    found = measure(options)
    base = found["transformers generate"]["tokens_per_s"]
    print(
        f"\n{options.prompts} prompts x {options.samples} samples x {options.max_tokens} tokens on {options.device}\n"
    )
    print("| way | tokens/s | x |\n|---|---|---|")
    for name, row in found.items():
        print(f"| {name} | {row['tokens_per_s']:,.0f} | {row['tokens_per_s'] / base:.2f} |")
    packages = [name for name in ("torch", "transformers", "vllm") if importlib.util.find_spec(name)]
    versions = {name: sys.modules[name].__version__ for name in packages if name in sys.modules}
    settings = {name: str(value) for name, value in vars(options).items()}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"settings": settings, "versions": versions, "results": found}, indent=2))
    print(f"\nwritten to {options.json}")


if __name__ == "__main__":
    main()
