import json
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from tracenas.data.files import split_documents
from tracenas.data.sources import Mixture, documents, parse_source
from tracenas.errors import UserError


@pytest.fixture
def write(tmp_path: Path):
    def write(name: str, content: str | bytes) -> str:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return write


def table(path: Path, **columns: list) -> str:
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return str(path)


def complaint(source: str, **options) -> str:
    with pytest.raises(UserError) as caught:
        list(documents(source, **options))
    message = str(caught.value)
    assert "\n" not in message
    return message


class TestText:
    def test_one_document_without_separator_unchanged(self, write) -> None:
        text = "\n one \r\n\r\n\n two\n"
        assert list(documents(write("a.txt", text))) == [text]

    def test_separators_on_lines_and_inline(self, write) -> None:
        source = write(
            "a.txt", "one\n<|endoftext|>\ntwo\n\nstill two<|endoftext|>three <|endoftext|>\n \n<|endoftext|>"
        )
        assert list(documents(source)) == ["one", "two\n\nstill two", "three "]

    @pytest.mark.parametrize("size", [1, 2, 5, 12, 13, 14, 100])
    def test_separators_across_chunks(self, size: int) -> None:
        text = "a<b<|endoftext|>ccc<|endof<|endoftext|><|endoftext|>d|>"
        chunks = (text[at : at + size] for at in range(0, len(text), size))
        assert list(split_documents(chunks)) == ["a<b", "ccc<|endof", "", "d|>"]

    def test_larger_than_a_chunk_with_characters_across(self, write) -> None:
        text = "x" + "é" * 1_500_000
        assert list(documents(write("a.txt", text))) == [text]

    def test_byte_order_mark_is_no_text(self, write) -> None:
        assert list(documents(write("a.txt", b"\xef\xbb\xbfabc"))) == ["abc"]

    @pytest.mark.parametrize("before", [0, 7, 2**20 - 1, 2**20, 2**20 + 3])
    def test_not_utf8_names_the_byte(self, write, before: int) -> None:
        source = write("a.txt", b"x" * before + b"\xff" + b"y" * 9)
        assert complaint(source) == f"'{source}' is not UTF-8 text: invalid byte at offset {before} (line 1)"

    def test_truncated_character_at_the_end(self, write) -> None:
        assert "invalid byte at offset 2" in complaint(write("a.txt", b"ab\xc3"))

    def test_truncated_character_across_chunks(self, write) -> None:
        start = 2**20 - 1
        assert f"offset {start}" in complaint(write("a.txt", b"x" * start + b"\xc3" + b"y"))

    def test_empty_and_blank(self, write) -> None:
        assert "is empty" in complaint(write("a.txt", ""))
        assert "holds no text" in complaint(write("b.txt", " \n<|endoftext|>\n"))

    def test_any_other_suffix_is_text(self, write) -> None:
        assert list(documents(write("wiki.test.raw", "abc"))) == ["abc"]


class TestJsonLines:
    def test_rows(self, write) -> None:
        lines = [json.dumps({"text": text, "id": 1}) for text in ("one", "", "zwei\n\u2028 drei")]
        assert list(documents(write("a.jsonl", "\n\n".join(lines)))) == ["one", "zwei\n\u2028 drei"]

    def test_field(self, write) -> None:
        source = write("a.json", '{"content": "x", "text": "no"}\n')
        assert list(documents(source, text_field="content")) == ["x"]

    def test_malformed_line(self, write) -> None:
        message = complaint(write("a.jsonl", '{"text": "x"}\n\n{"text": \n'))
        assert "line 3 is not JSON" in message and "one object per line" in message

    def test_not_an_object(self, write) -> None:
        assert "line 2 is a JSON list" in complaint(write("a.json", '{"text": "x"}\n["x"]'))
        assert "row 1 is a JSON string" in complaint(write("b.json", '[{"text": "x"}, "y"]'))
        assert list(documents(write("c.json", '[\n {"text": "x"},\n {"text": "y"}\n]'))) == ["x", "y"]

    def test_missing_field_names_those_there(self, write) -> None:
        message = complaint(write("a.jsonl", '{"body": "x", "id": 3}'))
        assert "line 1 has no field 'text': its fields are body, id" in message

    def test_field_of_another_type(self, write) -> None:
        assert "line 1: field 'text' holds a null" in complaint(write("a.jsonl", '{"text": null}'))

    def test_not_utf8_names_the_byte_in_the_file(self, write) -> None:
        first = b'{"text": "x"}\n'
        message = complaint(write("a.jsonl", first + b'{"text": "\xe9"}\n'))
        assert f"invalid byte at offset {len(first) + 10}" in message


