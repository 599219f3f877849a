"""Log-likelihoods of continuations: a shared context is computed once, the head only where it is asked.

For a request of context c and continuation k, with the logits z of a causal model,

    log p(k | c) = Σ_t log softmax(z[|c| − 1 + t])[k_t],   t = 0 … |k| − 1,

so that of |c| + |k| − 1 positions only the last |k| need the head. Requests with the same c (the answers to a
question) read one key–value cache of it, each row with its own continuation:

    context, one row each         c0 c1 c2 c3 c4        pads at the end, which no token sees
                                  d0 d1 d2  ·  ·
    continuation, a row each      k0 k1                 sees its context's row of the cache without the pads;
                                  m0  ·                 its positions go on where its context ended

B: rows, T: tokens of a row, K: positions that the head is computed at, V: vocabulary.
"""

import copy
import inspect
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch.nn import functional
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

__all__ = ["Answer", "Capability", "Request", "capability", "log_likelihoods"]

Tokens = tuple[int, ...]
Request = tuple[Sequence[int], Sequence[int]]
Answer = tuple[float, bool]
Element = TypeVar("Element")

_CACHED = {"past_key_values", "use_cache", "attention_mask", "position_ids"}
_PASS = 64
"""What a forward pass costs beside its tokens (weights are read, kernels started), in tokens."""


@dataclass(frozen=True)
class Capability:
    """What a model's forward can do.

    Args:
        selects: whether it computes the head at given positions only (`logits_to_keep`).
        room: the number of tokens that a shared context and a continuation may have together, pads included;
            0 if its cache cannot be shared.
    """

    selects: bool
    room: int


@torch.no_grad()
def capability(model: Any) -> Capability:
    """Found out from the signature of the model's forward and from what it returns for two tokens.

    A cache can be shared if it is transformers' `DynamicCache` of plain attention layers. Layers with a sliding
    window forget what has left it, so these share up to the window. Not shared: recurrent states, caches and
    layers of a model's own, and rotary embeddings whose frequencies depend on the length of the input (they
    would differ between a context and its continuation).
    """
    taken = set(inspect.signature(model.forward).parameters)
    if "logits_to_keep" not in taken or getattr(model.config, "is_encoder_decoder", False):
        return Capability(selects=False, room=0)
    cached = taken >= _CACHED
    first = torch.zeros(1, dtype=torch.long, device=model.device)
    options: dict[str, Any] = {"use_cache": True} if cached else {}
    out = model(input_ids=first.repeat(1, 2), logits_to_keep=first, **options)
    selects = out.logits.shape[1] == 1
    if not (selects and cached) or _length_dependent(model):
        return Capability(selects, room=0)
    return Capability(selects, _room(out.past_key_values))


def _room(cache: Any) -> int:
    """Tokens that a cache can hold before it forgets one; 0 for a cache that is not understood."""
    if type(cache) is not DynamicCache or getattr(cache, "offloading", False):
        return 0
    if not {type(layer) for layer in cache.layers} <= {DynamicLayer, DynamicSlidingWindowLayer}:
        return 0
    windows = [layer.sliding_window for layer in cache.layers if isinstance(layer, DynamicSlidingWindowLayer)]
    return min((window - 1 for window in windows), default=sys.maxsize)


def _length_dependent(model: Any) -> bool:
    """Whether rotary frequencies change with the longest position of an input (dynamic NTK, LongRoPE)."""
    kinds: set[str] = set()
    for module in model.modules():
        kind = getattr(module, "rope_type", None)
        kinds |= {str(k) for k in kind.values()} if isinstance(kind, dict) else {str(kind)}
    return any("dynamic" in kind or kind == "longrope" for kind in kinds)


@dataclass(frozen=True)
class _Item:
    """A request, its context cut from the left to what the model can read."""

    index: int
    context: Tokens
    continuation: Tokens

    @property
    def read(self) -> Tokens:
        """What the model reads of it: all but the last token."""
        return self.context + self.continuation[:-1]


