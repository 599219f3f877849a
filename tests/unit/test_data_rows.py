"""Files of rows and of text as users have them: every format, compression and encoding, and what is wrong in a row."""

import bz2
import datetime
import gzip
import json
import lzma
import os
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from tracenas.data.files import Document
from tracenas.data.rows import rows
from tracenas.data.sources import documents
from tracenas.errors import UserError

TEXTS = ['plain, with comma; and "quotes"', "two\nlines\n\nand a blank one", "ünïcode \U0001f600", "long " * 40_000]
ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: pyarrow.compress(data, codec="zstd", asbytes=True),
}


def csv_text(texts: list[str], delimiter: str = ",") -> str:
    quoted = ['"' + text.replace('"', '""') + '"' for text in texts]
    return "".join(
        delimiter.join(row) + "\r\n" for row in [("id", "text"), *((str(i), t) for i, t in enumerate(quoted))]
    )


CONTENTS = {
    ".csv": csv_text(TEXTS),
    ".CSV": csv_text(TEXTS, ";"),
    ".tsv": csv_text(TEXTS, "\t"),
    ".jsonl": "".join(json.dumps({"id": 1, "text": text}) + "\n" for text in TEXTS),
    ".json": json.dumps([{"id": 1, "text": text} for text in TEXTS], indent=1),
    ".txt": "<|endoftext|>".join(TEXTS),
}


def complaint(path: Path, content: str | bytes | None = None, **options: str) -> str:
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError) as caught:
        list(documents(str(path), **options))
    message = str(caught.value)
    assert "\n" not in message and f"'{path}'" in message
    return message.replace(f"'{path}'", "FILE")


@pytest.mark.parametrize("suffix", CONTENTS)
@pytest.mark.parametrize("packed", ENCODERS)
def test_every_format_under_every_compression(suffix: str, packed: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}{packed}"
    path.write_bytes(ENCODERS[packed](CONTENTS[suffix].encode()))
    assert list(documents(str(path))) == TEXTS


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("suffix", CONTENTS)
def test_byte_order_marks_say_the_encoding(suffix: str, encoding: str, tmp_path: Path) -> None:
    (tmp_path / f"a{suffix}").write_bytes(CONTENTS[suffix].encode(encoding))
    assert list(documents(str(tmp_path / f"a{suffix}"))) == TEXTS


