"""Prompt rows from and to files.

A file is JSON lines or parquet, ours or a data set as hubs have them: a column ``prompt`` (text, or a chat as a list of
``{"role", "content"}``), with ``answer``, ``data_source`` and so on where there are some. Columns that a `PromptRow`
does not know go to its ``extra``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from priorzero.types import Message, PromptRow

ROLES = ("system", "user", "assistant")
SUFFIXES = (".jsonl", ".parquet")

_TEXTS = ("data_source", "state_id", "group_id", "answer_prefix")
_CHATS = ("messages", "prompt")


class PromptFileError(ValueError):
    """A file of prompts cannot be read or written; the message names the file, the line and what to do."""


# ------------------------------------------------------------------------------------------------------------- reading


def read_prompts(path: str | Path, columns: Mapping[str, str]) -> list[PromptRow]:
    """The rows of a ``.jsonl`` or ``.parquet`` file, or of all such files in a folder, in the order of their names.

    Args:
        path: file or folder.
        columns: where a field of the row is found when not under its own name: ``{"prompt": "question", "answer":
            "reward_model.ground_truth"}``; a dot goes into a record inside the column.

    Raises:
        PromptFileError: there is no such file, it is of another kind, or one of its lines is not a prompt.
    """
    return [
        row_from_record(record, f"{file}, {unit} {number}", columns)
        for file in _files(Path(path))
        for unit, number, record in _records(file)
    ]


def row_from_record(record: Any, where: str, columns: Mapping[str, str]) -> PromptRow:
    """One row from one line of a file.

    Args:
        record: the line, as plain values.
        where: names the line in errors.
        columns: as in ``read_prompts``.

    Raises:
        PromptFileError: the record has no prompt, or a field is of the wrong kind.
    """
    if not isinstance(record, Mapping):
        raise PromptFileError(f"{where}: is not a record but {_kind(record)}: write an object with a field 'prompt'")
    fields = _Fields(record, where, columns)
    extra = fields.extra()
    answer = fields.get("answer")
    if isinstance(answer, list | tuple) and answer:
        extra = {"answers": [fields.text("answer", a) for a in answer], **extra}
        answer = answer[0]
    return PromptRow(
        messages=_messages(fields),
        answer=fields.text("answer", answer),
        valid_actions=tuple(fields.strings("valid_actions")),
        extra=extra,
        **{name: fields.text(name, fields.get(name)) for name in _TEXTS},
    )


class _Fields:
    """The values of one record, found under their own or another column."""

    def __init__(self, record: Mapping[str, Any], where: str, columns: Mapping[str, str]) -> None:
        self.record, self.where, self.columns = record, where, columns

    def get(self, name: str) -> Any:
        """The value; None where there is none."""
        if name not in self.columns:
            return self.record.get(name)
        value: Any = self.record
        for part in self.columns[name].split("."):
            if not isinstance(value, Mapping) or part not in value:
                column = self.columns[name]
                raise PromptFileError(f"{self.where}: has no column {column!r}, which is to be its {name}")
            value = value[part]
        return value

    def text(self, name: str, value: Any) -> str:
        if value is None:
            return ""
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise PromptFileError(f"{self.where}: {name} is {_kind(value)}, it must be text: {_shown(value)}")
        return str(value)

    def strings(self, name: str) -> list[str]:
        value = self.get(name) or []
        if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
            raise PromptFileError(f"{self.where}: {name} must be a list of texts, not {_shown(value)}")
        return list(value)

    def extra(self) -> dict[str, Any]:
        own = {"answer", "valid_actions", "extra", *_TEXTS, *_CHATS}
        taken = {column for column in self.columns.values() if "." not in column}
        rest = {k: v for k, v in self.record.items() if k not in own | taken}
        extra = self.record.get("extra") or {}
        if isinstance(extra, str):
            extra = _json(extra, f"{self.where}, column extra")
        if not isinstance(extra, Mapping) or extra.keys() & rest.keys():
            raise PromptFileError(
                f"{self.where}: 'extra' must be an object without the names of other columns: {_shown(extra)}"
            )
        return {**rest, **extra}


def _messages(fields: _Fields) -> tuple[Message, ...]:
    chats = [chat for name in _CHATS if (chat := fields.get(name)) is not None]
    if len(chats) != 1:
        raise PromptFileError(
            f"{fields.where}: has {'no' if not chats else 'both a'} field 'prompt' {'nor' if not chats else 'and'} "
            f"'messages' (it has {', '.join(map(repr, fields.record)) or 'none'}): write one of them, or name the "
            "column in columns.prompt"
        )
    chat = [{"role": "user", "content": chats[0]}] if isinstance(chats[0], str) else chats[0]
    if not isinstance(chat, list | tuple) or not chat:
        raise PromptFileError(f"{fields.where}: the prompt must be a text or a list of messages, not {_shown(chat)}")
    messages = tuple(_message(fields.where, number, message) for number, message in enumerate(chat, 1))
    if messages[-1].role == "assistant":
        raise PromptFileError(
            f"{fields.where}: the last message is the assistant's, and the model writes the next one: drop it, or put "
            "its text into answer_prefix"
        )
    return messages


def _message(where: str, number: int, message: Any) -> Message:
    where = f"{where}, message {number}"
    if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
        raise PromptFileError(f"{where}: must have 'role' and 'content', not {_shown(message)}")
    if message["role"] not in ROLES:
        raise PromptFileError(f"{where}: the role is one of {', '.join(ROLES)}, not {_shown(message['role'])}")
    if not isinstance(message["content"], str):
        raise PromptFileError(f"{where}: the content must be text, not {_kind(message['content'])}")
    return Message(message["role"], message["content"])


# --------------------------------------------------------------------------------------------------------------- files


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES)
    else:
        files = [path] if path.is_file() else []
    if not files:
        raise PromptFileError(f"{path}: no such file, or a folder without {' and '.join(SUFFIXES)} files")
    return files


def _records(file: Path) -> Iterator[tuple[str, int, Any]]:
    if _suffix(file) == ".parquet":
        yield from (("row", number, record) for number, record in enumerate(_read_parquet(file), 1))
        return
    try:
        with file.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield "line", number, _json(line, f"{file}, line {number}")
    except UnicodeDecodeError as error:
        raise PromptFileError(f"{file}: is not UTF-8 text ({error.reason}): convert it") from error


def _suffix(file: Path) -> str:
    if file.suffix not in SUFFIXES:
        raise PromptFileError(f"{file}: prompts are in {' or '.join(SUFFIXES)} files: convert it")
    return file.suffix


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise PromptFileError(
            f"{where}: is not JSON ({error.msg} at character {error.colno}): each line is one object, like "
            f'{{"prompt": "...", "answer": "..."}}; it is {_shown(text.strip())}'
        ) from error


def _parquet() -> Any:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise PromptFileError("parquet files need pyarrow: pip install 'priorzero[parquet]'") from error
    return parquet


def _read_parquet(file: Path) -> list[dict[str, Any]]:
    parquet = _parquet()
    from pyarrow import ArrowException

    try:
        return parquet.read_table(file).to_pylist()
    except ArrowException as error:
        raise PromptFileError(f"{file}: is not a parquet file ({error}): write it again") from error


def write_prompts(path: str | Path, rows: Iterable[PromptRow]) -> None:
    """Write a ``.jsonl`` or ``.parquet`` file from which ``read_prompts`` gives equal rows.

    Raises:
        PromptFileError: the file is of another kind, or an ``extra`` holds more than plain values.
    """
    path = Path(path)
    records = [_record(row, f"{path}, row {number}") for number, row in enumerate(rows, 1)]
    if _suffix(path) == ".jsonl":
        path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
        return
    parquet = _parquet()
    import pyarrow

    for record in records:
        record["extra"] = json.dumps(record["extra"])
    text = pyarrow.string()
    message = pyarrow.struct([("role", text), ("content", text)])
    kinds = {"messages": pyarrow.list_(message), "valid_actions": pyarrow.list_(text)}
    names = ("messages", "answer", "valid_actions", *_TEXTS, "extra")
    schema = pyarrow.schema([(name, kinds.get(name, text)) for name in names])
    parquet.write_table(pyarrow.Table.from_pylist(records, schema=schema), path)


def _record(row: PromptRow, where: str) -> dict[str, Any]:
    try:
        extra = json.loads(json.dumps(dict(row.extra), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise PromptFileError(f"{where}: extra must hold plain values only ({error})") from error
    texts = {name: getattr(row, name) for name in ("answer", *_TEXTS)}
    messages = [{"role": m.role, "content": m.content} for m in row.messages]
    return {"messages": messages, **texts, "valid_actions": list(row.valid_actions), "extra": extra}


def _kind(value: Any) -> str:
    return "empty" if value is None else f"a {type(value).__name__}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
