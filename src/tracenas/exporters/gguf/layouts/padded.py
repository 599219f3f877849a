"""Every block filled up with zeros to one shape, in the family's own architecture of llama.cpp.

The same function at the size of the largest block: what was saved in the narrower ones is lost in the file, in memory
and in time. For models that no layout with differing blocks can hold.
"""

from tracenas.exporters.gguf.fitting import Fitted, common_shape, parameters
from tracenas.exporters.gguf.layouts.layout import Draft
from tracenas.exporters.gguf.layouts.stock import STOCK
from tracenas.exporters.gguf.model import Decoder
from tracenas.exporters.gguf.weights import Weights

__all__ = ["PADDED"]


class Padded:
    """All blocks like the largest one."""

    name = "padded"

    def objection(self, model: Decoder) -> str:
        """What the family's own architecture does not have."""
        return STOCK.own_objection(_filled_up(model))

    def draft(self, model: Decoder, weights: Weights) -> Draft:
        """The stock layout of the filled-up model."""
        filled = _filled_up(model)
        draft = STOCK.draft(filled, Fitted(weights, model, filled))
        added, shape = parameters(filled) - parameters(model), filled.blocks[0]
        of = parameters(model)
        note = (
            f"PADDED: llama.cpp has no differing blocks here; every block is filled up with zeros to {shape.heads} "
            f"heads, {shape.kv} KV heads and {shape.width} channels, {added:,} parameters more "
            f"(+{100 * added / max(of, 1):.1f}% of the blocks' {of:,})"
        )
        return Draft(draft.arch, draft.metadata, draft.tensors, (note, *draft.notes), added)


def _filled_up(model: Decoder) -> Decoder:
    return model.with_blocks((common_shape(model),) * len(model.blocks))


PADDED = Padded()
