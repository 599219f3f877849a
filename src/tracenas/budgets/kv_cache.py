"""Bytes of the KV cache per token and sequence, in the number format of the weights."""

from functools import partial

from tracenas.budgets.kind import Counted, Kind
from tracenas.space.costs import Cost
from tracenas.space.sub_block import SubBlockSpec

__all__ = ["KV_CACHE"]


def _kv_cache(model: Counted) -> Cost:
    return Cost("kv_cache", "bytes of KV cache per token", 0, partial(_cached, element=model.serving.cache_element))


def _cached(spec: SubBlockSpec, kept: int, *, element: int) -> int:
    return element * spec.cache(kept)


KV_CACHE = Kind(_kv_cache, "KV cache per token", bytes=True, reads=("outtype",), caches=True)
