"""What the layouts of blocks that differ share: heads and widths per block, and zero stubs for what was removed."""

from collections.abc import Callable

from tracenas.exporters.gguf.fitting import Fitted, parameters, with_stubs
from tracenas.exporters.gguf.layouts.layout import FileDraft, Tensor, common_metadata, outer_tensors, window_note
from tracenas.exporters.gguf.model import Decoder
from tracenas.exporters.gguf.weights import Weights

__all__ = ["stubbed_draft"]


def stubbed_draft(
    arch: str,
    model: Decoder,
    weights: Weights,
    block: Callable[[Decoder, Weights, int], list[Tensor]],
    *,
    attention: frozenset[int],
    mlp: frozenset[int],
) -> FileDraft:
    """Blocks as they are, with one zero head and zero MLPs in the named ones; says so.

    Args:
        block: the tensors of one block.
    """
    stubbed = with_stubs(model, attention=attention, mlp=mlp)
    fitted = Fitted(weights, model, stubbed)
    before, behind = outer_tensors(stubbed, fitted)
    inner = [tensor for i in range(len(model.blocks)) for tensor in block(stubbed, fitted, i)]
    added = parameters(stubbed) - parameters(model)
    notes = window_note(model)
    if added:
        where = [*(f"attention of block {i}" for i in sorted(attention)), *(f"MLP of block {i}" for i in sorted(mlp))]
        notes += (f"zero stubs, {added:,} parameters, for what was removed: {', '.join(where)}",)
    metadata = common_metadata(arch, stubbed, per_block=True)
    return FileDraft(arch, metadata, (*before, *inner, *behind), notes, added)
