"""The random language model of the tests, in float32 on the CPU unless told otherwise."""

from __future__ import annotations

from typing import Any

from priorzero.policy.load import LanguageModel, load_llm


def small_llm(source: str = "tiny-random", **changes: Any) -> LanguageModel:
    settings = {
        "dtype": "float32",
        "device": "cpu",
        "attn_implementation": "sdpa",
        "lora": None,
        "gradient_checkpointing": False,
    }
    return load_llm(source, **{**settings, **changes})
