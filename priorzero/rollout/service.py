"""The HTTP side of the search service; the only home of fastapi and uvicorn."""

from __future__ import annotations

import threading
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ConfigDict, ValidationError

from priorzero.rollout.retriever import Bm25Index, Found, Limits

DRAINED = 8  # a request of up to so many times the limit is read to its end, so that its sender sees the answer


class Query(BaseModel):
    """The body of a request."""

    model_config = ConfigDict(extra="forbid", strict=True)

    queries: list[str]
    topk: int | None = None
    return_scores: bool = False


def create_app(index: Bm25Index, limits: Limits, topk: int) -> FastAPI:
    """The service: ``POST /retrieve`` and ``GET /health``.

    Answers 413 to a body that is too long, 422 to one that is not a query or asks for too much, 503 where too many
    requests are being answered; each says why in ``detail``.

    Args:
        index: what is searched.
        limits: what is accepted.
        topk: documents a query where a request does not say.
    """
    app = FastAPI(title="priorzero retriever")
    slots = threading.BoundedSemaphore(limits.requests)

    @app.get("/health")
    def health() -> dict[str, Any]:
        return {"status": "ok", "documents": len(index.documents)}

    @app.post("/retrieve")
    async def retrieve(request: Request) -> dict[str, Any]:
        query = _parse(await _body(request, limits.body), limits)
        if not slots.acquire(blocking=False):
            raise HTTPException(
                503, f"{limits.requests} requests are being answered: try again later", {"Retry-After": "1"}
            )
        try:
            found = await run_in_threadpool(index.search, query.queries, query.topk or topk)
        finally:
            slots.release()
        return {"result": [[_shown(one, query.return_scores) for one in best] for best in found]}

    return app


def serve(app: FastAPI, host: str, port: int) -> None:
    """Serve until the process is interrupted."""
    uvicorn.run(app, host=host, port=port, log_level="info", access_log=False)


async def _body(request: Request, limit: int) -> bytes:
    size, parts = 0, []
    async for part in request.stream():
        size += len(part)
        if size <= limit:
            parts.append(part)
        elif size > DRAINED * limit:
            break
    if size > limit:
        raise HTTPException(413, f"the request has more than {limit} bytes: send fewer queries at once")
    return b"".join(parts)


def _parse(body: bytes, limits: Limits) -> Query:
    try:
        query = Query.model_validate_json(body)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'body'}: {e['msg']}" for e in error.errors()[:5])
        raise HTTPException(
            422, f'the request must be {{"queries": [texts], "topk": number, "return_scores": bool}} ({wrong})'
        ) from error
    problem = _problem(query, limits)
    if problem:
        raise HTTPException(422, problem)
    return query


def _problem(query: Query, limits: Limits) -> str:
    """What is wrong with a query, empty where nothing is."""
    if not 1 <= len(query.queries) <= limits.queries:
        return f"a request has 1 to {limits.queries} queries, not {len(query.queries)}"
    if any(len(text) > limits.query_chars for text in query.queries):
        return f"a query has at most {limits.query_chars} characters"
    if query.topk is not None and not 1 <= query.topk <= limits.topk:
        return f"topk is 1 to {limits.topk}, not {query.topk}"
    return ""


def _shown(found: Found, score: bool) -> dict[str, Any]:
    document = {"id": found.document.id, "contents": found.document.contents}
    return {"document": document, "score": found.score} if score else document
