"""Gemma 3, text (`model_type: gemma3_text`): Gemma 2's norms, and q and k normed per head."""

from tracenas.families.decoder import LlamaLike

__all__ = ["FAMILY"]

FAMILY = LlamaLike(
    "gemma3_text",
    qk_norm=True,
    attention_norms=("input_layernorm", "post_attention_layernorm"),
    mlp_norms=("pre_feedforward_layernorm", "post_feedforward_layernorm"),
    attention_post_norm="post_attention_layernorm",
    mlp_post_norm="post_feedforward_layernorm",
    tied_by_default=True,
)
