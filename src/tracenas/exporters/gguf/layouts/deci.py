"""`deci`, made for Nemotron: Llama's blocks, each with its own heads, KV heads and MLP width.

Pairs of coordinates are interleaved (rows of q and k, and their biases, are permuted). A block without attention has
0 heads, except the first, whose counts llama.cpp divides by: it gets one zero head. A block without MLP would load
and lose its attention's output: it gets a zero MLP of width 32.
"""

from tracenas.exporters.gguf.layouts.layout import (
    ATTENTION_NAMES,
    MLP_NAMES,
    Draft,
    Tensor,
    first_of,
    interleaved,
    moved,
)
from tracenas.exporters.gguf.layouts.stubbed import flat_blocks, headless_blocks, stubbed_draft
from tracenas.exporters.gguf.model import Decoder
from tracenas.exporters.gguf.weights import Weights

__all__ = ["DECI"]


class Deci:
    """Llama, Mistral and Qwen 2 of any shape."""

    name = "deci"

    def objection(self, model: Decoder) -> str:
        """Norms in attention, another activation, norms behind sub-blocks."""
        return first_of(
            (
                (model.qk_norm, "it has no norms of q and k"),
                (model.family not in ("llama", "mistral", "qwen2"), f"it has not the norms of {model.family}"),
                (model.activation != "silu", f"its activation is silu, the model's is {model.activation}"),
            )
        )

    def draft(self, model: Decoder, weights: Weights) -> Draft:
        """Blocks as they are, with stubs where llama.cpp needs them."""
        first = headless_blocks(model) & {0}
        return stubbed_draft("deci", model, weights, _block, attention=first, mlp=flat_blocks(model))


def _block(model: Decoder, weights: Weights, index: int) -> list[Tensor]:
    shape, at, to = model.blocks[index], f"model.layers.{index}.", f"blk.{index}."
    permute = interleaved(model.head_dim)
    names = {"input_layernorm": "attn_norm", **ATTENTION_NAMES} if shape.heads else {}
    names |= {"post_attention_layernorm": "ffn_norm", **MLP_NAMES}
    found = []
    for source, name in names.items():
        change = permute if name in ("attn_q", "attn_k") else None
        for kind in ("weight", "bias"):
            if f"{at}{source}.{kind}" in weights.shapes:
                found.append(moved(weights, f"{at}{source}.{kind}", f"{to}{name}.{kind}", change))
    return found


DECI = Deci()
