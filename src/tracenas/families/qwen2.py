"""Qwen 2 and 2.5, dense (`model_type: qwen2`): biases on q, k and v."""

from collections.abc import Mapping
from typing import Any

from tracenas.families.decoder import Biases, LlamaLike

__all__ = ["FAMILY"]


class Qwen2(LlamaLike):
    """q, k and v have biases; o and the MLP have none."""

    def biases(self, config: Mapping[str, Any]) -> Biases:
        """q, k, v only."""
        return Biases(qkv=True)


FAMILY = Qwen2("qwen2")