class TestParquet:
    def test_rows(self, tmp_path: Path) -> None:
        source = table(tmp_path / "a.parquet", text=["one", "", "two"], n=[1, 2, 3])
        assert list(documents(source)) == ["one", "two"]

    def test_missing_column(self, tmp_path: Path) -> None:
        source = table(tmp_path / "a.parquet", body=["x"], n=[1])
        assert "no column 'text': its columns are body, n" in complaint(source)
        assert list(documents(source, text_field="body")) == ["x"]

    def test_no_strings(self, tmp_path: Path) -> None:
        assert "row 0: field 'text' holds a number" in complaint(table(tmp_path / "a.parquet", text=[1]))
        assert "row 1: field 'text' holds a null" in complaint(table(tmp_path / "b.parquet", text=["x", None]))

    def test_unreadable(self, write) -> None:
        assert "no readable Parquet file" in complaint(write("a.parquet", b"PAR1 but not really"))

    def test_truncated(self, tmp_path: Path, write) -> None:
        whole = Path(table(tmp_path / "a.parquet", text=["abc"] * 100)).read_bytes()
        assert "no readable Parquet file" in complaint(write("b.parquet", whole[: len(whole) // 2]))


class TestNames:
    def test_missing_file(self) -> None:
        for name in ("nope.jsonl", "some/dir/nope", "./nope", "/nope", "folder/nope.txt"):
            with pytest.raises(UserError, match=f"data file '{name}' does not exist"):
                parse_source(name)

    def test_unknown_name_suggests(self) -> None:
        with pytest.raises(UserError, match=r"'fineweb-edo' is neither .*did you mean 'fineweb-edu'"):
            parse_source("fineweb-edo")

    def test_nothing_named(self) -> None:
        with pytest.raises(UserError, match="no data named"):
            parse_source(" ")

    def test_directory(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="is a directory"):
            parse_source(str(tmp_path))

    @pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.parquet"])
    def test_a_pointer_of_git_lfs_is_no_text(self, write, name: str) -> None:
        pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
        assert f"{name}' is a pointer of Git LFS: git lfs pull" in complaint(write(name, pointer))

    def test_tokens_are_no_text(self, write) -> None:
        assert "holds token ids" in complaint(write("a.safetensors", b"x"))

    def test_names_need_no_torch(self) -> None:
        code = """
import sys
from tracenas.data.sources import parse_source
parse_source("c4")
print("torch" in sys.modules, "datasets" in sys.modules)
"""
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert result.stdout == "False False\n"


class TestMixtures:
    def test_weights_are_normalised(self, write) -> None:
        a, b = write("a.jsonl", "{}"), write("b.txt", "x")
        assert parse_source(f"{a}=3, {b}=1,c4=4") == Mixture(((a, 0.375), (b, 0.125), ("c4", 0.5)))

    def test_single_source(self) -> None:
        assert parse_source("c4") == Mixture((("c4", 1.0),))

    def test_existing_file_with_odd_name(self, write) -> None:
        odd = write("a=1,b=2.txt", "abc")
        assert parse_source(odd).names == (odd,)
        assert list(documents(odd)) == ["abc"]

    @pytest.mark.parametrize(
        "text", ["c4=0,wikitext2=1", "c4=x", "c4,wikitext2", "c4=-1", "c4=inf", "c4=nan", "=1", "c4=1,"]
    )
    def test_bad_weights(self, text: str) -> None:
        with pytest.raises(UserError, match="accepted: a.jsonl=0.7,b.txt=0.3"):
            parse_source(text)

    def test_twice(self) -> None:
        with pytest.raises(UserError, match="'c4' occurs twice"):
            parse_source("c4=1,c4=2")

    def test_missing_part(self) -> None:
        with pytest.raises(UserError, match=r"data file 'nope\.txt' does not exist"):
            parse_source("c4=1,nope.txt=2")

    def test_tokens_cannot_be_mixed(self, write) -> None:
        with pytest.raises(UserError, match="only text can be mixed"):
            parse_source(f"c4=1,{write('a.safetensors', b'x')}=1")


class TestShuffle:
    def test_seeded_and_complete(self, write) -> None:
        source = write("a.txt", "<|endoftext|>".join(map(str, range(100))))
        first = list(documents(source, seed=1))
        assert first == list(documents(source, seed=1))
        assert first != list(documents(source, seed=2))
        assert first != list(documents(source))
        assert sorted(first) == sorted(documents(source))

    def test_through_a_buffer(self, write, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tracenas.data.sources._WHOLE_FILE_BYTES", 0)
        monkeypatch.setattr("tracenas.data.sources.SHUFFLE_BUFFER", 10)
        source = write("a.txt", "<|endoftext|>".join(map(str, range(100))))
        shuffled = [int(document) for document in documents(source, seed=0)]
        assert sorted(shuffled) == list(range(100)) != shuffled
        # A document cannot come before the buffer has reached it.
        assert all(document <= place + 10 for place, document in enumerate(shuffled))
