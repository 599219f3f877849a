"""Loss after a handful of recovery steps: not training-free, the upper reference of the others."""

import math

from tracenas.proxies.measurement import Measurement, Proxy

__all__ = ["PROXY", "few_steps"]


def few_steps(measurement: Measurement) -> float:
    """-E_b[L] on half of the calibration after a few steps of AdamW on the other half, nats per token."""
    return -math.fsum(measurement.recovered) / len(measurement.recovered)


PROXY = Proxy(
    "few_steps",
    few_steps,
    needs=frozenset({"steps"}),
    reference="tracenas, docs/proxies.md",
    cost="recovery steps: forward and full backward pass each, and the optimizer",
)
