"""Documents from local files: text, JSON lines, CSV, Parquet."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tracenas.data.decoding import decoded, format_name, require_text
from tracenas.data.rows import ROW_FORMATS, field_names, rows
from tracenas.errors import UserError

__all__ = ["SEPARATOR", "Document", "document", "probe", "read", "split_documents"]

SEPARATOR = "<|endoftext|>"
"""Separates documents in text files."""


class Document(str):
    """A document that says where it stands: `where`, such as "'a.jsonl', line 3"."""

    where: str

    def __new__(cls, text: str, where: str) -> "Document":
        instance = super().__new__(cls, text)
        instance.where = where
        return instance


def read(path: Path, *, text_field: str | None = None) -> Iterator[str]:
    """The non-empty documents of a file, in its order; the format is told by the name's ending.

    Args:
        path: rows (`ROW_FORMATS`, see `tracenas.data.rows`) or text, UTF-8 unless a byte order mark says otherwise;
            either may be compressed.
        text_field: the field or column with the text, `text` unless given.

    Raises:
        UserError: the file cannot be read, is empty, not UTF-8 (line and byte), malformed (line), lacks the field
            (those it has), holds something else in it than text, or no text at all.
    """
    suffix = format_name(path)
    if suffix == ".safetensors":
        raise UserError(f"'{path}' holds token ids, text is needed here")
    if suffix in ROW_FORMATS:
        field = text_field or "text"
        documents = (document(row, field, where) for where, row in rows(path, (field,)))
    else:
        texts = enumerate(split_documents(decoded(path)), start=1)
        documents = (Document(text, f"'{path}', document {number}") for number, text in texts)
    nothing = True
    try:
        for text in documents:
            if text.strip():
                nothing = False
                yield text
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror or error}") from error
    if nothing:
        raise UserError(f"'{path}' holds no text" + (f" in '{text_field or 'text'}'" if suffix in ROW_FORMATS else ""))


def probe(path: Path, *, text_field: str | None = None) -> None:
    """Read a file's first document with text in it, or the first piece of one; see `read` for what is refused."""
    if format_name(path) in ROW_FORMATS:
        next(read(path, text_field=text_field))
    else:
        next(decoded(path))


def document(row: Mapping[str, Any], field: str, where: str) -> Document:
    """The text in a row.

    Raises:
        UserError: there is no such field, or it holds no Unicode string.
    """
    if field not in row:
        raise UserError(f"{where} has no field '{field}': its fields are {field_names(row)} (text-field names another)")
    return Document(require_text(row[field], f"{where}: field '{field}'"), where)


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
