"""Zero-shot proxies: one file each; every one can drive the search."""

from tracenas.proxies.measurement import Measurement, Proxy, SubBlockSums
from tracenas.registry import Registry

__all__ = ["PROXIES", "Measurement", "Proxy", "SubBlockSums"]

PROXIES: Registry[Proxy] = Registry(
    "proxy",
    {
        "phi": "tracenas.proxies.phi:PROXY",
        "loss": "tracenas.proxies.loss:PROXY",
        "loss_compensated": "tracenas.proxies.loss_compensated:PROXY",
        "phi_compensated": "tracenas.proxies.phi_compensated:PROXY",
    },
)
