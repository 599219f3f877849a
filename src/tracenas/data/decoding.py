"""A file's text: decompressed and decoded as its first bytes say, in chunks or lines."""

import bz2
import codecs
import gzip
import lzma
import re
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from tracenas.errors import UserError, first_line
from tracenas.git_lfs import REMEDY, START, is_pointer

__all__ = ["compression", "decoded", "format_name", "lines", "require_text", "type_name"]

_CHUNK_BYTES = 2**20
_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_SUFFIXES = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}
_ARCHIVES = {b"PK\x03\x04": "a zip archive (or .xlsx, .docx)", b"7z\xbc\xaf": "a 7z archive", b"%PDF": "a PDF"}
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32-le",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
_SURROGATE = re.compile("[\ud800-\udfff]")


def format_name(path: Path) -> str:
    """What a file's name ends in, in lower case, that of a compression aside: `.jsonl` of `a.jsonl.gz`."""
    path = path.with_suffix("") if path.suffix.lower() in _SUFFIXES else path
    return path.suffix.lower()


def compression(path: Path) -> str | None:
    """`gzip`, `bzip2`, `xz`, `zstd` or None: by the file's first bytes.

    Raises:
        UserError: it cannot be read, is empty or a pointer of Git LFS, or its name ends in that of a compression which
            it has not.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"'{path}' is no regular file: it is read more than once")
        if status.st_size == 0:
            raise UserError(f"'{path}' is empty")
        with path.open("rb") as file:
            start = file.read(len(START))
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror or error}") from error
    if is_pointer(start):
        raise UserError(f"'{path}' is {REMEDY}")
    kind = next((name for magic, name in _COMPRESSIONS.items() if start.startswith(magic)), None)
    if (named := _SUFFIXES.get(path.suffix.lower())) not in (None, kind):
        raise UserError(f"'{path}' is no {named} file: its first bytes are {start[:4].hex(' ')}")
    return kind


def decoded(path: Path) -> Iterator[str]:
    """The text in chunks: UTF-8, or what a byte order mark says.

    Raises:
        UserError: it cannot be decompressed, is an archive, is not text in this encoding (line and byte), or
            holds NUL characters, as binary files do.
    """
    kind = compression(path)
    offset, line, decoder = 0, 1, None
    with _reading(path, kind) as file:
        while True:
            chunk = file.read(_CHUNK_BYTES)
            if decoder is None:
                decoder, chunk, offset = _decoder(path, chunk)
            pending = len(decoder.getstate()[0])
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                line += error.object[: error.start].decode(error.encoding).count("\n")
                place = f"invalid byte at offset {offset - pending + error.start} (line {line})"
                raise UserError(f"'{path}' is not {error.encoding.upper()} text: {place}") from error
            if (at := text.find("\0")) >= 0:
                line += text.count("\n", 0, at)
                raise UserError(
                    f"'{path}' is no text: NUL in line {line}, as in binary files and UTF-16 without a mark"
                )
            offset += len(chunk)
            line += text.count("\n")
            if text:
                yield text
            if not chunk:
                return


def lines(path: Path) -> Iterator[str]:
    """`decoded` in lines, each with its newline."""
    rest: list[str] = []
    for chunk in decoded(path):
        *complete, last = chunk.split("\n")
        for line in complete:
            yield "".join([*rest, line, "\n"])
            rest = []
        rest.append(last)
    if last := "".join(rest):
        yield last


def require_text(value: Any, where: str) -> str:
    """`value`, if it is a string that can be encoded.

    Raises:
        UserError: it is of another type, or holds half a surrogate pair, as JSON's escapes can.
    """
    if not isinstance(value, str):
        raise UserError(f"{where} holds a {type_name(value)}, not a string")
    if not value.isascii() and (half := _SURROGATE.search(value)):
        raise UserError(f"{where} holds \\u{ord(half[0]):04x}, half of a surrogate pair: no Unicode text")
    return str(value)


def type_name(value: object) -> str:
    """What JSON calls the type of a value, or Python where JSON has no such type."""
    names = {list: "list", dict: "object", str: "string", bool: "boolean", type(None): "null"}
    names |= {int: "number", float: "number"}
    return names.get(type(value), type(value).__name__)


def _decoder(path: Path, start: bytes) -> tuple[codecs.IncrementalDecoder, bytes, int]:
    """The decoder, the first chunk without its byte order mark, and the mark's length."""
    for magic, name in _ARCHIVES.items():
        if start.startswith(magic):
            raise UserError(f"'{path}' is {name}: unpack it, and name the text, JSON lines, CSV or Parquet file")
    mark, encoding = next(((m, e) for m, e in _MARKS.items() if start.startswith(m)), (b"", "utf-8"))
    return codecs.getincrementaldecoder(encoding)(), start[len(mark) :], len(mark)


@contextmanager
def _reading(path: Path, kind: str | None) -> Iterator[IO[bytes]]:
    try:
        with _opened(path, kind) as file:
            yield file
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if kind is None or (isinstance(error, OSError) and error.errno is not None):
            raise
        raise UserError(f"'{path}' is no readable {kind} file: {first_line(error)}") from error


def _opened(path: Path, kind: str | None) -> Any:
    if kind == "zstd":
        import pyarrow

        return pyarrow.input_stream(path, compression="zstd")
    openers: dict[str | None, Any] = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}
    return openers.get(kind, open)(path, "rb")
