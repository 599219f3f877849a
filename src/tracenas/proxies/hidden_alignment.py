"""How far the candidate's hidden states point where the base's do; one forward pass."""

import math

from tracenas.proxies.measurement import Measurement, Proxy

__all__ = ["PROXY", "hidden_alignment"]


def hidden_alignment(measurement: Measurement) -> float:
    """Mean over blocks and (evenly spaced) tokens of cos(h_l, h_l of the base), h_l the output of block l.

    What a skipped block hands on is its input.
    """
    return math.fsum(measurement.alignment) / len(measurement.alignment)


PROXY = Proxy(
    "hidden_alignment",
    hidden_alignment,
    needs=frozenset({"hidden"}),
    reference="tracenas, docs/proxies.md",
)