def test_compression_is_seen_without_its_ending(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(gzip.compress(CONTENTS[".jsonl"].encode(), mtime=0))
    assert list(documents(str(tmp_path / "a.jsonl"))) == TEXTS


def test_documents_say_where_they_stand(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text\none\n"two\nand more"\n\nthree\n')
    found = list(documents(str(path)))
    assert [d.where for d in found if isinstance(d, Document)] == [f"'{path}', line {n}" for n in (2, 3, 6)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "id,body\n1,x\n", "FILE, line 2 has no field 'text': its fields are id, body"),
        ("a.csv", "id,text\n1,x\n2,y,z\n", "FILE, line 3 has 3 columns, the first line 2: id, text"),
        ("a.csv", 'id,text\n1,"x\n2,y\n', "FILE, line 2 is no row of a CSV file: unexpected end of data"),
        ("a.csv", 'id,text\n1,"x" y\n', "FILE, line 2 is no row of a CSV file"),
        ("a.csv", "text,text\nx,y\n", "FILE, line 1: column 'text' occurs twice"),
        ("a.csv", "id,text\n1,\n2, \n", "FILE holds no text in 'text'"),
        ("a.csv", "id,text\n", "FILE holds no text"),
        ("a.csv", b"id,text\n1,x\n2,caf\xe9\n", "FILE is not UTF-8 text: invalid byte at offset 17 (line 3)"),
        ("a.csv", "," * 50 + "\n" + "," * 50, "FILE, line 2 has no field 'text'"),
        ("a.jsonl", '{"text": "x"}\nnull\n', "FILE, line 2 is a JSON null"),
        ("a.jsonl", '{"text": "x"}\n\n{"text": ["y"]}\n', "FILE, line 3: field 'text' holds a list"),
        ("a.jsonl", '{"text": "x\\ud83d"}\n', "FILE, line 1: field 'text' holds \\ud83d, half of a surrogate pair"),
        ("a.jsonl", b'{"text": "x\xed\xa0\x80"}\n', "FILE is not UTF-8 text: invalid byte at offset 11 (line 1)"),
        ("a.jsonl", "[" * 100_000, "FILE, line 1 is not JSON"),
        ("a.jsonl", '{"text": ' + 5000 * "9" + "}", "FILE, line 1 is not JSON"),
        ("a.jsonl", '{\n "text": "x"\n}\n', "FILE, line 1 is not JSON: Expecting property name"),
        ("a.txt", b"one\ntwo\0three", "FILE is no text: NUL in line 2"),
        ("a.txt", "no mark".encode("utf-16-le"), "FILE is no text: NUL in line 1"),
        ("a.txt", b"\xff\xfea\x00\n\x00\x00\xd8", "FILE is not UTF-16-LE text: invalid byte at offset 6 (line 2)"),
        ("a.txt.gz", b"no gzip", "FILE is no gzip file: its first bytes are 6e 6f 20 67"),
        ("a.jsonl.gz", gzip.compress(random.Random(0).randbytes(9999), mtime=0)[:900], "FILE is no"),
        ("a.csv.gz", gzip.compress(b"text\nx\n" * 999, mtime=0)[:-12], "FILE is no readable gzip file"),
        ("a.csv.bz2", bz2.compress(b"text\nx\n" * 999)[:-12], "FILE is no readable bzip2 file"),
        ("a.csv.xz", lzma.compress(b"text\nx\n" * 999)[:-12], "FILE is no readable xz file"),
        ("a.csv.zst", ENCODERS[".zst"](b"text\nx\n" * 999)[:-12], "FILE is no readable zstd file"),
        ("a.csv.zst", b"\x28\xb5\x2f\xfd but not really", "FILE is no readable zstd file"),
        ("a.xlsx", b"PK\x03\x04", "FILE is a zip archive"),
        ("a.parquet.gz", gzip.compress(b"PAR1", mtime=0), "FILE is a Parquet file within a gzip file"),
        ("a.tar.gz", gzip.compress(b"a.txt" + bytes(500), mtime=0), "FILE is no text: NUL in line 1"),
        ("a.jsonl", b"", "FILE is empty"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(name: str, content: str | bytes, message: str, tmp_path: Path) -> None:
    assert message in complaint(tmp_path / name, content)


def test_a_row_with_hundreds_of_fields_is_told_in_short(tmp_path: Path) -> None:
    wide = {f"a field\nwith a long name, number {i}": i for i in range(500)}
    assert len(complaint(tmp_path / "a.jsonl", json.dumps(wide))) < 1000


def test_pipes_and_archives_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "no regular file" in complaint(tmp_path / "pipe")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.txt", "x")
    assert "unpack it" in complaint(tmp_path / "a.zip")


# ---- Parquet ------------------------------------------------------------------------------------------


def parquet(path: Path, **columns: pyarrow.Array) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


@pytest.mark.parametrize(
    "kind", [pyarrow.string(), pyarrow.large_string(), pyarrow.string_view(), pyarrow.dictionary("int8", "string")]
)
def test_every_column_of_strings_is_read(kind: pyarrow.DataType, tmp_path: Path) -> None:
    texts = pyarrow.array(["x", "ü", "x"]).cast(kind)
    path = parquet(tmp_path / "a.parquet", **{"a.b": pyarrow.array([[{"text": 1}]] * 3), "text": texts})
    assert list(documents(str(path))) == ["x", "ü", "x"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (pyarrow.array([None, None]), "row 0: field 'text' holds a null"),
        (pyarrow.array([b"x", b"y"]), "row 0: field 'text' holds a bytes"),
        (pyarrow.array([["x"], ["y"]]), "row 0: field 'text' holds a list"),
        (pyarrow.array([{"text": "x"}] * 2), "row 0: field 'text' holds a object"),
        (pyarrow.array([datetime.date(2020, 1, 1)] * 2), "row 0: field 'text' holds a date"),
        (pyarrow.array([b"x", b"\xff"]).view(pyarrow.string()), "row 1 is not UTF-8 text"),
    ],
)
def test_columns_of_something_else_are_refused(values: pyarrow.Array, message: str, tmp_path: Path) -> None:
    assert message in complaint(parquet(tmp_path / "a.parquet", text=values))


def test_a_column_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    twice = pyarrow.Table.from_arrays([pyarrow.array(["x"])] * 2, names=["text", "text"])
    pyarrow.parquet.write_table(twice, tmp_path / "a.parquet")
    assert "column 'text' occurs twice" in complaint(tmp_path / "a.parquet")


def test_odd_columns_beside_those_that_are_read_do_no_harm(tmp_path: Path) -> None:
    far = pyarrow.array([2**62], pyarrow.timestamp("us"))
    path = parquet(tmp_path / "a.parquet", when=far, prompt=pyarrow.array(["x"]), response=pyarrow.array(["y"]))
    assert [row for _, row in rows(path, ("prompt", "response", "system"))] == [{"prompt": "x", "response": "y"}]
