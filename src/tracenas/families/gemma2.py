"""Gemma 2 (`model_type: gemma2`): norms before and after every sub-block, both soft-capped and sliding attention."""

from collections.abc import Mapping
from typing import Any

from tracenas.families.decoder import Biases, LlamaLike

__all__ = ["FAMILY"]


class Gemma2(LlamaLike):
    """The MLP has no biases; attention has them if the configuration says so."""

    def biases(self, config: Mapping[str, Any]) -> Biases:
        """By `attention_bias`."""
        attention = bool(config.get("attention_bias", False))
        return Biases(qkv=attention, o=attention)


FAMILY = Gemma2(
    "gemma2",
    attention_norms=("input_layernorm", "post_attention_layernorm"),
    mlp_norms=("pre_feedforward_layernorm", "post_feedforward_layernorm"),
    tied=True,
)
