"""Mistral (`model_type: mistral`): Llama's blocks without biases, with an optional sliding window."""

from collections.abc import Mapping
from typing import Any

from tracenas.families.decoder import Biases, LlamaLike

__all__ = ["FAMILY"]


class Mistral(LlamaLike):
    """Mistral has no biases, whatever the configuration says."""

    def biases(self, config: Mapping[str, Any]) -> Biases:
        """None."""
        return Biases()


FAMILY = Mistral("mistral")
