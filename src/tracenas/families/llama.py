"""Llama 1 to 3 (`model_type: llama`)."""

from tracenas.families.decoder import LlamaLike

__all__ = ["FAMILY"]

FAMILY = LlamaLike("llama")
