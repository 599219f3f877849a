"""Parameters: all of them, and those that a token passes through."""

from tracenas.budgets.kind import Counted, Kind, sub_block_of
from tracenas.space.costs import Cost, all_parameters
from tracenas.space.sub_block import SubBlockSpec

__all__ = ["ACTIVE", "PARAMS"]


def _active(model: Counted) -> Cost:
    """All but the weights of the experts that a token is not routed to; embeddings and head count."""
    found = sub_block_of(model.blocks)

    def of(spec: SubBlockSpec, kept: int) -> int:
        if not kept:
            return 0
        idle = 0.0
        for matrix in found(spec).projections:
            if matrix.stack:
                entries = sum(segment.size for segment in (*matrix.row_units, *matrix.column_units))
                per_unit = entries * (matrix.columns if matrix.row_units else matrix.rows)
                idle += kept * per_unit * (1 - matrix.active / matrix.stack)
        return spec.parameters(kept) - round(idle)

    return Cost("active_params", "active parameters", model.outside, of)


PARAMS = Kind(lambda model: all_parameters(model.outside), "parameters")
ACTIVE = Kind(_active, "parameters that a token passes through")
