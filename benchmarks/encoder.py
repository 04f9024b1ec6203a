"""Times the sentence encoder: distinct texts, and texts that it has seen.

From the root of the repository: ``OMP_NUM_THREADS=1 python -m benchmarks.encoder --source all-minilm-l6-v2`` (an
embedded model, a folder or a hub name). The plain implementation pads every text to ``max_tokens`` and encodes every
time, which is what the reference does.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import numpy as np
import torch

from benchmarks.timing import cpu_ms, machine, row, show, wall_ms, write_json
from priorzero.text.encoder import SentenceEncoder

WORDS = "you are in a dark room with a brass lamp and the door to the north is open take look go west key troll".split()


def texts(count: int, seed: int) -> list[str]:
    """Distinct room descriptions of 10 to 80 words."""
    rng = np.random.default_rng(seed)
    return [f"{seed} {i} " + " ".join(rng.choice(WORDS, rng.integers(10, 80))) for i in range(count)]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="all-minilm-l6-v2")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--json", default="", help="where to write the rows, if not to logs/benchmarks")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda, but torch sees no CUDA device: " + str(machine()))
    if options.device == "cpu":
        torch.set_num_threads(1)
    settings: dict[str, Any] = {"pooling": "mean", "normalise": True, "max_tokens": options.max_tokens}
    encoder = SentenceEncoder(options.source, **settings, cache_size=100_000, batch_size=16, device=options.device)
    seeds = iter(range(1000))
    known = texts(options.texts, 5000)
    encoder.encode(known)

    def measure(run: Any) -> list[float]:
        device = torch.device(options.device)
        return cpu_ms(run, options.samples) if device.type == "cpu" else wall_ms(run, options.samples, 2, device)

    @torch.inference_mode()
    def plain() -> None:
        batch = encoder._tokenizer(known, padding="max_length", truncation=True, max_length=options.max_tokens,
                                   return_tensors="pt")  # fmt: skip
        encoder._model(**{name: x.to(options.device) for name, x in batch.items()})

    rows = [
        row("texts never seen", measure(lambda: encoder.encode(texts(options.texts, next(seeds))))),
        row("texts seen before", measure(lambda: encoder.encode(known))),
        row("plain: padded, no cache", measure(plain)),
    ]
    for r in rows:
        r["texts_per_s"] = options.texts / r["median_ms"] * 1e3
    print(machine(), f"{options.texts} texts")
    show(rows)
    write_json(options.json or f"encoder-{options.device}", rows, texts=options.texts, source=options.source)


if __name__ == "__main__":
    main()
