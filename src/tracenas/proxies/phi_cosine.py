"""Φ with the cosine similarity of the traces in place of their Pearson correlation (TraceNAS §C.2)."""

import math

from tracenas.proxies.measurement import Measurement, Proxy, SubBlockSums

__all__ = ["PROXY", "phi_cosine"]


def phi_cosine(measurement: Measurement) -> float:
    """Σ r·cos(g, b) over the active sub-blocks; a trace that is zero or not finite has cosine 0 (decision 5)."""
    return math.fsum(sums.retention * _cosine(sums) for sums in measurement.sums.values())


def _cosine(sums: SubBlockSums) -> float:
    if not all(math.isfinite(v) for v in (sums.gg, sums.bb, sums.gb)) or sums.gg <= 0 or sums.bb <= 0:
        return 0.0
    return sums.gb / math.sqrt(sums.gg * sums.bb)


PROXY = Proxy(
    "phi_cosine",
    phi_cosine,
    needs=frozenset({"trace"}),
    reference="TraceNAS §C.2",
    cost="forward and input-gradient backward pass",
)
