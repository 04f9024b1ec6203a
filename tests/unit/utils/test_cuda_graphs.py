import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from priorzero.utils.cuda_graphs import Turns, random_numbers, recording, replay

SOON = 5.0


def test_users_share_and_a_recording_waits_for_them():
    turns, order = Turns(), []
    inside, leave, recorded = threading.Event(), threading.Event(), threading.Event()

    def use():
        with turns.shared():
            inside.set()
            leave.wait(SOON)
            order.append("used")

    def record():
        with turns.alone():
            order.append("recorded")
        recorded.set()

    with ThreadPoolExecutor() as pool:
        with turns.shared():
            user = pool.submit(use)
            assert inside.wait(SOON)  # while this thread is a user too
            waiting = pool.submit(record)
        assert not recorded.wait(0.1)
        leave.set()
        user.result(SOON)
        waiting.result(SOON)
    assert order == ["used", "recorded"]


def test_users_wait_for_a_recording_that_goes_on_or_is_next():
    turns, order = Turns(), []
    inside, leave = threading.Event(), threading.Event()

    def record(name: str):
        with turns.alone():
            inside.set()
            leave.wait(SOON)
            order.append(name)

    def use():
        with turns.shared():
            order.append("used")

    with ThreadPoolExecutor() as pool:
        first = pool.submit(record, "first")
        assert inside.wait(SOON)
        second = pool.submit(record, "second")
        while not turns._waiting:
            pass
        user = pool.submit(use)
        assert not order
        leave.set()
        for done in (first, second, user):
            done.result(SOON)
    assert order == ["first", "second", "used"]


def test_a_thread_may_be_both():
    turns = Turns()
    with turns.shared(), turns.alone(), turns.shared():
        pass
    with turns.alone(), turns.shared():
        pass
    assert (turns._users, turns._alone, turns._waiting) == ({}, None, 0)


@pytest.mark.gpu
def test_graphs_are_recorded_and_replayed_while_others_draw_random_numbers():
    device, stop, drawn = "cuda", threading.Event(), []
    x = torch.zeros(1000, device=device)
    static = torch.cuda.CUDAGraph()
    with recording(static):
        y = torch.nn.functional.dropout(x + 1, 0.5)

    def draw():
        while not stop.is_set():
            replay(static)
            with random_numbers():
                drawn.append(torch.rand(3, device=device).sum() + y.sum())

    with ThreadPoolExecutor(2) as pool:
        busy = [pool.submit(draw) for _ in range(2)]
        for _ in range(50):
            graph = torch.cuda.CUDAGraph()
            with recording(graph):
                out = torch.nn.functional.dropout(x + 1, 0.5)
            replay(graph)
        stop.set()
        for thread in busy:
            thread.result(SOON)
    torch.cuda.synchronize()
    assert drawn
    assert 0 < (out == 0).sum() < 1000


@pytest.mark.gpu
def test_a_graph_outlives_the_one_before_it():
    """Its matrix products must not use what was allocated for the first one."""
    x, weight = (torch.randn(2048, 2048, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    graphs, outs = [], []
    for _ in range(3):
        torch.nn.functional.linear(x, weight, x[0])
        graphs.append(torch.cuda.CUDAGraph())
        with recording(graphs[-1]):
            outs.append(torch.nn.functional.linear(x, weight, x[0]))
    expected = torch.nn.functional.linear(x, weight, x[0])
    for _ in range(2):
        del graphs[0], outs[0]
        torch._C._cuda_clearCublasWorkspaces()  # as Lightning does when a fit ends
        torch.cuda.empty_cache()
        others = [torch.zeros(2**22, device="cuda") for _ in range(64)]
        replay(graphs[-1])
        torch.cuda.synchronize()
        torch.testing.assert_close(outs[-1], expected)
        assert not any(other.any() for other in others)
