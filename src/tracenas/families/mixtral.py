"""Mixtral (`model_type: mixtral`): Mistral's attention, experts in every block."""

from collections.abc import Mapping
from typing import Any

from tracenas.families.decoder import Biases
from tracenas.families.experts import MixtureOfExperts

__all__ = ["FAMILY"]


class Mixtral(MixtureOfExperts):
    """Mixtral has no biases, whatever the configuration says."""

    def biases(self, config: Mapping[str, Any]) -> Biases:
        """None."""
        return Biases()


FAMILY = Mixtral("mixtral")
