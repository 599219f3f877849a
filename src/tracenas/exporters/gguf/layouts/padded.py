"""Every block filled up with zeros to one shape, in the family's own architecture of llama.cpp.

The same function at the size of the largest block: what was saved in the narrower ones is lost in the file, in memory
and in time. For models that no layout with differing blocks can hold.
"""

from dataclasses import replace

from tracenas.exporters.gguf.fitting import Fitted, common_shape, parameters
from tracenas.exporters.gguf.layouts.layout import FileDraft, Layout
from tracenas.exporters.gguf.layouts.stock import STOCK, family_objection
from tracenas.exporters.gguf.model import Decoder
from tracenas.exporters.gguf.weights import Weights

__all__ = ["PADDED"]


def _objection(model: Decoder) -> str:
    """What the family's own architecture does not have."""
    return family_objection(_filled_up(model))


def _draft(model: Decoder, weights: Weights) -> FileDraft:
    """The stock layout of the filled-up model."""
    filled = _filled_up(model)
    draft = STOCK.draft(filled, Fitted(weights, model, filled))
    before, shape = parameters(model), filled.blocks[0]
    added = parameters(filled) - before
    note = (
        f"PADDED: llama.cpp has no differing blocks here; every block is filled up with zeros to {shape.heads} "
        f"heads, {shape.kv} KV heads and {shape.width} channels, {added:,} parameters more "
        f"(+{100 * added / max(before, 1):.1f}% of the blocks' {before:,})"
    )
    return replace(draft, notes=(note, *draft.notes), added=added)


def _filled_up(model: Decoder) -> Decoder:
    return replace(model, blocks=(common_shape(model),) * len(model.blocks))


PADDED = Layout("padded", _objection, _draft)
