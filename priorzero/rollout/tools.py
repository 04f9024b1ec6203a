"""Tools that the model calls by writing ``<tag>query</tag>``: a search service, and the world model's imagination."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from priorzero.rollout.web import ToolError, ToolUnavailableError, post_json
from priorzero.text.parse import normalise
from priorzero.types import Imagined, PromptRow

SHOWN_ACTIONS = 20  # of the valid actions, in the answer to an action that is not one of them


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a tool answers to one query."""

    text: str  # shown to the model
    reward: float = 0.0  # of the turn that called
    problem: bool = False  # the query was no good; the text says why


class Tool(Protocol):
    """Something that the model may ask. Queries of several dialogues come in one call."""

    tag: str  # the model writes <tag>query</tag>
    example: str  # what stands for the query where the prompt explains the tool
    purpose: str  # completes "To ..., write <tag>example</tag>."
    batch: int  # the most queries of one call
    concurrent: bool  # calls may run in threads beside each other; False: in the caller's thread, without a time-out

    def call(self, queries: Sequence[str], rows: Sequence[PromptRow]) -> list[ToolResult]:
        """Answers every query; ``rows`` are the tasks that they belong to.

        Raises:
            ToolError: it cannot answer any of them.
        """
        ...

    def check(self) -> None:
        """Raises ToolError where the tool cannot work; asked once, before a run."""
        ...


class SearchTool:
    """Asks a retriever over HTTP, in the protocol of Search-R1 (arXiv:2503.09516).

    It posts ``{"queries", "topk", "return_scores"}`` and reads ``{"result": [[{"document": {"contents"}, "score"}]]}``,
    or the documents themselves where the service gives no scores. The first line of the contents is the title.

    Args:
        url: of the service, like ``http://127.0.0.1:8000/retrieve``.
        topk: documents a query.
        timeout: seconds of one request.
        max_bytes: the longest reply that is read.
        max_query_chars: longer queries are not sent; the model is told.
        batch: queries of one request; small ones keep a slow query from holding up the others.
    """

    tag, example, purpose, concurrent = "search", "query", "search for information", True

    def __init__(
        self, *, url: str, topk: int, timeout: float, max_bytes: int, max_query_chars: int, batch: int
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"the url of the search tool must start with http:// or https://, not {url!r}")
        if min(topk, timeout, max_bytes, max_query_chars, batch) <= 0:
            raise ValueError("topk, timeout, max_bytes, max_query_chars and batch of the search tool must be positive")
        self.url, self.topk, self.timeout, self.max_bytes = url, topk, timeout, max_bytes
        self.max_query_chars, self.batch = max_query_chars, batch

    def call(self, queries: Sequence[str], rows: Sequence[PromptRow]) -> list[ToolResult]:
        """As in `Tool`."""
        problems = [self._problem(query) for query in queries]
        sent = [query.strip() for query, problem in zip(queries, problems, strict=True) if not problem]
        found = iter(self._ask(sent) if sent else ())
        return [ToolResult(p, problem=True) if p else ToolResult(next(found)) for p in problems]

    def check(self) -> None:
        """As in `Tool`: asks the service something."""
        try:
            self._ask(["hello"])
        except ToolUnavailableError as error:
            raise ToolError(
                f"{error} Start ours with python retrieve.py CORPUS.jsonl, or name another one in tool.search.url"
            ) from error

    def _problem(self, query: str) -> str:
        if not query.strip():
            return "The query is empty."
        if len(query) > self.max_query_chars:
            return f"The query is longer than {self.max_query_chars} characters."
        return ""

    def _ask(self, queries: Sequence[str]) -> list[str]:
        body = json.dumps({"queries": queries, "topk": self.topk, "return_scores": True}).encode()
        reply = post_json(self.url, body, timeout=self.timeout, max_bytes=self.max_bytes)
        lists = reply.get("result") if isinstance(reply, dict) else None
        if not isinstance(lists, list) or len(lists) != len(queries):
            raise ToolError(
                f'{self.url} must answer {len(queries)} queries with {{"result": [one list of documents a query]}}, '
                f"and answered {str(reply)[:100]!r}: is it a retriever of the Search-R1 kind?"
            )
        return [self._documents(documents) for documents in lists]

    def _documents(self, documents: Any) -> str:
        try:
            contents = [d.get("document", d)["contents"].partition("\n") for d in documents]
        except (TypeError, KeyError, AttributeError) as error:
            raise ToolError(
                f"{self.url} sent a document without 'contents' ({type(error).__name__} {error}): "
                "is it a retriever of the Search-R1 kind?"
            ) from error
        texts = [
            f"Doc {number} (Title: {title.strip(chr(34))}) {text}".rstrip()
            for number, (title, _, text) in enumerate(contents, 1)
        ]
        return "\n".join(texts) or "Nothing was found."


Imagine = Callable[[Sequence[PromptRow], Sequence[str]], Sequence[Imagined]]


class ImagineTool:
    """Asks the world model what an action of the game would lead to.

    Args:
        imagine: answers for actions of the rows' situations; an action is one of its row's valid ones, if that has any.
        shown_actions: likely next actions that the answer lists.
        batch: actions of one call.
    """

    tag, example, purpose, concurrent = "imagine", "action", "imagine what an action leads to", False

    def __init__(self, *, imagine: Imagine, shown_actions: int, batch: int) -> None:
        if shown_actions < 0 or batch < 1:
            raise ValueError("shown_actions of the imagine tool must be 0 or more and batch positive")
        self.imagine, self.shown_actions, self.batch = imagine, shown_actions, batch

    def call(self, queries: Sequence[str], rows: Sequence[PromptRow]) -> list[ToolResult]:
        """As in `Tool`.

        Raises:
            ValueError: the callable did not answer every action.
        """
        actions = [self._action(query, row) for query, row in zip(queries, rows, strict=True)]
        asked = [(row, action) for row, action in zip(rows, actions, strict=True) if action is not None]
        imagined = self.imagine([row for row, _ in asked], [action for _, action in asked]) if asked else ()
        if len(imagined) != len(asked):
            raise ValueError(f"the world model imagined {len(imagined)} of {len(asked)} actions")
        answers = iter(imagined)
        return [
            self._refusal(query, row) if action is None else self._answer(action, next(answers))
            for query, row, action in zip(queries, rows, actions, strict=True)
        ]

    def check(self) -> None:
        """As in `Tool`: what it needs was given to it."""

    def _action(self, query: str, row: PromptRow) -> str | None:
        """The action as the game spells it; None where it is not valid."""
        if not row.valid_actions:
            return query.strip() or None
        wanted = normalise(query)
        return next((action for action in row.valid_actions if normalise(action) == wanted), None)

    def _refusal(self, query: str, row: PromptRow) -> ToolResult:
        if not query.strip():
            return ToolResult("The action is empty.", problem=True)
        listed = "; ".join(row.valid_actions[:SHOWN_ACTIONS])
        more = "; ..." if len(row.valid_actions) > SHOWN_ACTIONS else ""
        return ToolResult(f"That is not a valid action here. Valid actions: {listed}{more}", problem=True)

    def _answer(self, action: str, imagined: Imagined) -> ToolResult:
        text = f"{action}: expected reward {imagined.reward:+.2f}, value of what follows {imagined.value:.2f}."
        likely = "; ".join(imagined.likely_actions[: self.shown_actions])
        return ToolResult(f"{text} Likely next actions: {likely}" if likely else text)
