"""Φ with the dot product of the traces in place of their Pearson correlation (TraceNAS §C.2)."""

import math

from tracenas.proxies.measurement import Measurement, Proxy

__all__ = ["PROXY", "phi_dot"]


def phi_dot(measurement: Measurement) -> float:
    """Σ r·⟨g, b⟩ over the active sub-blocks."""
    return math.fsum(sums.retention * sums.gb for sums in measurement.sums.values())


PROXY = Proxy(
    "phi_dot",
    phi_dot,
    needs=frozenset({"trace"}),
    reference="TraceNAS §C.2",
    cost="forward and input-gradient backward pass",
)
