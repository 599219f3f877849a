"""Memory to serve with: weights + KV cache of all sequences + what the runtime holds beside them.

    bytes = weights as stored + sequences · context · KV cache per token + sequences · vocabulary · 4

and for quantised weights, which llama.cpp serves, the buffer that it computes in: of 512 tokens of a prompt at a time
the logits and, twice, the residual stream in float32, 512 · (vocabulary + 2 · hidden) · 4 (with flash attention, its
default). Its cache is of multiples of 256 tokens.

Sequences are `--serve-batch`. The last term is the logits of the next tokens in float32, the largest that a step of
decoding computes. A long prompt that is read in one pass needs more for its activations; serving programs read it in
pieces.
"""

from functools import partial
from math import prod

from tracenas.budgets.kind import ELEMENT, Counted, Kind, SubBlocks, found, matrices, sub_blocks
from tracenas.exporters.gguf.size import tensor_bytes
from tracenas.families import SubBlock
from tracenas.space.costs import Cost
from tracenas.space.sub_block import SubBlockSpec

__all__ = ["MEMORY"]

_UNIT = "bytes of memory"
_PROMPT = 512
"""Tokens of a prompt that llama.cpp computes at once (`--ubatch-size`)."""
_CACHED = 256
"""Tokens of a sequence that llama.cpp's cache has room for are a multiple of it."""


def _memory(model: Counted) -> Cost:
    serving, config = model.serving, model.source.config
    length = serving.context if serving.stored in ELEMENT else -(-serving.context // _CACHED) * _CACHED
    cached = serving.batch * length * serving.cache_element
    runtime = 4 * serving.batch * int(config["vocab_size"])
    if serving.stored in ELEMENT:
        element = ELEMENT[serving.stored]
        outside, of = element * model.outside, partial(_of, element=element, cached=cached)
        return Cost("memory", _UNIT, outside + runtime, of)
    at_once = min(_PROMPT, serving.batch * length)
    runtime += 4 * at_once * (int(config["vocab_size"]) + 2 * int(config["hidden_size"]))
    quantised = partial(_of_quantised, stored=serving.stored, cached=cached, known=sub_blocks(model.blocks))
    return Cost("memory", _UNIT, _quantised_outside(model) + runtime, quantised)


def _of(spec: SubBlockSpec, kept: int, *, element: int, cached: int) -> int:
    return element * spec.parameters(kept) + cached * spec.cache(kept)


def _of_quantised(spec: SubBlockSpec, kept: int, *, stored: str, cached: int, known: SubBlocks) -> int:
    return _quantised(found(spec, known), kept, stored) + cached * spec.cache(kept) if kept else 0


def _quantised(sub: SubBlock, kept: int, stored: str) -> int:
    """Matrices as they are quantised, vectors in float32."""
    size, vectors = 0, sub.spec.parameters(kept)
    for matrix, *shape in matrices(sub, kept):
        count = matrix.stack or 1
        size += count * tensor_bytes(shape, stored)
        vectors -= count * prod(shape)
    return size + 4 * vectors


def _quantised_outside(model: Counted) -> int:
    """Embeddings and head as they are quantised, the rest in float32."""
    config, family = model.source.config, model.source.family
    hidden, entries, count = int(config["hidden_size"]), family.head_weights(config), 2 - family.tied(config)
    each = tensor_bytes((entries // hidden, hidden), model.serving.stored)
    return count * each + 4 * (model.outside - count * entries)


MEMORY = Kind(_memory, "memory to serve with", bytes=True, reads=("context", "serve_batch", "outtype"), caches=True)
