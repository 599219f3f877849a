"""Proxies: every one can drive the search, a line each in `table`, or a weighted sum of them (`combination`)."""

from tracenas.proxies.measurement import Measurement, Proxy, SubBlockSums, Undefined, WeightSums
from tracenas.proxies.table import PROXIES

__all__ = ["PROXIES", "Measurement", "Proxy", "SubBlockSums", "Undefined", "WeightSums"]
