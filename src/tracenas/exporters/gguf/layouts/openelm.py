"""`openelm`: blocks of any shape with norms of q and k, and embeddings that are the head, too: tied Qwen 3.

q, k and v of a block are one matrix [q | k | v], not permuted. Every block must have attention and an MLP: where one
was removed, one zero head or a zero MLP of width 32 stands for it.
"""

from functools import partial

import numpy as np

from tracenas.exporters.gguf.layouts.layout import MLP_NAMES, Draft, Tensor, first_of, moved
from tracenas.exporters.gguf.layouts.stubbed import flat_blocks, headless_blocks, stubbed_draft
from tracenas.exporters.gguf.model import Decoder
from tracenas.exporters.gguf.weights import Array, Weights

__all__ = ["OPENELM"]


class OpenElm:
    """Tied Qwen 3 without biases, of any shape."""

    name = "openelm"

    def objection(self, model: Decoder) -> str:
        """An untied head, biases, no norms of q and k, Llama 3's rope."""
        return first_of(
            (
                (not model.tied, "its head is the embeddings, the model's is its own"),
                (not model.qk_norm, "it norms q and k, the model does not"),
                (model.family != "qwen3", f"it has not the norms of {model.family}"),
                (bool(model.biases), f"it has no biases (the model's: {', '.join(sorted(model.biases))})"),
                (model.activation != "silu", f"its activation is silu, the model's is {model.activation}"),
                (model.ropes[0].factors() is not None, "it has no rope factors (llama3)"),
            )
        )

    def draft(self, model: Decoder, weights: Weights) -> Draft:
        """Blocks as they are, with a stub for each part that was removed."""
        headless, flat = headless_blocks(model), flat_blocks(model)
        return stubbed_draft("openelm", model, weights, _block, attention=headless, mlp=flat)


def _block(model: Decoder, weights: Weights, index: int) -> list[Tensor]:
    at, to = f"model.layers.{index}.", f"blk.{index}."
    parts = tuple(f"{at}self_attn.{p}_proj.weight" for p in "qkv")
    shapes = [weights.shapes[p] for p in parts]
    fused = Tensor(
        f"{to}attn_qkv.weight", (sum(s[0] for s in shapes), shapes[0][1]), parts, partial(_stacked, weights, parts)
    )
    names = {
        "input_layernorm": "attn_norm",
        "self_attn.q_norm": "attn_q_norm",
        "self_attn.k_norm": "attn_k_norm",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        **MLP_NAMES,
    }
    return [fused, *(moved(weights, f"{at}{s}.weight", f"{to}{n}.weight") for s, n in names.items())]


def _stacked(weights: Weights, parts: tuple[str, ...]) -> Array:
    return np.concatenate([weights.read(part) for part in parts])


OPENELM = OpenElm()
