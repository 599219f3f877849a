"""What the check of a GGUF file makes of llama.cpp's answers; here transformers answers in its place."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_cases import checkpoint, read_gguf

from tracenas.errors import CheckFailed, UserError
from tracenas.exporters.gguf import export_gguf
from tracenas.exporters.gguf.check import Checker, Logits, reference
from tracenas.models.checkpoints.loading import load
from tracenas.models.checkpoints.source import open_source

Answer = Callable[[Logits, int, bool], Logits]
"""Of the right logits, the number of blocks in the file and whether it is stored in f32."""


@pytest.fixture
def exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Exports a checkpoint of four blocks, checked against answers that a function changes."""
    directory = checkpoint(tmp_path / "m", "llama", [(2, 64), (4, 0), (4, 96), (4, 32)])

    def export(answer: Answer, **settings: Any) -> Any:
        def logits(self: Checker, file: Path, texts: Sequence[str] = ()) -> tuple[Logits, list[list[int]]]:
            from torch import nn

            metadata, _ = read_gguf(file)
            blocks = int(metadata["deci.block_count"])
            model = load(open_source(str(directory)), device="cpu", dtype="fp32").model
            model.base_model.layers = nn.ModuleList(list(model.base_model.layers)[:blocks])
            return answer(reference(model, self.ids), blocks, metadata["general.file_type"] == 0), []

        monkeypatch.setattr(Checker, "logits", logits)
        monkeypatch.setattr("tracenas.exporters.gguf.export.find_llama", lambda python: Path(sys.executable))
        return export_gguf(open_source(str(directory)), tmp_path / "m.gguf", check=True, **settings)

    yield export
    assert sorted(path.name for path in tmp_path.iterdir()) in (["m"], ["m", "m.gguf"])


def test_a_file_that_agrees_is_kept_with_its_figures(exported: Callable[..., Any]) -> None:
    made = exported(lambda logits, blocks, full: logits + np.float32(5e-4), outtype="f32", ids=(1, 2, 3))
    assert made.check.ok and made.check.exact and made.check.positions == 3
    assert made.check.largest == pytest.approx(5e-4, rel=1e-2) and made.check.stored is None
    assert made.path.is_file()


@pytest.mark.parametrize(("wrong", "words"), [(3, "is 2: "), (1, r"is 0 \(or what stands around the blocks\): ")])
def test_the_first_layer_that_differs_is_named_and_nothing_is_left(
    wrong: int, words: str, exported: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.raises(CheckFailed, match=f"which was deleted: largest .*; the first layer that differs {words}"):
        exported(lambda logits, blocks, full: logits + np.float32(blocks >= wrong), outtype="f32")
    assert not (tmp_path / "m.gguf").exists()


def test_a_cut_file_that_does_not_run_names_no_layer(exported: Callable[..., Any]) -> None:
    def answer(logits: Logits, blocks: int, full: bool) -> Logits:
        if blocks < 4:
            raise CheckFailed("llama.cpp does not run it")
        return logits + np.float32(1)

    with pytest.raises(CheckFailed, match="which layer differs first cannot be told"):
        exported(answer, outtype="f16")


def test_rounding_is_reported_and_bounded(exported: Callable[..., Any], tmp_path: Path) -> None:
    def noisy(scale: float) -> Answer:
        def answer(logits: Logits, blocks: int, full: bool) -> Logits:
            noise = np.random.default_rng(0).standard_normal(logits.shape) * logits.std() * scale
            return logits if full else (logits + noise).astype(np.float32)

        return answer

    made = exported(noisy(0.3), outtype="f16")
    assert made.check.exact and made.check.stored.relative == pytest.approx(0.3, rel=0.1)
    assert any("stored in f16 the logits move by" in note for note in made.notes)
    made.path.unlink()
    with pytest.raises(CheckFailed, match="as f16 only, not in f32"):
        exported(noisy(3.0), outtype="f16")


def test_tokens_that_the_model_cannot_read_are_refused(exported: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="check-ids: 999 is no token id; the model has 0 to 256"):
        exported(lambda logits, blocks, full: logits, ids=(1, 999))
    with pytest.raises(UserError, match="check-ids: 100 tokens, the file's context has 64"):
        exported(lambda logits, blocks, full: logits, ids=(1,) * 100)
