"""Parameters: all of them, and those that a token passes through."""

from functools import partial

from tracenas.budgets.kind import Counted, Kind, SubBlocks, found, sub_blocks
from tracenas.space.costs import Cost, all_parameters
from tracenas.space.sub_block import SubBlockSpec

__all__ = ["ACTIVE", "PARAMS"]


def _active(model: Counted) -> Cost:
    """All but the weights of the experts that a token is not routed to; embeddings and head count."""
    return Cost(
        "active_params", "active parameters", model.outside, partial(_active_of, known=sub_blocks(model.blocks))
    )


def _active_of(spec: SubBlockSpec, kept: int, *, known: SubBlocks) -> int:
    if not kept:
        return 0
    idle = 0.0
    for matrix in found(spec, known).projections:
        if matrix.stack:
            entries = sum(segment.size for segment in (*matrix.row_units, *matrix.column_units))
            per_unit = entries * (matrix.columns if matrix.row_units else matrix.rows)
            idle += kept * per_unit * (1 - matrix.active / matrix.stack)
    return spec.parameters(kept) - round(idle)


PARAMS = Kind(lambda model: all_parameters(model.outside), "parameters")
ACTIVE = Kind(_active, "parameters that a token passes through")
