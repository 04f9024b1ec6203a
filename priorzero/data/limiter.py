"""Holds the number of samples per insert at a ratio, by making the faster side wait.

The rule is that of reverb's ``SampleToInsertRatio`` and of DreamerV3's ``SamplesPerInsert``. With the balance
``inserted * samples_per_insert - sampled``, an operation is allowed if the balance after it lies within ``tolerance``
of ``min_size * samples_per_insert``. The first ``min_size`` inserts are free, and nothing is sampled before them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

POLL_S = 0.05  # how soon a waiting thread notices its stop event


class RateLimiter:
    """Counts inserts and samples and says who may go on. Thread safe.

    What is counted is up to the callers: here steps that enter the replay, and steps drawn from it (a window counts
    once). The bounds hold for one inserting and one sampling thread, each waiting for ``n`` and then recording the same
    ``n``: nothing that the other side does can take an allowance away.

    Args:
        samples_per_insert: target ratio, above 0.
        min_size: inserts before the first sample, at least 1.
        tolerance: how many samples the balance may be off, either way. At least half of
            ``n_insert * samples_per_insert + n_sample``, or both sides could wait for each other.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, samples_per_insert: float, min_size: int, tolerance: float) -> None:
        if samples_per_insert <= 0 or min_size < 1 or tolerance <= 0:
            raise ValueError(
                "need samples_per_insert > 0, min_size >= 1 and tolerance > 0, "
                f"got {samples_per_insert}, {min_size} and {tolerance}"
            )
        self.samples_per_insert = samples_per_insert
        self.min_size = min_size
        self.tolerance = tolerance
        self.inserted = 0
        self.sampled = 0
        self._largest_insert = 0
        self._largest_sample = 0
        self._error: BaseException | None = None
        self._changed = threading.Condition()

    @property
    def balance(self) -> float:
        """Samples that inserts have paid for, less those taken; the bounds are ``lower`` and ``upper``."""
        return self.inserted * self.samples_per_insert - self.sampled

    @property
    def lower(self) -> float:
        """No sample takes the balance below this."""
        return self.min_size * self.samples_per_insert - self.tolerance

    @property
    def upper(self) -> float:
        """No insert takes the balance above this, once ``min_size`` is reached."""
        return self.min_size * self.samples_per_insert + self.tolerance

    def can_insert(self, n: int = 1) -> bool:
        """Whether ``n`` inserts are allowed now."""
        return self.inserted < self.min_size or self.balance + n * self.samples_per_insert <= self.upper

    def can_sample(self, n: int = 1) -> bool:
        """Whether ``n`` samples are allowed now."""
        return self.inserted >= self.min_size and self.balance - n >= self.lower

    def insert(self, n: int) -> None:
        """Record ``n`` inserts.

        Raises:
            RuntimeError: the run has failed; the cause is chained.
        """
        with self._changed:
            self._check()
            self.inserted += n
            self._changed.notify_all()

    def sample(self, n: int) -> None:
        """Record ``n`` samples.

        Raises:
            RuntimeError: the run has failed; the cause is chained.
        """
        with self._changed:
            self._check()
            self.sampled += n
            self._changed.notify_all()

    def wait_insert(self, stop: threading.Event, n: int = 1, timeout_s: float | None = None) -> bool:
        """Wait until ``n`` inserts are allowed.

        Returns:
            True if they are, False if ``stop`` was set or the time ran out before.

        Raises:
            RuntimeError: the run has failed; the cause is chained.
            ValueError: the tolerance is too small for inserts and samples of these sizes.
        """
        self._largest_insert = max(self._largest_insert, n)
        return self._wait(lambda: self.can_insert(n), stop, timeout_s)

    def wait_sample(self, stop: threading.Event, n: int = 1, timeout_s: float | None = None) -> bool:
        """Wait until ``n`` samples are allowed; returns and raises like ``wait_insert``."""
        self._largest_sample = max(self._largest_sample, n)
        return self._wait(lambda: self.can_sample(n), stop, timeout_s)

    def wait_ready(self, stop: threading.Event, timeout_s: float | None = None) -> bool:
        """Wait for the first ``min_size`` inserts only; for readers that do not count as samples."""
        return self._wait(lambda: self.inserted >= self.min_size, stop, timeout_s)

    def fail(self, error: BaseException) -> None:
        """Make everyone who waits or comes later raise, with ``error`` as the cause. The first error stays."""
        with self._changed:
            if self._error is None:
                self._error = error
            self._changed.notify_all()

    def state_dict(self) -> dict[str, int]:
        """The two counters."""
        with self._changed:
            return {"inserted": self.inserted, "sampled": self.sampled}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Take the counters of ``state_dict`` back."""
        with self._changed:
            self.inserted, self.sampled = int(state["inserted"]), int(state["sampled"])
            self._changed.notify_all()

    def _wait(self, allowed: Callable[[], bool], stop: threading.Event, timeout_s: float | None) -> bool:
        needed = (self._largest_insert * self.samples_per_insert + self._largest_sample) / 2
        if self.tolerance < needed:
            raise ValueError(
                f"a tolerance of {self.tolerance} samples can lock up inserts of {self._largest_insert} and samples of "
                f"{self._largest_sample} at {self.samples_per_insert} samples per insert: set it to {needed} or more"
            )
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            while True:
                self._check()
                if stop.is_set():
                    return False
                if allowed():
                    return True
                left = POLL_S if deadline is None else min(POLL_S, deadline - time.monotonic())
                if left <= 0:
                    return False
                self._changed.wait(left)

    def _check(self) -> None:
        if self._error is not None:
            raise RuntimeError(f"the other side of the replay failed: {self._error!r}") from self._error
