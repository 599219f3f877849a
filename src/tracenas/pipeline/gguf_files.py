"""GGUF files of architectures without a checkpoint: their shapes with random weights, for trials of speed."""

import importlib.util
from dataclasses import replace
from pathlib import Path

from tracenas.budgets import Counted
from tracenas.budgets.unwritten import unwritten
from tracenas.errors import UserError
from tracenas.exporters.gguf.layouts import Layout, choose
from tracenas.exporters.gguf.model import FAMILIES, Decoder
from tracenas.exporters.gguf.writer import RandomData, write
from tracenas.space.architecture import Architecture

__all__ = ["DrawnFiles"]


class DrawnFiles:
    """Writes architectures of a model, the base among them, in the layout of blocks that differ.

    Args:
        model: and what its matrices are stored in.
        base: its own architecture.

    Raises:
        UserError: if llama.cpp has no such layout for it, or the gguf library is missing.
    """

    def __init__(self, model: Counted, base: Architecture) -> None:
        if importlib.util.find_spec("gguf") is None:
            raise UserError("backend llama.cpp needs the gguf library: pip install gguf")
        self._model, self._drawn = model, RandomData()
        self._layout = _differing(model, base)

    def write(self, arch: Architecture, path: Path) -> None:
        """The file of an architecture, without a tokenizer."""
        decoder, shapes = unwritten(self._model, arch)
        metadata = {"general.name": "trial", "tokenizer.ggml.model": "none"}
        write(path, self._layout.draft(decoder, shapes), metadata, self._model.serving.stored, self._drawn)


def _differing(model: Counted, base: Architecture) -> Layout:
    family = model.source.family.model_type
    if family not in FAMILIES:
        raise UserError(
            f"backend llama.cpp: no GGUF layout for the family '{family}'; accepted: {', '.join(FAMILIES)}, "
            "or --backend torch"
        )
    decoder, _ = unwritten(model, base)
    layout = choose(_uneven(decoder))
    if layout.name == "padded":
        raise UserError(
            f"backend llama.cpp: it has no layout of blocks that differ for {model.source.name} ({family}); every "
            "block would be filled up to the widest, so widths save nothing; accepted: --backend torch"
        )
    return layout


def _uneven(model: Decoder) -> Decoder:
    """The model with blocks that differ, if only in the width of one more."""
    first = model.blocks[0]
    return replace(model, blocks=(replace(first, width=first.width + 32), *model.blocks))
