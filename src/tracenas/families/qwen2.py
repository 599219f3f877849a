"""Qwen 2 and 2.5, dense (`model_type: qwen2`): biases on q, k and v, none on o and in the MLP."""

from tracenas.families.decoder import Biases, LlamaLike

__all__ = ["FAMILY"]

FAMILY = LlamaLike("qwen2", fixed_biases=Biases(qkv=True))