def _item(index: int, request: Request, max_length: int) -> _Item:
    context, continuation = tuple(request[0]), tuple(request[1])
    if not context or not 0 < len(continuation) <= max_length:
        raise ValueError(
            f"request {index}: a context of {len(context)} and a continuation of {len(continuation)} tokens; "
            f"expected at least 1, and from 1 to {max_length}"
        )
    # One token more than the model has positions: the last one is predicted only.
    return _Item(index, context[-(max_length + 1 - len(continuation)) :], continuation)


def log_likelihoods(
    model: Any,
    requests: Sequence[Request],
    able: Capability,
    *,
    batch_size: int,
    max_length: int,
    dtype: torch.dtype | None = None,
) -> Iterator[tuple[int, Answer]]:
    """Yield (index of the request, (log-likelihood in nats, whether greedy decoding gives the continuation)).

    The longest come first, so that a lack of memory shows early.

    Args:
        model: a causal language model.
        requests: token ids of contexts and continuations. Of what is longer than `max_length` + 1 together, the
            context loses its beginning.
        able: what `capability` says of the model.
        batch_size: rows of a forward pass.
        max_length: positions of the model.
        dtype: of the log-softmax, the logits' own without it. The sum over a continuation is in the same dtype.

    Raises:
        ValueError: for an empty context, an empty continuation or one of more than `max_length` tokens, or if the
            model cannot select positions.
    """
    if not able.selects:
        raise ValueError(f"{type(model).__name__}: expected a forward that takes positions as `logits_to_keep`")
    groups: dict[Tokens, list[_Item]] = {}
    for index, request in enumerate(requests):
        item = _item(index, request, max_length)
        groups.setdefault(item.context, []).append(item)
    alone = [item for members in groups.values() if not _worth_sharing(members) for item in members]
    shared = sorted(filter(_worth_sharing, groups.values()), key=lambda g: (-len(g[0].context), g[0].context))
    for batch in _batches(shared, [len(group[0].context) for group in shared], batch_size):
        members = [item for group in batch for item in group]
        if len(batch[0][0].context) + max(len(item.continuation) for item in members) - 1 > able.room:
            alone += members
        else:
            yield from _shared(model, batch, batch_size, dtype)
    alone.sort(key=lambda item: (-len(item.read), item.read))
    for rows in _batches(alone, [len(item.read) for item in alone], batch_size):
        yield from _alone(model, rows, dtype)


def _worth_sharing(members: Sequence[_Item]) -> bool:
    """Several requests, and more in common than a token that stands for an empty context."""
    return len(members) > 1 and len(members[0].context) > 1


def _batches(items: Sequence[Element], lengths: Sequence[int], size: int) -> Iterator[Sequence[Element]]:
    """Runs of at most `size` items, with the fewest tokens to compute: rows padded to their longest, and `_PASS`.

    Args:
        lengths: tokens of every item, falling.
    """
    least, starts = [0], [0]
    for end in range(1, len(items) + 1):
        tokens, start = min(
            (least[start] + (end - start) * lengths[start] + _PASS, start) for start in range(max(0, end - size), end)
        )
        least.append(tokens)
        starts.append(start)
    cuts = [len(items)]
    while cuts[-1]:
        cuts.append(starts[cuts[-1]])
    for end, start in reversed(list(pairwise(cuts))):
        yield items[start:end]


@torch.no_grad()
def _alone(model: Any, rows: Sequence[_Item], dtype: torch.dtype | None) -> Iterator[tuple[int, Answer]]:
    """A row [T] for every request, without a cache."""
    spans = [range(len(item.context) - 1, len(item.read)) for item in rows]
    positions = sorted({position for span in spans for position in span})
    place = {position: k for k, position in enumerate(positions)}
    options = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    tokens = _padded([item.read for item in rows], model.device)
    selected = torch.tensor(positions, device=model.device)
    logits = model(input_ids=tokens, logits_to_keep=selected, **options).logits  # [B, K, V]
    for item, span, row in zip(rows, spans, logits, strict=True):
        start = place[span[0]]
        yield item.index, _answer(row[start : start + len(span)], item.continuation, dtype)


