"""Refits of output projections as commands ask for them: their text, their strength, and which of them is written."""

__all__ = ["COMPENSATION", "DEFAULT_SAMPLES", "HELD_OUT", "HELD_OUT_SAMPLES", "STATISTICS_TOKENS"]

COMPENSATION, HELD_OUT = "compensation.safetensors", "held_out.safetensors"
"""In a run directory: the text that refits are fitted on, and the text that they are compared on."""

DEFAULT_SAMPLES, HELD_OUT_SAMPLES = 48, 16
"""Sequences of the two."""

STATISTICS_TOKENS = 24_576
"""What sensitivities, and the refits that go with them, are measured on by default."""
