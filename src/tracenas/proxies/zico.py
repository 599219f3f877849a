"""ZiCo (Li et al. 2023, §3, eq. 17): inverse coefficient of variation of the gradients."""

import math

from tracenas.proxies.measurement import Measurement, Proxy, Undefined

__all__ = ["PROXY", "zico"]


def zico(measurement: Measurement) -> float:
    """Σ_l log Σ_i E|g_i|/σ(g_i), averaged over the pairs of sequences (2m, 2m+1).

    l are the active linear weights. The paper's setting: two batches. Coordinates with σ = 0 are left out, and so
    is a matrix without any other, as in its published code.

    Raises:
        Undefined: with fewer than two sequences, or if no matrix is left.
    """
    counts = {len(w.ratios) for w in measurement.weights.values()}
    if not counts:
        raise Undefined("no sub-block is left")
    if counts == {0}:
        raise Undefined("two calibration sequences are needed")
    (pairs,) = counts
    return math.fsum(math.log(r) for w in measurement.weights.values() for r in w.ratios if r > 0) / pairs


PROXY = Proxy(
    "zico",
    zico,
    needs=frozenset({"weight_gradients"}),
    reference="Li et al. 2023, arXiv 2301.11300, §3",
    cost="forward and full backward pass",
)
