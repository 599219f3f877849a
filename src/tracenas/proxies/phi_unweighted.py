"""Φ without the sparsity weights (TraceNAS §C.2, "TraceNAS - Unweighted"; what the published code computes)."""

import math

from tracenas.proxies.measurement import Measurement, Proxy
from tracenas.proxies.phi import correlations

__all__ = ["PROXY", "phi_unweighted"]


def phi_unweighted(measurement: Measurement) -> float:
    """Σ ρ over the active sub-blocks."""
    rho, _ = correlations(measurement)
    return math.fsum(rho.values())


PROXY = Proxy(
    "phi_unweighted",
    phi_unweighted,
    needs=frozenset({"trace"}),
    reference="TraceNAS §C.2",
    cost="forward and input-gradient backward pass",
)
