"""Bytes of the KV cache per token and sequence, in the number format of the weights."""

from tracenas.budgets.kind import Counted, Kind
from tracenas.space.costs import Cost
from tracenas.space.sub_block import SubBlockSpec

__all__ = ["KV_CACHE"]


def _kv_cache(model: Counted) -> Cost:
    element = model.serving.cache_element

    def of(spec: SubBlockSpec, kept: int) -> int:
        return element * spec.cache(kept)

    return Cost("kv_cache", "bytes of KV cache per token", 0, of)


KV_CACHE = Kind(_kv_cache, "KV cache per token", bytes=True, reads=("outtype",), caches=True)
