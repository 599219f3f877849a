"""Scores of activations: NASWOT's codes, MeCo's correlations between features, hidden states against the base's."""

import math

import numpy as np

from tracenas.proxies.measurement import Measurement, Undefined

__all__ = ["hidden_alignment", "meco", "naswot"]


def naswot(measurement: Measurement) -> float:
    """log |det K|, K_ij = bits in which the binary activation codes of sequences i and j agree (eq. 2).

    The code of a sequence is the sign of the gate's pre-activation (where there is no gate: of the activation's) in
    every MLP channel, at evenly spaced positions: gated SiLU and GELU MLPs have no ReLU whose pattern could be read.

    Raises:
        Undefined: without an MLP, or if two sequences have the same code.
    """
    kernel = measurement.kernel
    if kernel is None or not kernel.any():
        raise Undefined("no MLP is left whose activation codes could be read")
    sign, value = np.linalg.slogdet(kernel)
    if sign <= 0 or not np.isfinite(value):
        raise Undefined("the kernel of activation codes is singular")
    return float(value)


def meco(measurement: Measurement) -> float:
    """Σ_l λ_min(P_l), P_l the Pearson correlation matrix of the features of sub-block l's output, over all tokens.

    Of a fixed number of features, evenly spaced (as the paper's own optimisation takes a fixed number of channels):
    the eigenvalues of the whole width would cost more than the pass. A constant feature correlates with none (0).

    Raises:
        Undefined: if no sub-block is left, or a correlation is not finite.
    """
    if not measurement.features:
        raise Undefined("no sub-block is left")
    if not all(np.isfinite(p).all() for p in measurement.features.values()):
        raise Undefined("a sub-block's outputs are not finite")
    return math.fsum(float(np.linalg.eigvalsh(p)[0]) for p in measurement.features.values())


def hidden_alignment(measurement: Measurement) -> float:
    """Mean over blocks and (evenly spaced) tokens of cos(h_l, h_l of the base), h_l the output of block l.

    What a skipped block hands on is its input.
    """
    return math.fsum(measurement.alignment) / len(measurement.alignment)
