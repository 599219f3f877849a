"""Scores of weights and their gradients, matrix by matrix: synaptic saliency, Pruner-Zero, LPZero, ZiCo."""

import math
from collections.abc import Collection

from tracenas.proxies.measurement import Measurement, Undefined, WeightSums

__all__ = ["lp_zero", "pruner_zero", "synaptic_saliency", "zico"]


def _matrices(measurement: Measurement) -> Collection[WeightSums]:
    if not measurement.weights:
        raise Undefined("no sub-block is left")
    return measurement.weights.values()


def synaptic_saliency(measurement: Measurement) -> float:
    """E_n Σ_i |θ_i · ∂L_n/∂θ_i| over the linear weights of the active sub-blocks, L_n the loss of sequence n.

    Per sequence, so that no gradient need be kept from one to the next and micro-batches make no difference.
    """
    return math.fsum(w.saliency for w in _matrices(measurement))


def pruner_zero(measurement: Measurement) -> float:
    """E_n Σ_l Σ_i W_i² · (|g_i| - min|g|)/(max|g| - min|g|), g of sequence n, over the active linear weights.

    The scaling is per matrix and sequence (of a matrix with a constant |g| it is 0).
    """
    return math.fsum(w.scaled for w in _matrices(measurement))


def lp_zero(measurement: Measurement) -> float:
    """Mean over the active linear weights of mean(W²) + E_n mean(softmax(g_n)²), the softmax over a matrix' rows.

    LPZero searches proxies as trees of two inputs with two unary operations each and one binary operation. This is
    the tree that its published code scores by: weight (square, mean) and gradient (softmax, square), joined by +.
    """
    return math.fsum(w.squares + w.softmax for w in _matrices(measurement)) / len(measurement.weights)


def zico(measurement: Measurement) -> float:
    """Σ_l log Σ_i E|g_i|/σ(g_i), averaged over the pairs of sequences (2m, 2m+1).

    l are the active linear weights. The paper's setting: two batches. Coordinates with σ = 0 are left out, and so
    is a matrix without any other, as in its published code.

    Raises:
        Undefined: with fewer than two sequences, or if no matrix is left.
    """
    counts = {len(w.ratios) for w in _matrices(measurement)}
    if counts == {0}:
        raise Undefined("two calibration sequences are needed")
    (pairs,) = counts
    return math.fsum(math.log(r) for w in measurement.weights.values() for r in w.ratios if r > 0) / pairs
