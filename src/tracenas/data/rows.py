"""Rows from local files: JSON lines, CSV, TSV, Parquet; each with its place, for what is told of it."""

import csv
import json
import sys
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from tracenas.data.decoding import compression, format_name, lines, type_name
from tracenas.errors import UserError, first_line

__all__ = ["ROW_FORMATS", "Row", "field_names", "rows"]

Row = dict[str, Any]

_JSON = (".jsonl", ".ndjson", ".jsonlines", ".json")
_DELIMITED = (".csv", ".tsv", ".tab")
ROW_FORMATS = (*_JSON, *_DELIMITED, ".parquet")
"""Endings of names, before that of a compression, of the files that hold rows."""


def rows(path: Path, columns: Collection[str] | None = None) -> Iterator[tuple[str, Row]]:
    """Each row and its place, such as "'a.jsonl', line 3".

    JSON holds an object per line, or one list of objects; CSV and TSV name their columns in the first line. All of
    them may be compressed (gzip, bzip2, xz, zstd).

    Args:
        path: a file whose format is told by its name (`ROW_FORMATS`).
        columns: of Parquet files, read these only.

    Raises:
        UserError: the file or a row of it cannot be read; with the line.
    """
    suffix = format_name(path)
    try:
        if suffix == ".parquet":
            yield from _parquet(path, columns)
        elif suffix in _DELIMITED:
            yield from _delimited(path, tabs=suffix != ".csv")
        else:
            yield from _json(path)
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror or error}") from error


def field_names(row: Iterable[Any]) -> str:
    """A row's fields in one line, the first twelve if there are more."""
    names = [name if name.isprintable() else repr(name) for name in map(str, row)]
    short = [name if len(name) <= 40 else f"{name[:40]}…" for name in names[:12]]
    return ", ".join([*short, f"… ({len(names)} in all)"] if len(names) > 12 else short) or "none"


def _json(path: Path) -> Iterator[tuple[str, Row]]:
    text = lines(path)
    first = True
    for number, line in enumerate(text, start=1):
        if not line.strip():
            continue
        where = f"'{path}', line {number}"
        if first and line.lstrip().startswith("["):
            for place, row in enumerate(_parsed("".join([line, *text]), where, number)):
                where = f"'{path}', row {place}"
                yield where, _object(row, where)
            return
        yield where, _object(_parsed(line, where, number), where)
        first = False


def _parsed(text: str, where: str, number: int) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = str(error)
        if isinstance(error, json.JSONDecodeError):
            reason = f"{error.msg} at line {number + error.lineno - 1}, column {error.colno}"
        raise UserError(f"{where} is not JSON: {reason}; expected one object per line") from error


def _object(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise UserError(f"{where} is a JSON {type_name(value)}, expected one object per line")
    return value


def _delimited(path: Path, *, tabs: bool) -> Iterator[tuple[str, Row]]:
    """CSV (RFC 4180; the delimiter is the one of `,` `;` tab `|` that the first line has most of) or TSV."""
    csv.field_size_limit(sys.maxsize)  # the module's limit of 128 KiB is the length of a long document
    text = lines(path)
    first = next(text, "")
    delimiter = "\t" if tabs else max(",;\t|", key=first.count)
    reader = csv.reader((line for part in ((first,), text) for line in part), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    number = 1
    while True:
        where = f"'{path}', line {number}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(f"{where} is no row of a {'TSV' if tabs else 'CSV'} file: {first_line(error)}") from error
        number = reader.line_num + 1
        if not cells:
            continue
        if header is None:
            header = cells
            if twice := next((name for name in header if name and header.count(name) > 1), None):
                raise UserError(f"{where}: column '{twice}' occurs twice")
        elif len(cells) != len(header):
            raise UserError(f"{where} has {len(cells)} columns, the first line {len(header)}: {field_names(header)}")
        else:
            yield where, dict(zip(header, cells, strict=True))


def _parquet(path: Path, columns: Collection[str] | None) -> Iterator[tuple[str, Row]]:
    import pyarrow
    import pyarrow.parquet

    if kind := compression(path):
        raise UserError(f"'{path}' is a Parquet file within a {kind} file: unpack it")
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            selected = [name for name in names if columns is None or name in columns]
            if twice := next((name for name in selected if names.count(name) > 1), None):
                raise UserError(f"'{path}': column '{twice}' occurs twice")
            if not selected:
                raise UserError(f"'{path}' has no column {_either(columns)}: its columns are {field_names(names)}")
            for batch in file.iter_batches(batch_size=1024, columns=selected):
                for place in range(batch.num_rows):
                    row = {name: batch.column(name)[place].as_py() for name in selected}
                    yield f"'{path}', row {number}", row
                    number += 1
    except UnicodeDecodeError as error:
        raise UserError(f"'{path}', row {number} is not UTF-8 text: {first_line(error)}") from error
    except (pyarrow.ArrowException, ValueError, OverflowError) as error:
        raise UserError(f"'{path}' is no readable Parquet file (row {number}): {first_line(error)}") from error


def _either(columns: Collection[str] | None) -> str:
    return " or ".join(f"'{name}'" for name in columns or ())
