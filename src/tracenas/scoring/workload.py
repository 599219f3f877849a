"""What one evaluation of a candidate computes and keeps in memory, counted from the configuration (no torch).

An evaluation is a forward pass, a backward pass for the inputs' gradients alone, and the products of the
gradient traces (TraceNAS §3.4): no weight gradient of the base is formed.
"""

from collections import Counter
from dataclasses import dataclass, replace
from math import prod

from tracenas.families import Block, Projection, SubBlock, active
from tracenas.models.functionals.chunk_sizes import logit_tokens
from tracenas.space.architecture import Architecture

__all__ = ["Memory", "Shape", "Workload", "default_micro_batch", "memory", "per_stack", "workload"]

_TOKENS_PER_BATCH = 4096
_ACTIVATION_BYTES = 1 << 30

# Tensor reads and writes per token of the elementwise work, forward and backward, in multiples of a width:
# two norms and two residual additions of the hidden state; rotary positions of q and k; layout copies of the
# heads; SiLU and product in the MLP. Counted from transformers' Llama, eager.
_HIDDEN, _ROTARY, _HEADS, _CHANNELS = 30.0, 24.0, 8.0, 14.0
_FORWARD_SHARE = 0.4
_VOCABULARY = 12.0
# torch and transformers in memory before there is a model; temporary buffers beside what is kept.
_LIBRARIES = 350 * 2**20
_SLACK = 1.15


@dataclass(frozen=True)
class Shape:
    """The calibration as candidates see it.

    Args:
        samples, seq_len: N sequences of L tokens.
        micro_batch: sequences per forward pass.
        rank: of the traces, 0 for full; None where no trace is taken.
        element: bytes of a number in the model's dtype.
        device: `cpu` or `cuda`.
        recomputed: whether blocks keep their inputs only, and run again in the backward pass.
    """

    samples: int
    seq_len: int
    micro_batch: int
    rank: int | None
    element: int
    device: str
    recomputed: bool = False

    @property
    def tokens(self) -> int:
        """Calibration tokens."""
        return self.samples * self.seq_len


@dataclass(frozen=True)
class Workload:
    """One evaluation.

    Args:
        flops: of the model's and the head's products, forward and (with traces) input gradients.
        trace_flops: of the traces' own products.
        elements: read and written by elementwise work.
        score_pairs: heads × pairs of tokens in attention.
    """

    flops: float
    trace_flops: float
    elements: float
    score_pairs: float


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak, by what they are for; a compensated search's factors and statistics are in host memory.

    Args:
        copies: what a candidate has of its own: projections whose kept units are no prefix, and refitted ones.
    """

    weights: int
    traces: int
    activations: int
    head: int
    libraries: int
    compensation: int = 0
    copies: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return (
            self.weights + self.traces + self.activations + self.head + self.libraries + self.compensation + self.copies
        )


def per_stack(blocks: tuple[Block, ...], shape: Shape) -> Shape:
    """What every block sees: of an encoder–decoder model half of every sequence."""
    return replace(shape, seq_len=shape.seq_len - shape.seq_len // 2) if blocks[0].stack else shape


def default_micro_batch(
    blocks: tuple[Block, ...], base: Architecture, hidden: int, seq_len: int, element: int, device: str
) -> int:
    """Sequences per pass: up to 4,096 tokens and, on a CPU, up to 1 GiB of activations kept for a backward pass.

    Small passes cost a CPU nothing; an accelerator needs large ones.

    Args:
        hidden: width of the residual stream.
        element: bytes of a number in the model's dtype.
        device: `cpu` or `cuda`.
    """
    tokens = _TOKENS_PER_BATCH
    if device == "cpu":
        each = element * sum(_activations(s, k, hidden, None) for _, s, k in active(blocks, base))
        tokens = min(tokens, _ACTIVATION_BYTES // each)
    return max(1, tokens // seq_len)


def _sides(projection: Projection, units: int, kept: int) -> tuple[int, int]:
    """Rows and columns of a projection at `kept` units."""
    removed = (units - kept) // (projection.stack or 1)
    rows = projection.rows - removed * sum(s.size for s in projection.row_units)
    return rows, projection.columns - removed * sum(s.size for s in projection.column_units)


def _sources(sub: SubBlock, kept: int) -> dict[str, int]:
    """Distinct inputs of a sub-block's projections and their widths: x Aᵀ is computed once for each."""
    return {p.source: _sides(p, sub.spec.units, kept)[1] for p in sub.projections}


def workload(blocks: tuple[Block, ...], arch: Architecture, head: int, hidden: int, shape: Shape) -> Workload:
    """What one evaluation of `arch` computes.

    Args:
        head: entries of the language-model head's matrix.
        hidden: width of the residual stream.
    """
    shape = per_stack(blocks, shape)
    backward = shape.rank is not None
    passes = 1 if not backward else 3 if shape.recomputed else 2
    elementwise = {1: _FORWARD_SHARE, 2: 1.0, 3: 1.0 + _FORWARD_SHARE}[passes]
    products = 2.0 * head * (2 if backward else 1)
    trace = pairs = 0.0
    elements = _VOCABULARY * head / hidden * (1.0 if backward else _FORWARD_SHARE)
    for _, sub, kept in active(blocks, arch):
        spec = sub.spec
        products += 2.0 * (spec.fixed_weights + kept * spec.weights_per_unit) * passes
        pairs += spec.heads_per_unit * kept * shape.seq_len if spec.score_width else 0.0
        elements += _elementwise(sub, kept, hidden) * elementwise
        if shape.rank is not None:
            trace += _trace_flops(sub, kept, shape.rank)
    n = shape.tokens
    return Workload(products * n, trace * n, elements * n, pairs * n)


