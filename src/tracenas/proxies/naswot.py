"""NASWOT (Mellor et al. 2021, Neural Architecture Search without Training, §3): how well codes tell inputs apart."""

import numpy as np

from tracenas.proxies.measurement import Measurement, Proxy, Undefined

__all__ = ["PROXY", "naswot"]


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


PROXY = Proxy(
    "naswot",
    naswot,
    needs=frozenset({"codes"}),
    reference="Mellor et al. 2021, arXiv 2006.04647, §3",
)
