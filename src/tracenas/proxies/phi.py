"""Φ, the sparsity-weighted trace correlation (TraceNAS §3.4, eq. 1 and 2)."""

import math

from tracenas.proxies.measurement import Measurement, Proxy, SubBlockSums

__all__ = ["PROXY", "correlations", "pearson", "phi"]


def pearson(sums: SubBlockSums) -> tuple[float, str | None]:
    """ρ = (Σgb - ΣgΣb/N) / √((Σg² - (Σg)²/N)(Σb² - (Σb)²/N)) over the base's N coordinates (eq. 1).

    Returns:
        ρ and None, or 0 and the reason where a trace is constant or not finite (decision 5).
    """
    n = sums.count
    if not all(math.isfinite(v) for v in (sums.g, sums.gg, sums.gb, sums.b, sums.bb)):
        return 0.0, "trace is not finite"
    variance_g = sums.gg - sums.g * sums.g / n
    variance_b = sums.bb - sums.b * sums.b / n
    if variance_g <= 0 or variance_b <= 0:
        return 0.0, "trace is constant"
    return (sums.gb - sums.g * sums.b / n) / math.sqrt(variance_g * variance_b), None


def correlations(measurement: Measurement) -> tuple[dict[tuple[int, str], float], list[str]]:
    """ρ of every active sub-block, and the reasons of those that are undefined."""
    rho, reasons = {}, []
    for (layer, name), sums in measurement.sums.items():
        rho[layer, name], reason = pearson(sums)
        if reason is not None:
            reasons.append(f"layer {layer} {name}: {reason}")
    return rho, reasons


def phi(measurement: Measurement) -> float:
    """Φ = Σ_attention r·ρ + Σ_mlp r·ρ over the active sub-blocks (eq. 2); Φ(base) = 2L."""
    rho, _ = correlations(measurement)
    return math.fsum(measurement.sums[key].retention * value for key, value in rho.items())


PROXY = Proxy(
    "phi",
    phi,
    needs=frozenset({"trace"}),
    reference="TraceNAS §3.4",
    cost="forward and input-gradient backward pass",
)
