"""Φ of the compensated candidate: trace correlations (TraceNAS §3.4) after the output projections are refitted."""

from tracenas.proxies.measurement import Proxy
from tracenas.proxies.phi import phi

__all__ = ["PROXY"]

PROXY = Proxy(
    "phi_compensated",
    phi,
    needs=frozenset({"trace", "compensated"}),
    reference="tracenas, docs/compensation.md",
    cost="forward and input-gradient backward pass",
)
