"""The search service: python -m priorzero.rollout.retriever corpus.jsonl --port 8000.

It ranks the documents of a corpus by BM25 (Robertson & Zaragoza 2009) and speaks the protocol of Search-R1. There is no
authentication: it listens on this machine only, unless told otherwise.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from priorzero.rollout.corpus import CorpusError, Document, read_corpus
from priorzero.utils.launch import default_environment

log = logging.getLogger(__name__)

PACKAGES = ("bm25s", "fastapi", "uvicorn")  # the extra "retriever"
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class RetrieverExtraError(ImportError):
    """The packages of the search service are not installed."""


def check_packages(names: Sequence[str] = PACKAGES) -> None:
    """Raises RetrieverExtraError where a package is missing, with the command that installs it."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise RetrieverExtraError(f"the retriever needs {', '.join(missing)}: pip install 'priorzero[retriever]'")


@dataclass(frozen=True, slots=True)
class Found:
    """A document and how well it matches."""

    document: Document
    score: float


class Bm25Index:
    """Ranks documents by the words that they share with a query; titles count as text. Threads may share it.

    Args:
        documents: at least one, with at least one word among them.

    Raises:
        CorpusError: there is no word to search for.
        RetrieverExtraError: bm25s is not installed.
    """

    def __init__(self, documents: Sequence[Document]) -> None:
        check_packages(("bm25s",))
        self.documents = tuple(documents)
        words = self._words([document.contents for document in documents])
        if not any(words):
            raise CorpusError("no document of the corpus has a word to search for (stop words do not count)")
        self._bm25 = _bm25s().BM25()
        self._bm25.index(words, show_progress=False)

    def search(self, queries: Sequence[str], topk: int) -> list[list[Found]]:
        """The best ``topk`` documents of each query, best first; those without any word of the query are left out."""
        words, k = self._words(queries), min(topk, len(self.documents))
        found = self._bm25.retrieve(words, k=k, show_progress=False, backend_selection="numpy")
        return [
            [Found(self.documents[i], float(s)) for i, s in zip(numbers, scores, strict=True) if asked and s > 0]
            for asked, numbers, scores in zip(words, found.documents.tolist(), found.scores.tolist(), strict=True)
        ]

    @staticmethod
    def _words(texts: Sequence[str]) -> list[list[str]]:
        words: Any = _bm25s().tokenize(list(texts), stopwords="en", return_ids=False, show_progress=False)
        return words


def _bm25s() -> Any:
    default_environment(JAX_PLATFORMS="cpu")  # bm25s imports JAX where it is, which takes three quarters of a GPU
    import bm25s

    return bm25s


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the service accepts.

    Attributes:
        body: bytes of a request.
        queries: of one request.
        query_chars: characters of a query.
        topk: the most documents a query.
        requests: that are answered at the same time; more are told to come back later.
    """

    body: int
    queries: int
    query_chars: int
    topk: int
    requests: int

    def __post_init__(self) -> None:
        if min(self.body, self.queries, self.query_chars, self.topk, self.requests) < 1:
            raise ValueError("every limit of the retriever must be at least 1")


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="retrieve.py", description="search service for the agent's search tool, in the protocol of Search-R1"
    )
    parser.add_argument("corpus", help='JSON lines of {"id", "contents"} or {"title", "text"}')
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (default %(default)s)")
    parser.add_argument("--topk", type=int, default=3, help="documents where a request does not say (default 3)")
    parser.add_argument("--max-topk", type=int, default=100, help="(default %(default)s)")
    parser.add_argument("--max-queries", type=int, default=256, help="of one request (default %(default)s)")
    parser.add_argument("--max-query-chars", type=int, default=4096, help="of one query (default %(default)s)")
    parser.add_argument("--max-body", type=int, default=1 << 20, help="bytes of one request (default %(default)s)")
    parser.add_argument("--max-requests", type=int, default=64, help="at the same time (default %(default)s)")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; serves until it is interrupted."""
    parser = _arguments()
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        check_packages()
        limits = Limits(
            body=args.max_body,
            queries=args.max_queries,
            query_chars=args.max_query_chars,
            topk=args.max_topk,
            requests=args.max_requests,
        )
        if not 1 <= args.topk <= args.max_topk:
            raise ValueError(f"--topk must be between 1 and --max-topk ({args.max_topk}), not {args.topk}")
        index = Bm25Index(read_corpus(args.corpus))
    except (ValueError, RetrieverExtraError) as error:
        parser.exit(1, f"{error}\n")
    log.info("%d documents of %s", len(index.documents), args.corpus)
    if args.host not in LOOPBACK:
        log.warning("listening on %s without authentication: anyone who reaches it may search", args.host)
    from priorzero.rollout.service import create_app, serve

    serve(create_app(index, limits, args.topk), args.host, args.port)


if __name__ == "__main__":
    main()
