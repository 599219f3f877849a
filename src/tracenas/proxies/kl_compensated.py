"""Divergence of the compensated candidate from the base, on other text than the compensation's; forward pass only."""

from tracenas.proxies.kl import divergences, negative_kl
from tracenas.proxies.measurement import Proxy

__all__ = ["PROXY"]

PROXY = Proxy(
    "kl_compensated",
    negative_kl,
    needs=frozenset({"base_logits", "compensated"}),
    reference="tracenas, docs/proxies.md",
    terms=divergences,
)