def _elementwise(sub: SubBlock, kept: int, hidden: int) -> float:
    """Elements read and written per token, forward and backward."""
    sides = {p.path: _sides(p, sub.spec.units, kept) for p in sub.projections}
    inner = sides[sub.output][1]
    if not sub.spec.score_width:
        return _HIDDEN * hidden + _CHANNELS * inner
    into = sum(rows for path, (rows, _) in sides.items() if path != sub.output)
    return _HIDDEN * hidden + _ROTARY * into * 0.75 + _HEADS * inner


def _trace_flops(sub: SubBlock, kept: int, rank: int) -> float:
    """δyᵀ (x Aᵀ), and x Aᵀ once per input; of experts whole weight gradients."""
    total = 0.0
    for projection in sub.projections:
        rows, columns = _sides(projection, sub.spec.units, kept)
        total += 2.0 * rows * (columns if projection.stack else rank or columns) * (projection.active or 1)
    return total + (0.0 if sub.stacked else 2.0 * rank * sum(_sources(sub, kept).values()))


def memory(
    blocks: tuple[Block, ...],
    base: Architecture,
    arch: Architecture,
    parameters: int,
    vocabulary: int,
    hidden: int,
    shape: Shape,
    *,
    refitted: bool = False,
) -> Memory:
    """The peak of a search: the base's weights, both traces, a micro-batch's activations, a chunk of logits.

    Args:
        base, arch: the whole model and a candidate of the budget.
        parameters: of the base.
        vocabulary: entries of the vocabulary.
        refitted: whether the output projections of candidates are.
    """
    shape = per_stack(blocks, shape)
    tokens = shape.micro_batch * shape.seq_len
    traces = 0
    if shape.rank is not None:
        traces = _trace_bytes(blocks, base, shape) + _trace_bytes(blocks, arch, shape)
        traces += shape.rank * _subspace_columns(blocks, base) * shape.element
    # The base itself is evaluated once, as the anchor: its activations are the largest.
    kept_per_token = _kept_per_token(blocks, base, hidden, shape)
    chunk = min(logit_tokens(vocabulary, shape.device), tokens) * vocabulary
    return Memory(
        weights=parameters * shape.element,
        copies=shape.element * sum(_copied(s, k, refitted) for _, s, k in active(blocks, arch)),
        traces=traces,
        activations=int(_SLACK * tokens * kept_per_token * shape.element),
        head=3 * chunk * 4 + 2 * tokens * hidden * shape.element,
        libraries=_LIBRARIES if shape.device == "cpu" else 0,
    )


def _kept_per_token(blocks: tuple[Block, ...], base: Architecture, hidden: int, shape: Shape) -> int:
    """Numbers that a pass keeps per token: a sub-block's, those of all, or all inputs of blocks and those of one."""
    subs = [(index, sub, kept) for index, sub, kept in active(blocks, base)]
    if shape.rank is None:
        return max((_activations(sub, kept, hidden, None) for _, sub, kept in subs), default=0)
    of_block = Counter[int]()
    for index, sub, kept in subs:
        of_block[index] += _activations(sub, kept, hidden, shape.rank)
    if not shape.recomputed:
        return of_block.total()
    traced = sum(_activations(s, k, hidden, shape.rank) - _activations(s, k, hidden, None) for _, s, k in subs)
    return hidden * len(of_block) + traced + max(of_block.values(), default=0)


def _copied(sub: SubBlock, kept: int, refitted: bool) -> int:
    """Entries of a candidate's projections that are no views of the base's."""
    if kept == sub.spec.units:
        return 0
    cut = [p for p in sub.projections if p.row_units or p.column_units]
    own = [p for p in cut if sub.groups > 1 or (refitted and p.path == sub.output and not p.stack)]
    return sum(prod(_sides(p, sub.spec.units, kept)) * (p.stack or 1) for p in own)


def _subspace_columns(blocks: tuple[Block, ...], base: Architecture) -> int:
    """Columns of every A; where they are units of experts, every expert has them in an order of its own."""
    parts = ((index, p) for index, sub, _ in active(blocks, base) for p in sub.projections)
    return sum({(i, p.source): p.columns * (p.stack or 1 if p.column_units else 1) for i, p in parts}.values())


def _trace_bytes(blocks: tuple[Block, ...], arch: Architecture, shape: Shape) -> int:
    total = 0
    for _, sub, kept in active(blocks, arch):
        for projection in sub.projections:
            rows, columns = _sides(projection, sub.spec.units, kept)
            total += 4 * rows * (shape.rank or columns) * (projection.stack or 1)
    return total


def _activations(sub: SubBlock, kept: int, hidden: int, rank: int | None) -> int:
    """Numbers kept per token for the backward pass: residual and normed input, heads or channels, x Aᵀ."""
    sides = {p.path: _sides(p, sub.spec.units, kept) for p in sub.projections}
    inner = sides[sub.output][1]
    of_trace = 0 if rank is None else (rank * len(_sources(sub, kept)) if rank else sum(_sources(sub, kept).values()))
    if not sub.spec.score_width:
        return 2 * hidden + 3 * inner + of_trace
    return 2 * hidden + 4 * inner + of_trace
