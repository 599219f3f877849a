"""Checkpoint directories of architectures without weights, which a server draws: for trials of speed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tracenas.families import Block
from tracenas.models.checkpoints.configuration import empty_model, layered_config
from tracenas.models.checkpoints.source import ModelSource
from tracenas.models.checkpoints.written_config import write_config
from tracenas.models.shipped.checkpoint_code import CODE_FILE, shipped_code
from tracenas.space.architecture import Architecture

__all__ = ["DrawnCheckpoints"]


class DrawnCheckpoints:
    """Writes architectures of a model, the base among them, as models whose blocks differ.

    Args:
        source: the model.
        blocks: its own, in the units that are cut.
        dtype: torch's name of what the weights are said to be.
        stub_attention: whether one head stands where attention is removed.
    """

    def __init__(self, source: ModelSource, blocks: Sequence[Block], dtype: str, *, stub_attention: bool) -> None:
        self._family, self._blocks, self._stub = source.family, tuple(blocks), stub_attention
        base: dict[str, Any] = empty_model(source.config).config.to_diff_dict()
        self._base = {key: value for key, value in base.items() if key != "quantization_config"} | {"dtype": dtype}

    def write(self, arch: Architecture, path: Path) -> None:
        """The directory of an architecture: config.json, and the code of its layers."""
        config = layered_config(self._base, self._family, self._blocks, arch.layers, stub_attention=self._stub)
        path.mkdir()
        write_config(path, config)
        (path / CODE_FILE).write_text(shipped_code(self._family.model_type), encoding="utf-8")
