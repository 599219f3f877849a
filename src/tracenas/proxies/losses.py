"""Scores read off the outputs: calibration loss, divergence from the base, loss after a few steps of recovery."""

import math

from tracenas.proxies.measurement import Measurement

__all__ = ["divergences", "few_steps", "losses", "negative_kl", "negative_loss", "negative_rise", "num_params"]


def negative_loss(measurement: Measurement) -> float:
    """-E_b[L(M_sub(b))], nats per token."""
    return -measurement.loss


def losses(measurement: Measurement) -> tuple[float, ...]:
    """The loss of every sequence."""
    return measurement.losses


def negative_kl(measurement: Measurement) -> float:
    """-E_b[KL(base ‖ candidate)], nats per token."""
    return -math.fsum(measurement.kls) / len(measurement.kls)


def divergences(measurement: Measurement) -> tuple[float, ...]:
    """The divergence on every sequence."""
    return measurement.kls


def few_steps(measurement: Measurement) -> float:
    """-E_b[L] on half of the calibration after a few steps of AdamW on the other half, nats per token."""
    return -math.fsum(measurement.recovered) / len(measurement.recovered)


def negative_rise(measurement: Measurement) -> float:
    """-Σ Δ of the candidate's widths, the predicted rise of the loss in nats per token."""
    assert measurement.rise is not None
    return -measurement.rise


def num_params(measurement: Measurement) -> float:
    """Parameters of the materialised model, embeddings and head included, tied ones once."""
    return float(measurement.parameters)
