import json

import numpy as np
import pytest
import torch

from priorzero.utils import gguf

HIDDEN, HEADS, KV_HEADS, LAYERS, INNER = 8, 2, 1, 1, 12
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "a", "b", "ab", "Ġ", "1", "2", "Ċ"]
CONTROL = 3


def permuted(weight, heads):
    """What llama.cpp's own converter does to the query and key weights."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def state_dict():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=HIDDEN,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        num_hidden_layers=LAYERS,
        intermediate_size=INNER,
        vocab_size=len(TOKENS),
        max_position_embeddings=32,
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


def write(path, model, *, architecture="llama", pre="smollm", template="{{ messages }}", extra=()):
    from gguf import GGUFWriter

    writer = GGUFWriter(path, architecture)
    writer.add_context_length(32)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([CONTROL] * 3 + [1] * (len(TOKENS) - 3))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    if template:
        writer.add_chat_template(template)
    names = {long: short for short, long in (gguf._TOP | gguf._IN_BLOCK).items()}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        short = names[name.removesuffix(".weight").removeprefix("model.layers.0.")]
        values = weight.numpy()
        if short in ("attn_q", "attn_k"):
            values = permuted(values, HEADS if short == "attn_q" else KV_HEADS)
        prefix = "blk.0." if name.startswith("model.layers") else ""
        writer.add_tensor(f"{prefix}{short}.weight", np.ascontiguousarray(values))
    for name, values in extra:
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def model():
    return state_dict()


@pytest.fixture(scope="module")
def converted(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    write(folder / "tiny.gguf", model)
    gguf.convert(folder / "tiny.gguf", folder / "model")
    return folder / "model"


def test_the_converted_model_computes_the_same(model, converted):
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(converted).eval()
    tokens = torch.tensor([[1, 3, 4, 6, 7, 2]])
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens).logits, model(tokens).logits, rtol=0, atol=1e-6)
    assert loaded.dtype == torch.float32
    assert loaded.config.tie_word_embeddings is True


def test_the_tokenizer_splits_digits_and_keeps_special_tokens(converted):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(converted)
    assert tokenizer.tokenize("ab  12<|im_end|>\n") == ["ab", "Ġ", "Ġ", "1", "2", "<|im_end|>", "Ċ"]
    assert tokenizer.decode(tokenizer("ab  12").input_ids) == "ab  12"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.chat_template == "{{ messages }}"


def test_generation_stops_at_the_end_token(converted):
    assert json.loads((converted / "generation_config.json").read_text()) == {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"pre": "qwen2"}, "tokenizer.ggml.pre is 'qwen2'"),
        ({"template": ""}, "no chat template"),
        ({"extra": [("blk.0.attn_q.bias", np.zeros(8, np.float32))]}, "'blk.0.attn_q.bias' is not part"),
    ],
)
def test_what_cannot_be_converted_is_refused(model, tmp_path, changed, message):
    write(tmp_path / "tiny.gguf", model, **changed)
    with pytest.raises(gguf.GGUFError, match=message):
        gguf.convert(tmp_path / "tiny.gguf", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_the_embedded_language_model_speaks(llm_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(llm_path)
    model = AutoModelForCausalLM.from_pretrained(llm_path).eval()
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        answer = model.generate(**prompt, max_new_tokens=10, do_sample=False)
    text = tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :])
    assert text == "The capital of France is Paris.<|im_end|>"
    assert tokenizer.tokenize("Score:  15") == ["Score", ":", "ĠĠ", "1", "5"]
