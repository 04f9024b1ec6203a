"""Failed requests are tried again: for text generators, and for any callable."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from priorzero.rollout.base import Sampling, TextGenerator
from priorzero.types import Generation
from priorzero.utils.logging import get_logger

T = TypeVar("T")
log = get_logger(__name__)


class RequestFailedError(RuntimeError):
    """A request failed for good; the cause is the error of its last attempt."""


@dataclass(frozen=True)
class RetryConfig:
    """When a failed request is tried again.

    Attributes:
        attempts: how often it is tried in all.
        timeout_s: no further attempt begins so many seconds after the first began. An attempt that runs is never
            broken off: what may hang has to bring a time-out of its own.
        first_wait_s: seconds before the second attempt.
        backoff: each further wait is so many times as long.
    """

    attempts: int
    timeout_s: float
    first_wait_s: float
    backoff: float

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"attempts must be at least 1 (no second try), not {self.attempts}")
        if self.timeout_s <= 0 or self.first_wait_s < 0 or self.backoff < 1:
            raise ValueError("retries need timeout_s > 0, first_wait_s >= 0 and backoff >= 1")


@dataclass
class _Counts:
    requests: int = 0
    failures: int = 0
    retries: int = 0
    latencies: list[float] = field(default_factory=list)  # seconds of each request, waits and all attempts together


class Retry:
    """Calls things until they succeed, and counts. Safe to be used by several threads.

    Args:
        config: when to try again.
        transient: errors after which another attempt may succeed; others pass at once.
        name: begins the names of the metrics and the lines of the log.
    """

    def __init__(self, config: RetryConfig, transient: tuple[type[Exception], ...], name: str) -> None:
        self.config = config
        self.transient = transient
        self.name = name
        self._counts = _Counts()
        self._lock = threading.Lock()

    def call(self, request: Callable[[], T]) -> T:
        """What ``request`` returns, tried again while it raises a transient error.

        Raises:
            RequestFailedError: the last allowed attempt raised a transient error.
        """
        begin, attempts = time.monotonic(), 0
        succeeded = False
        try:
            while True:
                attempts += 1
                try:
                    result = request()
                except self.transient as error:
                    self._wait(begin, attempts, error)
                else:
                    succeeded = True
                    return result
        finally:
            with self._lock:
                self._counts.requests += 1
                self._counts.failures += not succeeded
                self._counts.retries += attempts - 1
                self._counts.latencies.append(time.monotonic() - begin)

    def _wait(self, begin: float, attempts: int, error: Exception) -> None:
        """Sleeps until the next attempt, or raises where there is none."""
        wait = self.config.first_wait_s * self.config.backoff ** (attempts - 1)
        spent = time.monotonic() - begin
        if attempts == self.config.attempts or spent + wait > self.config.timeout_s:
            raise RequestFailedError(
                f"{self.name}: failed after {attempts} of {self.config.attempts} attempts and {spent:.1f} of "
                f"{self.config.timeout_s:g} s: {type(error).__name__}: {error}"
            ) from error
        log.warning(
            "%s: attempt %d failed (%s: %s); again in %.1f s", self.name, attempts, type(error).__name__, error, wait
        )
        time.sleep(wait)

    def metrics(self) -> dict[str, float]:
        """Requests, retries, success rate, mean and longest latency in seconds, counted since the last call."""
        with self._lock:
            counts, self._counts = self._counts, _Counts()
        latencies = counts.latencies or [0.0]
        return {
            f"{self.name}/requests": float(counts.requests),
            f"{self.name}/retries": float(counts.retries),
            f"{self.name}/success_rate": 1.0 - counts.failures / max(counts.requests, 1),
            f"{self.name}/latency_mean_s": sum(latencies) / len(latencies),
            f"{self.name}/latency_max_s": max(latencies),
        }


class RetryingGenerator:
    """A ``TextGenerator`` whose failed calls of ``generate`` are tried again. Wrong requests (``ValueError``) are not.

    Args:
        generator: does the work.
        config: when to try again.
    """

    def __init__(self, generator: TextGenerator, config: RetryConfig) -> None:
        self.generator = generator
        self._retry = Retry(config, (RuntimeError, OSError), "rollout/generate")

    @property
    def version(self) -> int:
        """See ``TextGenerator``."""
        return self.generator.version

    @property
    def dtype(self) -> torch.dtype:
        """See ``TextGenerator``."""
        return self.generator.dtype

    def weights(self) -> Mapping[str, Tensor] | None:
        """See ``TextGenerator``."""
        return self.generator.weights()

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, samples: int = 1
    ) -> list[list[Generation]]:
        """See ``TextGenerator.generate``.

        Raises:
            ValueError: as there.
            RequestFailedError: every attempt failed.
        """
        return self._retry.call(lambda: self.generator.generate(prompts, sampling, samples))

    def load_weights(self, state: Mapping[str, Tensor], version: int) -> None:
        """See ``TextGenerator.load_weights``."""
        self.generator.load_weights(state, version)

    def metrics(self) -> dict[str, float]:
        """Those of the generator, and how its requests went."""
        return {**self.generator.metrics(), **self._retry.metrics()}

    def sleep(self) -> None:
        """See ``TextGenerator.sleep``."""
        self.generator.sleep()

    def close(self) -> None:
        """See ``TextGenerator.close``."""
        self.generator.close()
