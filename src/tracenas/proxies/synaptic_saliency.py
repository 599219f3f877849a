"""Synaptic saliency (Tanaka et al. 2020, §4; Abdelfattah et al. 2021, §3.2): Σ |θ ⊙ ∂L/∂θ|."""

import math

from tracenas.proxies.measurement import Measurement, Proxy, Undefined

__all__ = ["PROXY", "synaptic_saliency"]


def synaptic_saliency(measurement: Measurement) -> float:
    """E_n Σ_i |θ_i · ∂L_n/∂θ_i| over the linear weights of the active sub-blocks, L_n the loss of sequence n.

    Per sequence, so that no gradient need be kept from one to the next and micro-batches make no difference.
    """
    if not measurement.weights:
        raise Undefined("no sub-block is left")
    return math.fsum(w.saliency for w in measurement.weights.values())


PROXY = Proxy(
    "synaptic_saliency",
    synaptic_saliency,
    needs=frozenset({"weight_gradients"}),
    reference="Tanaka et al. 2020, arXiv 2006.05467, §4",
    cost="forward and full backward pass",
)
