"""Divergence of the candidate's next-token distributions from the base's; one forward pass."""

import math

from tracenas.proxies.measurement import Measurement, Proxy

__all__ = ["PROXY", "divergences", "negative_kl"]


def negative_kl(measurement: Measurement) -> float:
    """-E_b[KL(base ‖ candidate)], nats per token."""
    return -math.fsum(measurement.kls) / len(measurement.kls)


def divergences(measurement: Measurement) -> tuple[float, ...]:
    """The divergence on every sequence."""
    return measurement.kls


PROXY = Proxy(
    "kl",
    negative_kl,
    needs=frozenset({"base_logits"}),
    reference="baseline",
    terms=divergences,
)
