"""Gemma 2 (`model_type: gemma2`): norms before and after every sub-block, soft-capped scores, sliding attention."""

from tracenas.families.decoder import LlamaLike

__all__ = ["FAMILY"]

FAMILY = LlamaLike(
    "gemma2",
    attention_norms=("input_layernorm", "post_attention_layernorm"),
    mlp_norms=("pre_feedforward_layernorm", "post_feedforward_layernorm"),
    attention_post_norm="post_attention_layernorm",
    mlp_post_norm="post_feedforward_layernorm",
    tied_by_default=True,
)
