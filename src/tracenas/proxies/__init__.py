"""Proxies: one file each; every one can drive the search, and so can a weighted sum of them (`combination`)."""

from tracenas.proxies.measurement import Measurement, Proxy, SubBlockSums, Undefined, WeightSums
from tracenas.registry import Registry

__all__ = ["PROXIES", "Measurement", "Proxy", "SubBlockSums", "Undefined", "WeightSums"]

_NAMES = (
    "few_steps",
    "few_steps_compensated",
    "grad_norm",
    "hidden_alignment",
    "kl",
    "kl_compensated",
    "loss",
    "loss_compensated",
    "lp_zero",
    "meco",
    "naswot",
    "num_params",
    "phi",
    "phi_compensated",
    "phi_cosine",
    "phi_dot",
    "phi_unweighted",
    "pruner_zero",
    "synaptic_saliency",
    "zico",
)

PROXIES: Registry[Proxy] = Registry("proxy", {name: f"tracenas.proxies.{name}:PROXY" for name in _NAMES})
