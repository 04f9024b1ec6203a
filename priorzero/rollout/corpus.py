"""What can be searched: documents from JSON lines, and transcripts of the games that were played."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from priorzero.text.prompt import brief, observation_text
from priorzero.types import Segment


class CorpusError(ValueError):
    """A corpus cannot be read; the message names the file, the line and what to do."""


@dataclass(frozen=True, slots=True)
class Document:
    """Something to be found."""

    id: str
    title: str
    text: str

    @property
    def contents(self) -> str:
        """Title and text as Search-R1 has them: the title is the first line."""
        return f"{self.title}\n{self.text}"


def read_corpus(path: str | Path) -> list[Document]:
    """Documents from JSON lines, each ``{"id", "contents"}`` or ``{"title", "text"}``; the id may be missing.

    Raises:
        CorpusError: there is no such file, it holds no document, or a line is something else.
    """
    path = Path(path)
    if not path.is_file():
        raise CorpusError(f"{path}: no such file: give a corpus of JSON lines")
    try:
        with path.open(encoding="utf-8-sig") as lines:
            documents = [_document(line, number, path) for number, line in enumerate(lines, 1) if line.strip()]
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path}: is not UTF-8 text ({error.reason}): convert it") from error
    if not documents:
        raise CorpusError(f"{path}: is empty: a corpus has at least one document")
    return documents


def _document(line: str, number: int, path: Path) -> Document:
    shown = line.strip() if len(line) <= 80 else f"{line[:77]}..."
    try:
        record: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise CorpusError(f"{path}, line {number}: is not JSON ({error.msg}): {shown}") from error
    fields = record if isinstance(record, dict) else {}
    if isinstance(fields.get("contents"), str):
        title, _, text = fields["contents"].partition("\n")
    elif isinstance(fields.get("title"), str) and isinstance(fields.get("text"), str):
        title, text = fields["title"], fields["text"]
    else:
        raise CorpusError(
            f'{path}, line {number}: must be {{"id", "contents"}} or {{"title", "text"}} with texts, not {shown}'
        )
    return Document(str(fields.get("id", number - 1)), title, text)


def write_corpus(path: str | Path, documents: Iterable[Document]) -> None:
    """Write documents so that ``read_corpus`` gives them back."""
    records = ({"id": d.id, "title": d.title, "text": d.text} for d in documents)
    with Path(path).open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def transcripts(segments: Sequence[Segment], steps: int) -> Iterator[Document]:
    """What happened in the games that were played, ``steps`` steps a document at most, each from its situation on.

    Raises:
        ValueError: ``steps`` is not positive.
    """
    if steps < 1:
        raise ValueError(f"a transcript needs at least one step a document, not {steps}")
    for segment in segments:
        for first in range(0, len(segment), steps):
            yield _transcript(segment, first, min(first + steps, len(segment)))


def _transcript(segment: Segment, first: int, end: int) -> Document:
    lines = [observation_text(segment.observations[first]._replace(score=""))]
    for t in range(first, end):
        reward = float(segment.rewards[t])
        lines.append(f"> {segment.actions[t]}{f' ({reward:+g} points)' if reward else ''}")
        lines.append(brief(segment.observations[t + 1]))
    start = segment.start + first
    title = f"{segment.game}, episode {segment.episode}, steps {start} to {segment.start + end - 1}"
    return Document(f"{segment.game}-{segment.episode}-{start}", title, "\n".join(filter(None, lines)))
