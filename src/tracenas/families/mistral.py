"""Mistral (`model_type: mistral`): Llama's blocks without biases, with an optional sliding window."""

from tracenas.families.decoder import Biases, LlamaLike

__all__ = ["FAMILY"]

FAMILY = LlamaLike("mistral", fixed_biases=Biases())
