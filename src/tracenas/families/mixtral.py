"""Mixtral (`model_type: mixtral`): Mistral's attention without biases, experts in every block."""

from tracenas.families.decoder import Biases
from tracenas.families.experts import MixtureOfExperts

__all__ = ["FAMILY"]

FAMILY = MixtureOfExperts("mixtral", fixed_biases=Biases())
