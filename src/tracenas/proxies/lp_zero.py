"""LPZero's proxy for language models (Dong et al. 2024, LPZero): of weights and gradients.

The paper searches proxies as trees of two inputs with two unary operations each and one binary operation. The tree
that its published code scores by: input (weight, gradient), operations (square, mean | softmax, square), joined by +.
"""

import math

from tracenas.proxies.measurement import Measurement, Proxy, Undefined

__all__ = ["PROXY", "lp_zero"]


def lp_zero(measurement: Measurement) -> float:
    """Mean over the active linear weights of mean(W²) + E_n mean(softmax(g_n)²), the softmax over a matrix' rows."""
    if not measurement.weights:
        raise Undefined("no sub-block is left")
    return math.fsum(w.squares + w.softmax for w in measurement.weights.values()) / len(measurement.weights)


PROXY = Proxy(
    "lp_zero",
    lp_zero,
    needs=frozenset({"weight_gradients"}),
    reference="Dong et al. 2024, arXiv 2410.04808, and its published code",
    cost="forward and full backward pass",
)
