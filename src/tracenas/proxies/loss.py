"""Calibration loss of the candidate: what a sceptic would rank by; one forward pass, no gradient."""

from tracenas.proxies.measurement import Measurement, Proxy

__all__ = ["PROXY"]


def negative_loss(measurement: Measurement) -> float:
    """-E_b[L(M_sub(b))], nats per token."""
    return -measurement.loss


PROXY = Proxy("loss", negative_loss, reference="baseline")
