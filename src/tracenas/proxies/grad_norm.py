"""Gradient norm (Abdelfattah et al. 2021, Zero-Cost Proxies for Lightweight NAS, §3.2), of the gradient trace."""

import math

from tracenas.proxies.measurement import Measurement, Proxy

__all__ = ["PROXY", "grad_norm"]


def grad_norm(measurement: Measurement) -> float:
    """‖g‖₂ over the traces of all active sub-blocks; at full rank the norm of the weights' gradient."""
    return math.sqrt(math.fsum(sums.gg for sums in measurement.sums.values()))


PROXY = Proxy(
    "grad_norm",
    grad_norm,
    needs=frozenset({"trace"}),
    reference="Abdelfattah et al. 2021, arXiv 2101.08134, §3.2",
    cost="forward and input-gradient backward pass",
)
