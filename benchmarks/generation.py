"""Times text generation: the plain ``generate`` of transformers, our backend on transformers, and vLLM.

Run from the root of the repository, on an idle machine: ``python -m benchmarks.generation [--device cuda]``. Each way
answers the same prompts with the same number of samples, always ``--max-tokens`` long (the end of a turn is put off, so
that all write equally much). Prints a table and writes JSON: seconds until a way is ready (model loaded; for
vLLM with its import), and tokens a second of the fastest of ``--repeats`` runs, after one that is not counted.

vLLM runs in this process where it is installed. Where it lives elsewhere, say where, and it runs in a process of its
own: ``--vllm-python PROGRAM`` (a Python that has vLLM and what this package needs) or ``--vllm-path FOLDER`` (of
``pip install --target FOLDER``). Where neither is given and it is not installed, its row is left out and said to be.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from priorzero.policy.load import LanguageModel, load_llm
from priorzero.rollout.base import Sampling, TextGenerator
from priorzero.utils.models import resolve

ROOT = Path(__file__).resolve().parents[1]
VLLM = "rollout=vllm"
ASKS = (
    "You are in an open field west of a white house. There is a small mailbox here. What do you do?",
    "You are in the kitchen of the white house. On the table is a brown sack. Think first, then name one action.",
    "It is pitch black. You are likely to be eaten by a grue. What now?",
    "Name three things that an adventurer should carry, and say why.",
)
Row = dict[str, Any]


def prompts(tokenizer: Any, count: int) -> list[list[int]]:
    """Chat prompts of different lengths."""
    told = "You have walked for a while. " * 8
    chats = [[{"role": "user", "content": told * (i % 3) + ASKS[i % len(ASKS)]}] for i in range(count)]
    return [tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False) for chat in chats]


def plain(language_model: LanguageModel, asked: list[list[int]], sampling: Sampling, samples: int) -> int:
    """``generate`` of transformers as in its documentation: one left-padded batch, every sample a row of its own."""
    rows = [prompt for prompt in asked for _ in range(samples)]
    batch = language_model.tokenizer.pad({"input_ids": rows}, padding_side="left", return_tensors="pt")
    batch = batch.to(next(language_model.model.parameters()).device)
    with torch.no_grad():
        model: Any = language_model.model
        out = model.generate(
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


def fastest(run: Callable[[], int], repeats: int, start_s: float) -> Row:
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
    speed = round(tokens / seconds, 1)
    return {"start_s": round(start_s, 1), "tokens": tokens, "seconds": round(seconds, 3), "tokens_per_s": speed}


def written(generator: TextGenerator, asked: list[list[int]], sampling: Sampling, samples: int) -> int:
    """Tokens that a backend wrote."""
    return sum(len(g.tokens) for row in generator.generate(asked, sampling, samples) for g in row)


def by_transformers(options: argparse.Namespace, asked: list[list[int]], sampling: Sampling) -> dict[str, Row]:
    """Rows of the two ways that transformers computes."""
    from priorzero.rollout.transformers_backend import TransformersGenerator

    begin = time.perf_counter()
    language_model = load_llm(
        options.source,
        dtype=dtype_of(options),
        device=options.device,
        attn_implementation="sdpa",
        lora=None,
        gradient_checkpointing=False,
    )
    started = time.perf_counter() - begin
    ours = endless(TransformersGenerator(language_model, max_batch_tokens=options.max_batch_tokens, seed=0))
    runs = {
        "transformers generate": lambda: plain(language_model, asked, sampling, options.samples),
        "rollout=transformers": lambda: written(ours, asked, sampling, options.samples),
    }
    return {name: fastest(run, options.repeats, started) for name, run in runs.items()}


def by_vllm(options: argparse.Namespace, asked: list[list[int]], sampling: Sampling) -> dict[str, Row]:
    """The row of vLLM, in this process."""
    from priorzero.rollout.vllm_backend import EngineConfig, VLLMGenerator

    cpu = options.device == "cpu"
    config = EngineConfig(
        dtype=dtype_of(options),
        max_model_len=2048,
        kv_cache_gib=1.0 if cpu else 8.0,
        block_size=32,
        enforce_eager=cpu,
        sleep=False,
        seed=0,
    )
    begin = time.perf_counter()
    engine = endless(VLLMGenerator(options.source, config, None))
    started = time.perf_counter() - begin
    row = fastest(lambda: written(engine, asked, sampling, options.samples), options.repeats, started)
    engine.close()
    return {VLLM: row}


def dtype_of(options: argparse.Namespace) -> str:
    """What a device computes best in."""
    return "float32" if options.device == "cpu" else "bfloat16"


def elsewhere(options: argparse.Namespace) -> dict[str, Any]:
    """What a process that has vLLM reports."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "vllm.json")
        same = ("device", "source", "prompts", "samples", "max-tokens", "repeats")
        settings = [f"--{name}={getattr(options, name.replace('-', '_'))}" for name in same]
        command = [options.vllm_python or sys.executable, "-m", "benchmarks.generation", "--only-vllm", *settings]
        places = [options.vllm_path and str(Path(options.vllm_path).resolve()), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places))}
        subprocess.run([*command, f"--json={file}"], cwd=ROOT, env=environment, check=True)
        return json.loads(file.read_text())


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One result a way, what was left out and why, and what the numbers depend on."""
    from transformers import AutoTokenizer

    asked = prompts(AutoTokenizer.from_pretrained(resolve(options.source)), options.prompts)
    sampling = Sampling(temperature=1.0, top_p=1.0, max_tokens=options.max_tokens, stop=(), seed=0)
    found: dict[str, Any] = {
        "prompts": hashlib.sha256(repr(asked).encode()).hexdigest(),
        "prompt_tokens": sum(map(len, asked)),
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "left_out": {},
        "results": {} if options.only_vllm else by_transformers(options, asked, sampling),
    }
    if options.vllm_python or options.vllm_path:
        other = elsewhere(options)
        if other["prompts"] != found["prompts"]:
            sys.exit("FAILED: the two processes do not ask the same: their tokenizers differ")
        found["results"] |= other["results"]
        found["vllm_versions"] = other["versions"]
    elif importlib.util.find_spec("vllm") is not None:
        found["results"] |= by_vllm(options, asked, sampling)
        found["versions"]["vllm"] = sys.modules["vllm"].__version__
    else:
        found["left_out"][VLLM] = "vLLM is not installed in this Python: give --vllm-python or --vllm-path"
    return found


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--source", default="smollm2-135m-instruct", help="a model, as in llm.source")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--samples", type=int, default=4, help="answers to each prompt")
    parser.add_argument("--max-tokens", type=int, default=64, help="length of every answer")
    parser.add_argument("--max-batch-tokens", type=int, default=65536, help="of our transformers backend")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--vllm-python", default="", help="a Python that has vLLM")
    parser.add_argument("--vllm-path", default="", help="a folder with vLLM, for this Python or that one")
    parser.add_argument("--only-vllm", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, default=Path("logs/benchmarks/generation.json"))
    return parser.parse_args()


def main() -> None:
    """Prints the table and writes the JSON file."""
    options = arguments()
    found = measure(options)
    if not options.only_vllm:
        base = found["results"]["transformers generate"]["tokens_per_s"]
        print(
            f"\n{options.prompts} prompts ({found['prompt_tokens']} tokens) x {options.samples} samples x "
            f"{options.max_tokens} tokens on {options.device}\n\n| way | start, s | tokens/s | x |\n|---|---|---|---|"
        )
        for name, row in found["results"].items():
            row["x"] = row["tokens_per_s"] / base
            print(f"| {name} | {row['start_s']:.1f} | {row['tokens_per_s']:,.0f} | {row['x']:.2f} |")
        for name, why in found["left_out"].items():
            print(f"LEFT OUT: {name}: {why}")
        print(found["versions"], found.get("vllm_versions", ""))
    settings = {name: str(value) for name, value in vars(options).items()}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"settings": settings, **found}, indent=2))
    print(f"written to {options.json}")


if __name__ == "__main__":
    main()
