"""`openelm`: blocks of any shape with norms of q and k, and embeddings that are the head, too: tied Qwen 3.

q, k and v of a block are one matrix [q | k | v], not permuted. Every block must have attention and an MLP: where one
was removed, one zero head or a zero MLP of width 32 stands for it.
"""

import numpy as np

from tracenas.exporters.gguf.layouts.layout import (
    MLP_NAMES,
    QK_NORM_NAMES,
    FileDraft,
    Layout,
    Tensor,
    block_tensors,
    first_reason,
)
from tracenas.exporters.gguf.layouts.stubbed import stubbed_draft
from tracenas.exporters.gguf.model import Decoder
from tracenas.exporters.gguf.weights import Weights

__all__ = ["OPENELM"]

_NAMES = {
    "input_layernorm": "attn_norm",
    **QK_NORM_NAMES,
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    **MLP_NAMES,
}


def _objection(model: Decoder) -> str:
    """An untied head, biases, no norms of q and k, Llama 3's rope."""
    return first_reason(
        (
            (not model.tied, "its head is the embeddings, the model's is its own"),
            (not model.qk_norm, "it norms q and k, the model does not"),
            (model.family != "qwen3", f"it has not the norms of {model.family}"),
            (bool(model.biases), f"it has no biases (the model's: {', '.join(sorted(model.biases))})"),
            (model.activation != "silu", f"its activation is silu, the model's is {model.activation}"),
            (model.ropes[0].factors() is not None, "it has no rope factors (llama3)"),
        )
    )


def _draft(model: Decoder, weights: Weights) -> FileDraft:
    """Blocks as they are, with a stub for each part that was removed."""
    return stubbed_draft("openelm", model, weights, _block, attention=model.headless, mlp=model.flat)


def _block(model: Decoder, weights: Weights, index: int) -> list[Tensor]:
    parts = tuple(f"model.layers.{index}.self_attn.{p}_proj.weight" for p in "qkv")
    rows = sum(weights.shapes[part][0] for part in parts)
    fused = Tensor(
        f"blk.{index}.attn_qkv.weight",
        (rows, model.hidden),
        parts,
        lambda: np.concatenate([weights.read(part) for part in parts]),
    )
    return [fused, *block_tensors(weights, index, _NAMES)]


OPENELM = Layout("openelm", _objection, _draft)
