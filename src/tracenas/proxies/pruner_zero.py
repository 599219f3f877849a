"""Pruner-Zero's metric as a score (Dong et al. 2024, Pruner-Zero, §4; TraceNAS §C.1): Σ W² ⊙ minmax|G|."""

import math

from tracenas.proxies.measurement import Measurement, Proxy, Undefined

__all__ = ["PROXY", "pruner_zero"]


def pruner_zero(measurement: Measurement) -> float:
    """E_n Σ_l Σ_i W_i² · (|g_i| - min|g|)/(max|g| - min|g|), g of sequence n, over the active linear weights.

    The scaling is per matrix and sequence (of a matrix with a constant |g| it is 0).
    """
    if not measurement.weights:
        raise Undefined("no sub-block is left")
    return math.fsum(w.scaled for w in measurement.weights.values())


PROXY = Proxy(
    "pruner_zero",
    pruner_zero,
    needs=frozenset({"weight_gradients"}),
    reference="Dong et al. 2024, arXiv 2406.02924; TraceNAS §C.1",
    cost="forward and full backward pass",
)
