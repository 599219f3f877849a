"""Documents from local files: text, JSON lines, Parquet."""

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tracenas.errors import UserError, first_line

__all__ = ["SEPARATOR", "read", "split_documents"]

SEPARATOR = "<|endoftext|>"
"""Separates documents in text files."""

_CHUNK_BYTES = 2**20


def read(path: Path, *, text_field: str | None = None) -> Iterator[str]:
    """The non-empty documents of a file, in its order; the format is told by the name's ending.

    Args:
        path: `.jsonl`, `.ndjson` and `.json` hold an object per line, `.parquet` rows, the rest UTF-8 text.
        text_field: the field or column with the text, `text` unless given.

    Raises:
        UserError: the file cannot be read, is empty, not UTF-8 (byte offset), malformed (line number), lacks
            the field (those it has), or holds no text.
    """
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        raise UserError(f"'{path}' holds token ids, text is needed here")
    try:
        if path.stat().st_size == 0:
            raise UserError(f"'{path}' is empty")
        if suffix in (".jsonl", ".ndjson", ".json"):
            found = _json_lines(path, text_field or "text")
        elif suffix == ".parquet":
            found = _parquet(path, text_field or "text")
        else:
            found = split_documents(_decoded(path))
        nothing = True
        for document in found:
            if document.strip():
                nothing = False
                yield document
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror or error}") from error
    if nothing:
        raise UserError(f"'{path}' holds no text")


def split_documents(chunks: Iterator[str]) -> Iterator[str]:
    """Text in chunks of any size → the documents between its separators, newlines next to those removed.

    Without a separator the text is one document, unchanged.
    """
    rest: list[str] = []  # parts of the document that is not finished
    tail = ""  # may be the beginning of a separator
    separated = False
    for chunk in chunks:
        pieces = (tail + chunk).split(SEPARATOR)
        for piece in pieces[:-1]:
            separated = True
            yield "".join([*rest, piece]).strip("\r\n")
            rest = []
        keep = len(SEPARATOR) - 1
        rest.append(pieces[-1][:-keep])
        tail = pieces[-1][-keep:]
    last = "".join([*rest, tail])
    yield last.strip("\r\n") if separated else last


def _decoded(path: Path) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    offset = 0
    with path.open("rb") as file:
        while True:
            chunk = file.read(_CHUNK_BYTES)
            pending = len(decoder.getstate()[0])
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                raise _not_utf8(path, offset - pending + error.start) from error
            offset += len(chunk)
            if not chunk:
                if text:
                    yield text
                return
            yield text


def _json_lines(path: Path, field: str) -> Iterator[str]:
    offset = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise _not_utf8(path, offset + error.start) from error
            offset += len(raw)
            if not line.strip():
                continue
            where = f"'{path}', line {number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
                raise UserError(f"{where} is not JSON: {reason}; expected one object per line") from error
            if not isinstance(row, dict):
                raise UserError(f"{where} is a JSON {_json_type(row)}, expected one object per line")
            yield text_of(row, field, where)


def text_of(row: dict[str, Any], field: str, where: str) -> str:
    """The text in a row.

    Raises:
        UserError: there is no such field, or it holds no string.
    """
    if field not in row:
        raise UserError(f"{where} has no field '{field}': its fields are {', '.join(map(str, row)) or 'none'}")
    text = row[field]
    if not isinstance(text, str):
        raise UserError(f"{where}: field '{field}' holds a {_json_type(text)}, not a string")
    return text


def _parquet(path: Path, field: str) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            if field not in schema.names:
                raise UserError(
                    f"'{path}' has no column '{field}': its columns are {', '.join(schema.names) or 'none'}"
                )
            kind = schema.field(field).type
            if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
                raise UserError(f"'{path}': column '{field}' holds {kind}, not strings")
            row = 0
            for batch in file.iter_batches(batch_size=1024, columns=[field]):
                for text in batch.column(0).to_pylist():
                    if text is None:
                        raise UserError(f"'{path}', row {row}: column '{field}' is null, not a string")
                    row += 1
                    yield text
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"'{path}' is no readable Parquet file: {first_line(error)}") from error


def _not_utf8(path: Path, offset: int) -> UserError:
    return UserError(f"'{path}' is not UTF-8 text: invalid byte at offset {offset}")


def _json_type(value: object) -> str:
    names = {list: "list", dict: "object", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
