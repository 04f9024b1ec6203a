"""A search service in a thread of the test's process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from priorzero.rollout import retriever


@contextmanager
def search_service(index: retriever.Bm25Index, limits: retriever.Limits, topk: int) -> Iterator[str]:
    """Serves until the end of the block, and gives the address to ask at."""
    import uvicorn

    from priorzero.rollout.service import create_app

    app = create_app(index, limits, topk=topk)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/retrieve"
    finally:
        server.should_exit = True
        thread.join()


def needs_retriever() -> None:
    """Skips where the packages of the service are not installed."""
    for package in retriever.PACKAGES:
        pytest.importorskip(package, reason="the extra 'retriever' is not installed")
