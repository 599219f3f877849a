"""MeCo (Jiang et al. 2023, §4): minimum eigenvalues of the correlation between features."""

import math

import numpy as np

from tracenas.proxies.measurement import Measurement, Proxy, Undefined

__all__ = ["PROXY", "meco"]


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


PROXY = Proxy(
    "meco",
    meco,
    needs=frozenset({"features"}),
    reference="Jiang et al. 2023, NeurIPS, MeCo, §4",
)
