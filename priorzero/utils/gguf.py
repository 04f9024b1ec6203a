"""Convert a GGUF file of a Llama-architecture model to a folder that transformers loads as any other.

Only what the embedded language model needs: ``llama`` weights, the byte-level BPE tokenizer of the ``smollm`` kind.
The weights are dequantised to float32. Transformers has a loader of its own, which cannot save what it loaded and drops
the ``Digits`` pre-tokenizer; this one keeps the tokenisation equal to llama.cpp's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_IN_BLOCK = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_CONTROL_TOKEN = 3  # gguf.TokenType.CONTROL


class GGUFError(ValueError):
    """The file is not of a kind that this module converts."""


def convert(source: Path, target: Path) -> None:
    """Write the model of ``source`` into the folder ``target`` (made if missing), float32.

    Files: ``config.json``, ``generation_config.json``, ``model.safetensors``, ``tokenizer.json``,
    ``tokenizer_config.json``, ``chat_template.jinja``.

    Raises:
        GGUFError: the architecture, the tokenizer or a tensor is of a kind that is not supported.
    """
    from gguf import GGUFReader
    from safetensors.torch import save_file

    reader = GGUFReader(source)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    _check(fields, source)
    weights = _weights(reader.tensors, fields)
    target.mkdir(parents=True, exist_ok=True)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    (target / "model.safetensors").chmod(0o644)  # it is written for its owner only, but caches are shared
    _write_json(target / "config.json", _config(fields, tied="lm_head.weight" not in weights))
    ids = {f"{kind}_token_id": fields.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("bos", "eos")}
    _write_json(target / "generation_config.json", ids | {"pad_token_id": _pad(fields)})
    _tokenizer(fields).save(str(target / "tokenizer.json"))
    _write_json(target / "tokenizer_config.json", _tokenizer_config(fields))
    (target / "chat_template.jinja").write_text(fields["tokenizer.chat_template"], encoding="utf-8")


def _check(fields: dict[str, Any], source: Path) -> None:
    wanted = {
        "general.architecture": ("llama",),
        "tokenizer.ggml.model": ("gpt2",),
        "tokenizer.ggml.pre": ("smollm",),
    }
    for key, accepted in wanted.items():
        if fields.get(key) not in accepted:
            raise GGUFError(
                f"{source.name}: {key} is {fields.get(key)!r}, only {' or '.join(accepted)} is converted; "
                "use the model's safetensors folder instead"
            )
    if "tokenizer.chat_template" not in fields:
        raise GGUFError(f"{source.name} has no chat template: use an instruct model")


def _weights(tensors: Sequence[Any], fields: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Dequantised float32 weights by their transformers names."""
    import numpy as np
    import torch
    from gguf import dequantize

    heads = {"attn_q": fields["llama.attention.head_count"], "attn_k": fields["llama.attention.head_count_kv"]}
    weights = {}
    for tensor in tensors:
        weight = np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        name, part = _rename(tensor.name)
        if part in heads:
            weight = _unpermute(weight, heads[part])
        weights[name] = torch.from_numpy(np.ascontiguousarray(weight))
    return weights


def _rename(name: str) -> tuple[str, str]:
    """The transformers name of a GGUF tensor, and which part of a block it is ("" outside the blocks)."""
    base, kind = name.rsplit(".", 1)
    block, _, rest = base.removeprefix("blk.").partition(".")
    part = rest if base.startswith("blk.") else ""
    renamed = f"model.layers.{block}.{_IN_BLOCK[part]}" if part in _IN_BLOCK else _TOP.get(base)
    if kind != "weight" or renamed is None:
        raise GGUFError(f"tensor {name!r} is not part of a plain Llama model")
    return f"{renamed}.weight", part


def _unpermute(weight: Any, heads: int) -> Any:
    """Undo llama.cpp's reordering of the rotary dimensions: ``[heads * d, in]`` to the same shape."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _config(fields: dict[str, Any], *, tied: bool) -> dict[str, Any]:
    theta = fields["llama.rope.freq_base"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": fields["llama.attention.head_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "head_dim": fields["llama.rope.dimension_count"],
        "max_position_embeddings": fields["llama.context_length"],
        "rms_norm_eps": round(fields["llama.attention.layer_norm_rms_epsilon"], 9),
        "rope_theta": theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "tie_word_embeddings": tied,
        "use_cache": True,
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "bos_token_id": fields.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": _pad(fields),
        "dtype": "float32",
    }


def _pad(fields: dict[str, Any]) -> int:
    """The padding token; models without one pad with the end of text, which the masks hide anyway."""
    return fields.get("tokenizer.ggml.padding_token_id", fields["tokenizer.ggml.eos_token_id"])


def _tokenizer(fields: dict[str, Any]) -> Tokenizer:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {token: number for number, token in enumerate(fields["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in _special_tokens(fields)])
    return tokenizer


def _special_tokens(fields: dict[str, Any]) -> list[str]:
    kinds = fields["tokenizer.ggml.token_type"]
    return [t for t, kind in zip(fields["tokenizer.ggml.tokens"], kinds, strict=True) if kind == _CONTROL_TOKEN]


def _tokenizer_config(fields: dict[str, Any]) -> dict[str, Any]:
    tokens = fields["tokenizer.ggml.tokens"]
    named = {"bos": "bos", "eos": "eos", "unk": "unknown"}
    ids = {short: fields.get(f"tokenizer.ggml.{long}_token_id") for short, long in named.items()}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{short}_token": tokens[number] for short, number in ids.items() if number is not None},
        "pad_token": tokens[_pad(fields)],
        "additional_special_tokens": _special_tokens(fields),
        "model_max_length": fields["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "chat_template": fields["tokenizer.chat_template"],
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
