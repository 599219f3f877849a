"""What a checkpoint's card says about serving it, from its configuration."""

from collections.abc import Mapping
from typing import Any

from tracenas.errors import UserError
from tracenas.exporters.gguf.layouts import choose
from tracenas.exporters.gguf.model import gguf_decoder
from tracenas.families import Family
from tracenas.models.checkpoints.configuration import built_shapes
from tracenas.models.checkpoints.serving import serving_section
from tracenas.models.checkpoints.source import ModelSource
from tracenas.recovery.card import with_section

__all__ = ["gguf_layout", "recovered_card", "serving"]


def serving(name: str, family: Family, config: Mapping[str, Any]) -> str:
    """Markdown: the section of a card with the commands that apply to a checkpoint."""
    return serving_section(name, config, gguf_layout(family, config))


def recovered_card(source: ModelSource, name: str, section: str) -> str:
    """The card of what was trained, under its new name, with a section at its end."""
    return with_section(source.path, name, section, serving(name, source.family, source.config))


def gguf_layout(family: Family, config: Mapping[str, Any]) -> str | None:
    """The layout in which `tracenas export` writes a checkpoint, None if there is none for it."""
    shapes = built_shapes(config)
    try:
        return choose(gguf_decoder(family, config, shapes)).name if shapes is not None else None
    except UserError:
        return None
