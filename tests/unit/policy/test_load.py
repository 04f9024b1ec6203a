import pytest
import torch

from priorzero.policy.load import LoraSettings, causal_lm, load_llm, without_adapters

LORA = LoraSettings(r=4, alpha=8, dropout=0.0, target_modules=("q_proj", "v_proj"))


def load(**changes):
    arguments = {
        "dtype": "float32",
        "device": "cpu",
        "attn_implementation": "sdpa",
        "lora": None,
        "gradient_checkpointing": False,
    }
    return load_llm("tiny-random", **{**arguments, **changes})


def test_tiny_random_is_always_the_same_and_leaves_the_generator_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second = load(), load()
    assert torch.equal(torch.get_rng_state(), before)
    for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not first.model.training
    assert not first.has_adapters


def test_tiny_tokenizer_spells_any_text():
    tokenizer = load().tokenizer
    text = "öffne <die> Tür\n> go north 12"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    messages = [{"role": "user", "content": "hi"}]
    chat = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert chat == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_lora_trains_only_adapters_and_starts_equal():
    plain, adapted = load(), load(lora=LORA)
    assert adapted.has_adapters
    trainable = [n for n, p in adapted.model.named_parameters() if p.requires_grad]
    assert len(trainable) == 2 * 2 * 2  # layers x modules x (A, B)
    assert all("lora_" in n for n in trainable)
    tokens = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert torch.equal(plain.model(tokens).logits, adapted.model(tokens).logits)
        for name, p in adapted.model.named_parameters():
            if "lora_B" in name:
                p.fill_(0.1)
        assert not torch.equal(plain.model(tokens).logits, adapted.model(tokens).logits)
        with without_adapters(adapted.model):
            assert torch.equal(plain.model(tokens).logits, adapted.model(tokens).logits)
    assert causal_lm(adapted.model).config.hidden_size == causal_lm(plain.model).config.hidden_size


def test_dtype_and_refusals():
    assert next(load(dtype="bfloat16").model.parameters()).dtype is torch.bfloat16
    with pytest.raises(ValueError, match="dtype 'int4'"):
        load(dtype="int4")
    with pytest.raises(ValueError, match="takes no tree mask"):
        load(attn_implementation="flash_attention_2")
