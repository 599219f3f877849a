"""Qwen 3, dense (`model_type: qwen3`): q and k are normed per head, `head_dim` is its own setting."""

from collections.abc import Mapping
from typing import Any

from tracenas.families.decoder import Biases, LlamaLike

__all__ = ["FAMILY"]


class Qwen3(LlamaLike):
    """The MLP has no biases; attention has them if the configuration says so."""

    def biases(self, config: Mapping[str, Any]) -> Biases:
        """By `attention_bias`."""
        attention = bool(config.get("attention_bias", False))
        return Biases(qkv=attention, o=attention)


FAMILY = Qwen3("qwen3", qk_norm=True)
