"""What a budget can be of: one line each. What they count is exact, or said to be an upper bound by a few bytes."""

from tracenas.budgets.kind import STORED, Counted, Kind, Serving, stored_as
from tracenas.registry import Registry

__all__ = ["BUDGETS", "LATENCIES", "STORED", "Counted", "Kind", "Serving", "stored_as"]

BUDGETS: Registry[Kind] = Registry(
    "budget",
    {
        "active_params": "tracenas.budgets.parameters:ACTIVE",
        "decode_ms": "tracenas.budgets.latency:DECODE",
        "file": "tracenas.budgets.file:FILE",
        "flops": "tracenas.budgets.flops:FLOPS",
        "kv_cache": "tracenas.budgets.kv_cache:KV_CACHE",
        "memory": "tracenas.budgets.memory:MEMORY",
        "params": "tracenas.budgets.parameters:PARAMS",
        "prefill_ms": "tracenas.budgets.latency:PREFILL",
    },
)

LATENCIES = ("prefill_ms", "decode_ms")
"""Those that a latency table says."""
