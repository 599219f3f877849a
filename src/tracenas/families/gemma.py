"""Gemma 1 (`model_type: gemma`): Llama's blocks; embeddings are scaled and tied."""

from tracenas.families.decoder import LlamaLike

__all__ = ["FAMILY"]

FAMILY = LlamaLike("gemma", tied_by_default=True)
