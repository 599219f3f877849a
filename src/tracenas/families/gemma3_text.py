"""Gemma 3, text (`model_type: gemma3_text`): Gemma 2's norms, and q and k normed per head."""

from dataclasses import replace

from tracenas.families import gemma2

__all__ = ["FAMILY"]

FAMILY = replace(gemma2.FAMILY, model_type="gemma3_text", qk_norm=True)
