"""Refits of output projections as commands ask for them: their text, their strength, and which of them is written."""

from collections.abc import Mapping

__all__ = [
    "COMPARED_SHARE",
    "COMPARED_TOKENS",
    "COMPENSATION",
    "DEFAULT_SAMPLES",
    "DRIFT_TOKENS",
    "FIRST_TOKENS",
    "HELD_OUT",
    "HELD_OUT_SAMPLES",
    "RIDGES",
    "SCALE_TOKENS",
    "STATISTICS_TOKENS",
    "STEP_TOKENS",
    "compared_windows",
    "scale_steps",
]

COMPENSATION, HELD_OUT = "compensation.safetensors", "held_out.safetensors"
"""In a run directory: the text that refits are fitted on, and the text that they are compared on."""

DEFAULT_SAMPLES, HELD_OUT_SAMPLES = 48, 16
"""Sequences of the two."""

STATISTICS_TOKENS = 24_576
"""What sensitivities, and the refits that go with them, are measured on by default."""

RIDGES: Mapping[str, tuple[float, ...]] = {"mean": (1e-4, 1e-3, 1e-2, 1e-1), "channel": (1e-1,)}
"""Strengths that are compared, by what they are relative to."""

COMPARED_SHARE = 5
"""Aims of sequential refits are compared on a fifth of the blocks."""

COMPARED_TOKENS, FIRST_TOKENS, DRIFT_TOKENS = 4096, 1024, 2048
"""Realisations of a candidate are compared on so many tokens of held-out text, on the second number where that decides,
and shares of the drift on the third."""

_SCALE_STEPS = 8, 16
"""Steps that scales are trained for at least and at most; the most on `STATISTICS_TOKENS`."""

_LEAST_WINDOWS = 2
"""Windows that anything is compared on at least, where there are so many."""


def compared_windows(tokens: int, length: int) -> int:
    """Windows of `length` tokens that hold `tokens`."""
    return max(_LEAST_WINDOWS, -(-tokens // length))


SCALE_TOKENS = 512
"""Tokens of a step that scales are trained for, at least one sequence."""

STEP_TOKENS = 1024
"""What blocks are trained on in a step, at least one sequence."""


def scale_steps(tokens: int) -> int:
    """Steps that scales are trained for behind a refit on `tokens`: less is done where less text was asked for."""
    least, most = _SCALE_STEPS
    return max(least, min(most, most * tokens // STATISTICS_TOKENS))
