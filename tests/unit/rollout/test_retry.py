import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from plain_generation import sampling
from small_llm import small_llm

from priorzero.rollout.retry import RequestFailedError, Retry, RetryConfig, RetryingGenerator
from priorzero.rollout.transformers_backend import TransformersGenerator

CONFIG = {"attempts": 3, "timeout_s": 30.0, "first_wait_s": 0.01, "backoff": 2.0}


class Flaky:
    """Fails so many times, then answers."""

    def __init__(self, failures, error=ConnectionError):
        self.failures, self.error, self.times = failures, error, []

    def __call__(self):
        self.times.append(time.monotonic())
        if len(self.times) <= self.failures:
            raise self.error("no")
        return "yes"


def retry(transient=(OSError,), **changes):
    return Retry(RetryConfig(**{**CONFIG, **changes}), transient, "tool")


def test_tries_again_with_growing_waits():
    request, tries = Flaky(2), retry(first_wait_s=0.05)
    assert tries.call(request) == "yes"
    first, second = (b - a for a, b in zip(request.times, request.times[1:], strict=False))
    assert first >= 0.05
    assert second >= 0.1
    metrics = tries.metrics()
    assert metrics["tool/requests"] == 1
    assert metrics["tool/retries"] == 2
    assert metrics["tool/success_rate"] == 1.0
    assert metrics["tool/latency_mean_s"] == metrics["tool/latency_max_s"] >= 0.15


def test_gives_up_at_the_limit_with_the_cause():
    request, tries = Flaky(5), retry()
    with pytest.raises(RequestFailedError, match="3 of 3 attempts") as failure:
        tries.call(request)
    assert isinstance(failure.value.__cause__, ConnectionError)
    assert len(request.times) == 3
    assert tries.metrics()["tool/success_rate"] == 0.0
    assert tries.metrics()["tool/requests"] == 0


def test_no_attempt_begins_after_the_time_out():
    request, tries = Flaky(5), retry(attempts=100, timeout_s=0.2, first_wait_s=0.05)
    begin = time.monotonic()
    with pytest.raises(RequestFailedError, match=r"of 0\.2 s"):
        tries.call(request)
    assert time.monotonic() - begin < 2
    assert len(request.times) < 5


def test_other_errors_pass_at_once():
    request, tries = Flaky(5, ValueError), retry()
    with pytest.raises(ValueError, match="no"):
        tries.call(request)
    assert len(request.times) == 1
    assert tries.metrics()["tool/success_rate"] == 0.0


def test_threads_share_the_counts():
    tries = retry()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda _: tries.call(Flaky(1)), range(40))) == ["yes"] * 40
    metrics = tries.metrics()
    assert (metrics["tool/requests"], metrics["tool/retries"]) == (40, 40)


def test_refusals():
    for wrong in ({"attempts": 0}, {"timeout_s": 0.0}, {"first_wait_s": -1.0}, {"backoff": 0.5}):
        with pytest.raises(ValueError, match=r"attempts|timeout_s"):
            RetryConfig(**{**CONFIG, **wrong})


def test_a_generator_that_fails_once_is_asked_again():
    model = small_llm()
    plain = TransformersGenerator(model, max_batch_tokens=1000, seed=0)
    generator = RetryingGenerator(plain, RetryConfig(**CONFIG))
    want = plain.generate([[5, 6]], sampling())[0][0].tokens
    run, failures = plain._run, iter([True, False])
    plain._run = lambda *a: (_ for _ in ()).throw(RuntimeError("out of memory")) if next(failures) else run(*a)
    assert generator.generate([[5, 6]], sampling())[0][0].tokens == want
    metrics = generator.metrics()
    assert metrics["rollout/generate/retries"] == 1
    assert metrics["rollout/answers"] == 2
    with pytest.raises(ValueError, match="is empty"):
        generator.generate([[]], sampling())
    generator.load_weights({n: p for n, p in model.model.named_parameters()}, version=3)
    assert generator.version == 3
    generator.sleep()
    generator.close()
