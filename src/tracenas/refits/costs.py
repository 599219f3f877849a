"""What compensation costs on given shapes: floating-point operations and memory, from the descriptions alone.

Shapes: T tokens, per sub-block n columns of the output projection, k kept ones, D rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tracenas.families import Block, present, within
from tracenas.space.architecture import Architecture

__all__ = [
    "LIBRARIES",
    "MEMO_BYTES",
    "RefitCosts",
    "gram_blocks",
    "least_memory",
    "reconstruction_costs",
    "refit_costs",
    "refit_memory",
]

MEMO_BYTES = 1 << 29
"""What the remembered output projections may take, by default."""

LIBRARIES = 512 << 20
"""What Python, torch, transformers, a tokenizer and its text take."""
_PER_ENTRY = 28
"""Bytes of a Gram matrix's entry while it is made, swept or refitted with: itself in float64, and parts of it."""
_PER_FEATURE = 2
"""Bytes of a token's feature of the residual stream that are in use at a time."""

_GRAM_WIDTH = 256
"""Columns of a block of a Gram matrix: narrow enough to spare nearly half of it, wide enough to run at full speed."""


@dataclass(frozen=True)
class RefitCosts:
    """Operations (a multiply-add counts two) and bytes.

    Args:
        forward: one forward pass of the dense blocks over the tokens, without attention scores.
        gram: about T n² per sub-block: half of the products XᵀX, which is symmetric.
        factor: n³ + 2 n² D per sub-block: the Cholesky factor, its inverse and W L, float64, once for all candidates.
        candidate: 2 k min(k, n - k) D per sub-block: one candidate, if no width is remembered.
        sequential: two forward passes (dense, and the candidate's share of 2.2), T k² and 2 T k D operations, solves.
        factor_bytes: L⁻¹ and W L of all sub-blocks in host memory, float32.
        statistics_bytes: at most at a time: one block's Gram matrices (float64) and the hidden states (2 bytes).
        outputs_bytes: one candidate's output projections, 2 bytes per entry.
    """

    forward: float
    gram: float
    factor: float
    candidate: float
    sequential: float
    factor_bytes: int
    statistics_bytes: int
    outputs_bytes: int

    def to_json(self) -> dict[str, Any]:
        """TFLOP and GiB."""
        scale = {"bytes": 2.0**30, "flops": 1e12}
        return {
            f"{name} (GiB)" if name.endswith("bytes") else f"{name} (TFLOP)": round(
                value / scale["bytes" if name.endswith("bytes") else "flops"], 3
            )
            for name, value in asdict(self).items()
        }


def gram_blocks(columns: int) -> Iterator[tuple[int, int]]:
    """First column and end of the blocks in which a Gram matrix is computed, each up to its end.

    Told here and not where they are computed (`gram_sum`): costs are counted without torch.
    """
    return ((start, min(start + _GRAM_WIDTH, columns)) for start in range(0, columns, _GRAM_WIDTH))


def _gram(columns: int) -> float:
    """Operations per token: n² and those of the blocks on the diagonal above it."""
    return 2.0 * sum((end - start) * end for start, end in gram_blocks(columns))


def refit_costs(blocks: Sequence[Block], arch: Architecture, tokens: int) -> RefitCosts:
    """Costs of compensating `arch` on `tokens` tokens; fused experts are run, and not compensated."""
    forward = gram = factor = candidate = sequential = 0.0
    entries = outputs = largest = rows = 0
    for block, layer in zip(blocks, arch.layers, strict=True):
        matrices = 0
        for sub, kept in within(block, layer):
            dense = 2.0 * tokens * sub.spec.units * sub.spec.weights_per_unit + 2.0 * tokens * sub.spec.fixed_weights
            forward += dense
            if not sub.spec.units or sub.stacked:
                continue
            projection = sub.output_projection
            n, rows = projection.columns, projection.rows
            k = n * kept // sub.spec.units
            matrices += n * n
            entries += n * (n + rows)
            outputs += k * rows
            gram += tokens * _gram(n)
            factor += float(n**3) + 2.0 * n * n * rows
            candidate += 2.0 * k * min(k, n - k) * rows
            share = kept / sub.spec.units
            # A pruned block runs up to every output projection, and once to its end.
            sequential += (
                dense * (1 + 2.2 * share) + tokens * (_gram(k) + 2.0 * k * rows) + k**3 / 3 + 2.0 * k * k * rows
            )
        largest = max(largest, matrices)
    return RefitCosts(
        forward, gram, factor, candidate, sequential, 4 * entries, 8 * largest + 2 * tokens * rows, 2 * outputs
    )


def reconstruction_costs(
    blocks: Sequence[Block], arch: Architecture, *, tokens: int, held_out: int, trained: int
) -> tuple[float, float]:
    """Operations of passes, and of training, where all blocks of `arch` are trained; without attention scores.

    Both texts go through the dense and the trained block once, the held-out one twice more through the latter; a
    trained token costs three forward passes.

    Args:
        tokens, held_out: of the two texts.
        trained: tokens that each block is trained on, all steps together.
    """
    passes = training = 0.0
    for block, layer in zip(blocks, arch.layers, strict=True):
        dense = pruned = 0.0
        for sub, kept in within(block, layer):
            dense += 2.0 * (sub.spec.units * sub.spec.weights_per_unit + sub.spec.fixed_weights)
            pruned += 2.0 * (kept * sub.spec.weights_per_unit + sub.spec.fixed_weights) if kept else 0.0
        passes += (tokens + held_out) * dense
        if not layer.skip:
            passes += (tokens + 3 * held_out) * pruned
            training += 3 * trained * pruned
    return passes, training


def refit_memory(blocks: Sequence[Block], tokens: int, element: int) -> int:
    """Bytes that compensated candidates take beside plain ones, at most, in host memory.

    The factors (float32, or the model's float64), and the larger of what the statistics take while they
    are made (one block's Gram matrices and the hidden states of all tokens) and of the remembered projections
    (every width of every sub-block, up to `MEMO_BYTES`).

    Args:
        tokens: that the statistics are of.
        element: bytes of a number in the model's dtype.
    """
    entries = memo = hidden = 0
    matrices = [0] * len(blocks)
    for key, sub in present(blocks):
        if sub.stacked:
            continue
        n, hidden = sub.output_projection.columns, sub.output_projection.rows
        entries += n * (n + hidden)
        matrices[key[0]] += n * n
        memo += sum(n * k // sub.spec.units * hidden for k in sub.spec.choices()) * element
    factors = entries * max(4, element)
    return factors + max(min(memo, MEMO_BYTES), 8 * max(matrices, default=0) + tokens * hidden * element)


def least_memory(blocks: Sequence[Block], tokens: int) -> int:
    """Bytes that pruning and searching take if everything that can wait in files does (`--host-memory`).

    The libraries, the work on the widest output projection, and some of the hidden states.

    Args:
        tokens: that statistics are of.
    """
    projections = [sub.output_projection for _, sub in present(blocks)]
    columns, hidden = max(p.columns for p in projections), max(p.rows for p in projections)
    return LIBRARIES + _PER_ENTRY * columns**2 + _PER_FEATURE * tokens * hidden
