"""Scores of gradient traces: Φ, the sparsity-weighted trace correlation (TraceNAS §3.4, eq. 1, 2), and variants."""

import math

from tracenas.proxies.measurement import Measurement, SubBlockSums

__all__ = ["correlations", "grad_norm", "pearson", "phi", "phi_cosine", "phi_dot", "phi_unweighted"]


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


def phi_unweighted(measurement: Measurement) -> float:
    """Σ ρ over the active sub-blocks: Φ without the sparsity weights (§C.2; what the published code computes)."""
    rho, _ = correlations(measurement)
    return math.fsum(rho.values())


def phi_dot(measurement: Measurement) -> float:
    """Σ r·⟨g, b⟩ over the active sub-blocks: the dot product in place of the correlation (§C.2)."""
    return math.fsum(sums.retention * sums.gb for sums in measurement.sums.values())


def phi_cosine(measurement: Measurement) -> float:
    """Σ r·cos(g, b) over the active sub-blocks (§C.2); a trace that is zero or not finite has cosine 0 (decision 5)."""
    return math.fsum(sums.retention * _cosine(sums) for sums in measurement.sums.values())


def _cosine(sums: SubBlockSums) -> float:
    if not all(math.isfinite(v) for v in (sums.gg, sums.bb, sums.gb)) or sums.gg <= 0 or sums.bb <= 0:
        return 0.0
    return sums.gb / math.sqrt(sums.gg * sums.bb)


def grad_norm(measurement: Measurement) -> float:
    """‖g‖₂ over the traces of all active sub-blocks; at full rank the norm of the weights' gradient."""
    return math.sqrt(math.fsum(sums.gg for sums in measurement.sums.values()))
