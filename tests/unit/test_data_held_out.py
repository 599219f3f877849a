from pathlib import Path

import pytest
import torch

from tracenas.data.encoding import TextEncoding
from tracenas.data.held_out import windows
from tracenas.data.tokens import save_tokens
from tracenas.errors import UserError


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_whole_text_in_order(tmp_path: Path, tokenizer) -> None:
    text = "".join(map(str, range(100)))  # 190 tokens
    path = write(tmp_path / "a.txt", text)
    found = windows(path, TextEncoding(tokenizer), 20)
    assert found.shape == (9, 20) and found.dtype == torch.int64
    assert tokenizer.decode(found.flatten()) == text[:180]


def test_separators_become_eos(tmp_path: Path, tokenizer) -> None:
    text = "one\n<|endoftext|>\ntwo<|endoftext|>three\n<|endoftext|>\n"
    found = windows(write(tmp_path / "a.txt", text), TextEncoding(tokenizer), 100)
    assert tokenizer.decode(found[0]) == "one</s>two</s>three"


def test_rows_are_joined_by_eos(tmp_path: Path, tokenizer) -> None:
    path = write(tmp_path / "a.jsonl", '{"body": "one"}\n{"body": "two"}\n')
    assert tokenizer.decode(windows(path, TextEncoding(tokenizer, text_field="body"), 7)[0]) == "one</s>two"


@pytest.mark.parametrize(("length", "shape"), [(9, (1, 9)), (10, (1, 10)), (19, (1, 10)), (20, (2, 10))])
def test_last_window(tmp_path: Path, tokenizer, length: int, shape: tuple[int, int]) -> None:
    assert windows(write(tmp_path / "a.txt", "x" * length), TextEncoding(tokenizer), 10).shape == shape


def test_limit(tmp_path: Path, tokenizer) -> None:
    path = write(tmp_path / "a.txt", "0123456789" * 10)
    assert torch.equal(
        windows(path, TextEncoding(tokenizer), 10, limit=3), windows(path, TextEncoding(tokenizer), 10)[:3]
    )


def test_tokens_as_they_are(tmp_path: Path, tokenizer) -> None:
    ids = torch.arange(12).view(3, 4)
    save_tokens(tmp_path / "a.safetensors", ids)
    assert torch.equal(windows(tmp_path / "a.safetensors", TextEncoding(tokenizer), 4), ids)
    assert torch.equal(windows(tmp_path / "a.safetensors", TextEncoding(tokenizer), 4, limit=2), ids[:2])
    with pytest.raises(UserError, match="holds windows of 4 tokens, 8 were asked for"):
        windows(tmp_path / "a.safetensors", TextEncoding(tokenizer), 8)


@pytest.mark.parametrize("text", ["x", "x<|endoftext|>\n"])
def test_too_short(tmp_path: Path, tokenizer, text: str) -> None:
    with pytest.raises(UserError, match="holds 1 tokens, at least two are needed"):
        windows(write(tmp_path / "a.txt", text), TextEncoding(tokenizer), 8)


def test_nothing(tmp_path: Path, tokenizer) -> None:
    with pytest.raises(UserError, match="holds no text"):
        windows(write(tmp_path / "a.txt", " \n"), TextEncoding(tokenizer), 8)


def test_mixture_and_length(tmp_path: Path, tokenizer) -> None:
    with pytest.raises(UserError, match="is a mixture: name one source"):
        windows("c4=1,wikitext2=1", TextEncoding(tokenizer), 8)
    with pytest.raises(UserError, match="seq_len is 1"):
        windows(write(tmp_path / "a.txt", "abc"), TextEncoding(tokenizer), 1)
