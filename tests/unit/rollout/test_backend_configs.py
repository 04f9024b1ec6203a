from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from small_llm import small_llm

from priorzero.rollout.base import Sampling
from priorzero.rollout.probe import ProbeConfig
from priorzero.rollout.retry import RetryConfig, RetryingGenerator
from priorzero.rollout.transformers_backend import TransformersGenerator
from priorzero.rollout.vllm_backend import EngineConfig

CONFIGS = Path(__file__).resolve().parents[3] / "configs"


def composed(backend):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("train", [f"rollout={backend}"]).rollout


@pytest.mark.parametrize("backend", sorted(file.stem for file in (CONFIGS / "rollout").glob("*.yaml")))
def test_every_choice_has_what_all_share(backend):
    cfg = composed(backend)
    assert cfg.backend == backend
    assert isinstance(instantiate(cfg.sampling, stop=tuple(cfg.sampling.stop)), Sampling)
    assert isinstance(instantiate(cfg.probe), ProbeConfig)
    retry = instantiate(cfg.retry)
    assert isinstance(retry, RetryConfig)
    assert (retry.attempts, retry.timeout_s) == (3, 30.0)


def test_the_backends_take_their_settings():
    cfg = composed("transformers")
    generator = RetryingGenerator(TransformersGenerator(small_llm(), **cfg.generator), instantiate(cfg.retry))
    assert len(generator.generate([[5]], Sampling(1.0, 1.0, 4, (), None))[0][0].tokens) <= 4
    assert instantiate(composed("vllm").generator.engine) == EngineConfig(
        dtype="float32",
        max_model_len=4096,
        kv_cache_gib=4.0,
        block_size=32,
        enforce_eager=False,
        sleep=False,
        seed=0,
    )
