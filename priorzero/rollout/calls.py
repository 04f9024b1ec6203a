"""Runs a turn's tool calls beside each other, each with attempts and a time-out, so that none holds up the rest."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field

from priorzero.rollout.tools import Tool, ToolResult
from priorzero.rollout.web import ToolError, ToolUnavailableError
from priorzero.types import PromptRow


@dataclass(frozen=True, kw_only=True)
class CallConfig:
    """How tools are called.

    Attributes:
        timeout: seconds that a call may take, all its attempts together.
        attempts: how often a call is tried while the tool says that it is not available.
        pause: seconds before the second attempt; each further pause is twice as long.
        threads: calls that run beside each other.
    """

    timeout: float
    attempts: int
    pause: float
    threads: int

    def __post_init__(self) -> None:
        if self.timeout <= 0 or self.attempts < 1 or self.pause < 0 or self.threads < 1:
            raise ValueError("calls of tools need timeout > 0, attempts >= 1, pause >= 0 and threads >= 1")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A query of one dialogue."""

    tag: str
    query: str
    row: PromptRow


@dataclass(frozen=True, slots=True)
class ToolOutcome:
    """What came of a call: a result, or the reason why there is none."""

    result: ToolResult | None
    fault: str = ""  # why there is no result
    timed_out: bool = False
    attempts: int = 1


@dataclass(eq=False)
class _Job:
    """Queries that go to a tool in one call."""

    tool: Tool
    numbers: tuple[int, ...]  # places in the list of calls
    calls: tuple[ToolCall, ...]
    done: Future[list[ToolOutcome]] = field(default_factory=Future)
    given_up: threading.Event = field(default_factory=threading.Event)
    started: float | None = None  # time.monotonic

    def left(self, timeout: float) -> float:
        """Seconds until it is given up; a job that waits for a thread has all its time before it."""
        return timeout if self.started is None else self.started + timeout - time.monotonic()


class ToolCaller:
    """Calls tools for many dialogues at once.

    Calls of a concurrent tool run in daemon threads: one that hangs is left behind when its time is up, and takes no
    part any more. Calls of other tools are computed one after the other in the caller's thread.

    Args:
        tools: their tags must differ.
        config: attempts, time-out, threads.
    """

    def __init__(self, tools: Sequence[Tool], config: CallConfig) -> None:
        self.tools = {tool.tag: tool for tool in tools}
        if len(self.tools) != len(tools):
            raise ValueError(f"two tools have the same tag: {', '.join(tool.tag for tool in tools)}")
        self.config = config

    def run(self, calls: Sequence[ToolCall]) -> list[ToolOutcome]:
        """One outcome a call, in their order.

        Raises:
            Exception: what a tool raised that is not a `ToolError` is a bug of the tool, and raised again.
        """
        jobs = [job for tag in self.tools for job in self._jobs(tag, calls)]
        outcomes = self._run_beside([job for job in jobs if job.tool.concurrent])
        outcomes |= {job: self._attempts(job) for job in jobs if not job.tool.concurrent}
        by_number = {n: out for job in jobs for n, out in zip(job.numbers, outcomes[job], strict=True)}
        return [by_number[number] for number in range(len(calls))]

    def _jobs(self, tag: str, calls: Sequence[ToolCall]) -> list[_Job]:
        tool = self.tools[tag]
        numbers = [number for number, call in enumerate(calls) if call.tag == tag]
        groups = [tuple(numbers[at : at + tool.batch]) for at in range(0, len(numbers), tool.batch)]
        return [_Job(tool, group, tuple(calls[n] for n in group)) for group in groups]

    def _run_beside(self, jobs: Sequence[_Job]) -> dict[_Job, list[ToolOutcome]]:
        pending: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        for job in jobs:
            pending.put(job)
        for _ in range(min(self.config.threads, len(jobs))):
            self._start_thread(pending)
        outcomes: dict[_Job, list[ToolOutcome]] = {}
        waiting = list(jobs)
        while waiting:
            soonest = min(job.left(self.config.timeout) for job in waiting)
            wait([job.done for job in waiting], timeout=max(0.0, soonest), return_when=FIRST_COMPLETED)
            for job in waiting:
                if job.done.done():
                    outcomes[job] = job.done.result()
                elif job.left(self.config.timeout) <= 0:
                    job.given_up.set()
                    outcomes[job] = self._late(job)
                    self._start_thread(pending)  # in place of the one that hangs
            waiting = [job for job in waiting if job not in outcomes]
        return outcomes

    def _start_thread(self, pending: queue.SimpleQueue[_Job]) -> None:
        threading.Thread(target=self._work, args=(pending,), name="tool-call", daemon=True).start()

    def _work(self, pending: queue.SimpleQueue[_Job]) -> None:
        while True:
            try:
                job = pending.get_nowait()
            except queue.Empty:
                return
            job.started = time.monotonic()
            try:
                job.done.set_result(self._attempts(job))
            except Exception as error:  # raised again where the outcome is read
                job.done.set_exception(error)
            if job.given_up.is_set():
                return  # another thread has taken its place

    def _attempts(self, job: _Job) -> list[ToolOutcome]:
        """Calls the tool until it answers, says for good that it cannot, or its attempts are used up."""
        for attempt in range(1, self.config.attempts + 1):
            try:
                return self._attempt(job, attempt)
            except ToolUnavailableError as error:
                pause = self.config.pause * 2 ** (attempt - 1)
                if attempt == self.config.attempts or job.given_up.wait(pause):
                    return _faults(job, str(error), attempt)
            except ToolError as error:
                return _faults(job, str(error), attempt)
        raise AssertionError("attempts is at least 1")

    def _attempt(self, job: _Job, attempt: int) -> list[ToolOutcome]:
        results = job.tool.call([call.query for call in job.calls], [call.row for call in job.calls])
        if len(results) != len(job.calls):
            raise ToolError(f"the {job.tool.tag} tool answered {len(results)} of {len(job.calls)} queries")
        return [ToolOutcome(result, attempts=attempt) for result in results]

    def _late(self, job: _Job) -> list[ToolOutcome]:
        reason = f"the {job.tool.tag} tool did not answer within {self.config.timeout:g} seconds"
        return [ToolOutcome(None, reason, timed_out=True) for _ in job.calls]


def _faults(job: _Job, reason: str, attempts: int) -> list[ToolOutcome]:
    return [ToolOutcome(None, reason, attempts=attempts) for _ in job.calls]
