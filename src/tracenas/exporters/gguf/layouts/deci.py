"""`deci`, made for Nemotron: Llama's blocks, each with its own heads, KV heads and MLP width.

Pairs of coordinates are interleaved (rows of q and k, and their biases, are permuted). A block without attention has
0 heads, except the first, whose counts llama.cpp divides by: it gets one zero head. A block without MLP would load
and lose its attention's output: it gets a zero MLP of width 32.
"""

from tracenas.exporters.gguf.layouts.layout import (
    ATTENTION_NAMES,
    MLP_NAMES,
    FileDraft,
    Layout,
    Tensor,
    block_tensors,
    first_reason,
    interleaved,
)
from tracenas.exporters.gguf.layouts.stubbed import stubbed_draft
from tracenas.exporters.gguf.model import Decoder
from tracenas.exporters.gguf.weights import Weights

__all__ = ["DECI"]


def _objection(model: Decoder) -> str:
    """Norms in attention, another activation, norms behind sub-blocks."""
    return first_reason(
        (
            (model.qk_norm, "it has no norms of q and k"),
            (model.family not in ("llama", "mistral", "qwen2"), f"it has not the norms of {model.family}"),
            (model.activation != "silu", f"its activation is silu, the model's is {model.activation}"),
        )
    )


def _draft(model: Decoder, weights: Weights) -> FileDraft:
    """Blocks as they are, with stubs where llama.cpp needs them."""
    return stubbed_draft("deci", model, weights, _block, attention=model.headless & {0}, mlp=model.flat)


def _block(model: Decoder, weights: Weights, index: int) -> list[Tensor]:
    names = {"input_layernorm": "attn_norm", **ATTENTION_NAMES} if model.blocks[index].heads else {}
    names |= {"post_attention_layernorm": "ffn_norm", **MLP_NAMES}
    return block_tensors(weights, index, names, dict.fromkeys(("attn_q", "attn_k"), interleaved(model.head_dim)))


DECI = Layout("deci", _objection, _draft)
