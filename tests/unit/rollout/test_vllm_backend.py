"""What is refused before vLLM is imported; everything else is in tests/integration/test_vllm.py."""

import importlib.util

import pytest
import torch
from plain_generation import LORA
from small_llm import small_llm

from priorzero.policy.load import LoraSettings
from priorzero.rollout.vllm_backend import EngineConfig, VLLMGenerator

ENGINE = EngineConfig(
    dtype="float32", max_model_len=128, kv_cache_gib=0.1, block_size=32, enforce_eager=True, sleep=False, seed=0
)


@pytest.fixture
def folder(tmp_path):
    model = small_llm()
    model.model.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_a_model_without_files_is_refused():
    with pytest.raises(ValueError, match="rollout=transformers"):
        VLLMGenerator("tiny-random", ENGINE, None)


def test_a_rank_without_buffers_is_refused(folder):
    with pytest.raises(ValueError, match="at most 512"):
        VLLMGenerator(folder, ENGINE, LoraSettings(r=1000, alpha=1, dropout=0.0, target_modules="all-linear"))


def test_another_process_is_refused(folder, monkeypatch):
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    with pytest.raises(RuntimeError, match="within the process"):
        VLLMGenerator(folder, ENGINE, LORA)


def test_a_process_that_trains_with_others_is_refused(folder, tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        with pytest.raises(RuntimeError, match="trains alone"):
            VLLMGenerator(folder, ENGINE, None)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_the_error_says_what_to_install(folder, monkeypatch):
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    with pytest.raises(ImportError, match=r"priorzero\[vllm\]"):
        VLLMGenerator(folder, ENGINE, None)