@torch.no_grad()
def _shared(
    model: Any, groups: Sequence[Sequence[_Item]], batch_size: int, dtype: torch.dtype | None
) -> Iterator[tuple[int, Answer]]:
    """A row [T] for every context, then one for every continuation of more than a token."""
    lengths = torch.tensor([len(members[0].context) for members in groups])
    tokens = _padded([members[0].context for members in groups], model.device)
    selected, place = torch.unique(lengths - 1, return_inverse=True)
    out = model(input_ids=tokens, use_cache=True, logits_to_keep=selected.to(model.device))
    first = out.logits[torch.arange(len(groups)), place]  # [B, V]
    longer = []
    for g, members in enumerate(groups):
        for item in members:
            if len(item.continuation) == 1:
                yield item.index, _answer(first[g : g + 1], item.continuation, dtype)
            else:
                longer.append((g, item))
    longer.sort(key=lambda row: -len(row[1].continuation))
    for rows in _batches(longer, [len(item.continuation) - 1 for _, item in longer], batch_size):
        which = torch.tensor([g for g, _ in rows])
        read = [item.continuation[:-1] for _, item in rows]
        logits = _continued(model, out.past_key_values, lengths[which], which, read)
        for (g, item), row, continuation in zip(rows, logits, read, strict=True):
            yield item.index, _answer(torch.cat([first[g : g + 1], row[: len(continuation)]]), item.continuation, dtype)


def _continued(
    model: Any, cache: DynamicCache, lengths: torch.Tensor, which: torch.Tensor, read: Sequence[Tokens]
) -> torch.Tensor:
    """Logits [B, T, V] of continuations after contexts that stand in a cache, which stays as it is.

    Args:
        lengths: tokens of every row's context, [B].
        which: every row's context in the cache, [B].
        read: the tokens of every row.
    """
    tokens = _padded(read, model.device)
    counts = torch.tensor([len(row) for row in read])[:, None]  # [B, 1]
    steps = torch.arange(tokens.shape[1])[None]  # [1, T]
    seen = torch.arange(cache.get_seq_length())[None] < lengths[:, None]
    mask = torch.cat([seen, steps < counts], dim=1).long()
    positions = lengths[:, None] + torch.minimum(steps, counts - 1)  # a pad's own could be beyond the model's last
    logits: torch.Tensor = model(
        input_ids=tokens,
        attention_mask=mask.to(model.device),
        position_ids=positions.to(model.device),
        past_key_values=_branch(cache, which),
        use_cache=True,
    ).logits
    return logits


def _branch(cache: DynamicCache, which: torch.Tensor) -> DynamicCache:
    """A cache of these rows; its layers put new tensors in place of their own, never write into them."""
    branch = copy.copy(cache)
    branch.layers = [copy.copy(layer) for layer in cache.layers]
    branch.batch_select_indices(which)
    return branch


def _padded(rows: Sequence[Tokens], device: Any) -> torch.Tensor:
    """Token ids [B, T], with zeros at the end as in lm-eval."""
    width = max(len(row) for row in rows)
    return torch.tensor([row + (0,) * (width - len(row)) for row in rows], device=device)


def _answer(logits: torch.Tensor, continuation: Tokens, dtype: torch.dtype | None) -> Answer:
    """The answer for logits [T, V] at the positions that predict the continuation."""
    scores = functional.log_softmax(logits, dim=-1, dtype=dtype)
    tokens = torch.tensor(continuation, device=scores.device)
    greedy = bool((scores.argmax(dim=-1) == tokens).all())
    return float(scores.gather(1, tokens[:, None]).sum()), greedy
