"""Further windows share no text with the windows they are to be kept apart from."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tracenas.data.calibration import calibration
from tracenas.data.encoding import TextEncoding
from tracenas.data.further import further_calibration, overlaps
from tracenas.data.tokens import save_tokens
from tracenas.errors import UserError


def words(count: int, seed: int = 0) -> str:
    rng = np.random.default_rng(seed)
    return " ".join("".join(rng.choice(list("abcdefghij"), 7)) for _ in range(count))


def runs(rows: torch.Tensor, length: int) -> set[tuple[int, ...]]:
    return {tuple(r[i : i + length].tolist()) for r in rows for i in range(rows.shape[1] - length + 1)}


@pytest.mark.parametrize("documents", [1, 6, 60])
def test_no_text_is_shared(tmp_path: Path, tokenizer: Any, documents: int) -> None:
    """One document (a grid over the text), many (packed), and 6: packed for 4 windows, a grid for more."""
    path = tmp_path / "text.jsonl"
    text = [words(3000 // documents, seed) for seed in range(documents)]
    path.write_text("".join(f'{{"text": "{t}"}}\n' for t in text))
    known = calibration(str(path), TextEncoding(tokenizer), samples=4, seq_len=40, seed=3)
    found = further_calibration(str(path), TextEncoding(tokenizer), reference=known, samples=30, seed=3)
    assert found.shape == (30, 40)
    assert not runs(found, 38) & runs(known, 38)
    again = further_calibration(str(path), TextEncoding(tokenizer), reference=known, samples=30, seed=3)
    assert torch.equal(found, again)


def test_overlap_is_a_share_of_runs() -> None:
    rng = torch.Generator().manual_seed(0)
    text = torch.randint(0, 1000, (400,), generator=rng)
    known = text[100:200][None]
    rows = torch.stack([text[start : start + 100] for start in (0, 100, 150, 70, 200, 195)])
    assert overlaps(rows, known).tolist() == [False, True, True, True, False, False]


def test_too_little_text(tmp_path: Path, tokenizer: Any) -> None:
    rows = torch.arange(10 * 40).reshape(10, 40) % 251
    save_tokens(tmp_path / "t.safetensors", rows)
    source = str(tmp_path / "t.safetensors")
    found = further_calibration(source, TextEncoding(tokenizer), reference=rows[:4], samples=48, fewer=True)
    assert torch.equal(found, rows[4:])
    with pytest.raises(UserError, match="holds 6 sequences of 40 tokens beside the 4 .* 48 were asked for"):
        further_calibration(source, TextEncoding(tokenizer), reference=rows[:4], samples=48)
    with pytest.raises(UserError, match="holds 0 sequences"):
        further_calibration(source, TextEncoding(tokenizer), reference=rows, samples=48, fewer=True)
