"""Calibration loss of the candidate: what a sceptic would rank by; one forward pass, no gradient."""

from tracenas.proxies.measurement import Measurement, Proxy

__all__ = ["PROXY", "losses", "negative_loss"]


def negative_loss(measurement: Measurement) -> float:
    """-E_b[L(M_sub(b))], nats per token."""
    return -measurement.loss


def losses(measurement: Measurement) -> tuple[float, ...]:
    """The loss of every sequence."""
    return measurement.losses


PROXY = Proxy("loss", negative_loss, reference="baseline", terms=losses)
