"""Gemma 3, text (`model_type: gemma3_text`): Gemma 2's norms, q and k normed per head, no soft-capping by default."""

from collections.abc import Mapping
from typing import Any

from tracenas.families.decoder import Biases, LlamaLike

__all__ = ["FAMILY"]


class Gemma3Text(LlamaLike):
    """The MLP has no biases; attention has them if the configuration says so."""

    def biases(self, config: Mapping[str, Any]) -> Biases:
        """By `attention_bias`."""
        attention = bool(config.get("attention_bias", False))
        return Biases(qkv=attention, o=attention)


FAMILY = Gemma3Text(
    "gemma3_text",
    qk_norm=True,
    attention_norms=("input_layernorm", "post_attention_layernorm"),
    mlp_norms=("pre_feedforward_layernorm", "post_feedforward_layernorm"),
    tied=True,
)
