"""Calibration loss of the compensated candidate, on other text than the compensation's; forward pass only."""

from tracenas.proxies.loss import losses, negative_loss
from tracenas.proxies.measurement import Proxy

__all__ = ["PROXY"]

PROXY = Proxy(
    "loss_compensated",
    negative_loss,
    needs=frozenset({"compensated"}),
    reference="tracenas, docs/compensation.md",
    terms=losses,
)
