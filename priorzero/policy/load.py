"""Loads a language model and its tokenizer; the only home of transformers and peft."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

TINY_RANDOM = "tiny-random"
ATTENTION = ("eager", "sdpa")


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685).

    Attributes:
        r: rank.
        alpha: the update is scaled by alpha / r.
        dropout: dropout on the adapter's input.
        target_modules: names of the linear layers to adapt, or "all-linear".
    """

    r: int
    alpha: float
    dropout: float
    target_modules: str | tuple[str, ...]


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model (a peft model where it has adapters), its tokenizer, and where they came from."""

    model: nn.Module
    tokenizer: Any
    source: str

    @property
    def has_adapters(self) -> bool:
        """Whether only adapters are trained."""
        return is_adapted(self.model)

    @property
    def pad_id(self) -> int:
        """Token of the padding."""
        return self.tokenizer.pad_token_id


def load_llm(
    source: str | Path,
    *,
    dtype: str | torch.dtype,
    device: str | torch.device,
    attn_implementation: str,
    lora: LoraSettings | None,
    gradient_checkpointing: bool,
) -> LanguageModel:
    """Loads a causal language model, in eval mode.

    Args:
        source: a directory, a name of our catalogue, a hub name, or "tiny-random": a random 2-layer Llama with a small
            byte-level tokenizer, built in code, always the same, for tests and dry runs.
        dtype: of the weights; "float32" on a CPU ("bfloat16" is six times slower there), "bfloat16" on a GPU.
        device: where the weights go.
        attn_implementation: "sdpa" or "eager"; others take no tree mask.
        lora: adapters to train; None trains every weight.
        gradient_checkpointing: keep only layer inputs in training, and compute the rest again.

    Raises:
        ValueError: an argument is not one of the above.
        ModelSourceError: the source is not there (from ``priorzero.utils.models.resolve``).
    """
    if attn_implementation not in ATTENTION:
        raise ValueError(f"attn_implementation {attn_implementation!r} takes no tree mask: choose sdpa or eager")
    dtype = _dtype(dtype)
    if str(source) == TINY_RANDOM:
        model, tokenizer = _tiny_random(dtype, attn_implementation)
    else:
        model, tokenizer = _from_files(str(source), dtype, attn_implementation)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.use_cache = False
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if lora is not None:
        model = _adapt(model, lora)
    return LanguageModel(model.to(device).eval(), tokenizer, str(source))


def is_adapted(model: nn.Module) -> bool:
    """Whether ``model`` is a peft model."""
    from peft import PeftModel

    return isinstance(model, PeftModel)


def causal_lm(model: nn.Module) -> nn.Module:
    """The transformers model inside a peft model (adapters stay active), or the model itself."""
    return model.get_base_model() if is_adapted(model) else model


def without_adapters(model: nn.Module) -> AbstractContextManager[None]:
    """Within it, the peft model computes what it was before any adapter."""
    return model.disable_adapter()


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in names:
        raise ValueError(f"unknown dtype {dtype!r}: choose one of {', '.join(names)}")
    return names[dtype]


def _from_files(source: str, dtype: torch.dtype, attn_implementation: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from priorzero.utils.models import resolve

    place = resolve(source)
    model = AutoModelForCausalLM.from_pretrained(place, dtype=dtype, attn_implementation=attn_implementation)
    return model, AutoTokenizer.from_pretrained(place)


def _adapt(model: Any, lora: LoraSettings) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    config = LoraConfig(
        r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets, task_type="CAUSAL_LM"
    )
    return get_peft_model(model, config)


_CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_CORPUS = (
    "open mailbox", "read leaflet", "go north", "go south", "go east", "go west", "take lamp", "look", "inventory",
    "You are in the kitchen. On the table is a brown sack. Action: Reasoning: Valid actions: Goal:",
    "You are an expert player of text adventure games. Read what the game says and choose the one next action.",
)  # fmt: skip


def _tiny_random(dtype: torch.dtype, attn_implementation: str) -> tuple[Any, Any]:
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        initializer_range=0.2,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation=attn_implementation,  # ty: ignore[unknown-argument]
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    return model.to(dtype), tokenizer


def _tiny_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=["<|pad|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(_CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|pad|>")
    tokenizer.chat_template = _CHAT_TEMPLATE
    return tokenizer
