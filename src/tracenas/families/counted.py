"""Sub-blocks with their costs counted from their matrices."""

from dataclasses import replace

from tracenas.families.description import SubBlock

__all__ = ["counted"]


def counted(sub: SubBlock, norm_parameters: int, *, router_weights: int = 0, present: bool = True) -> SubBlock:
    """The sub-block with its parameters and weights; without units if the base has it bypassed (not `present`).

    Args:
        sub: its spec holds what matrices do not say.
        norm_parameters: of the norms that go with it.
        router_weights: entries of matrices that no unit lies in and no trace is taken of.

    Raises:
        ValueError: if so many units do not fit into the matrices.
    """
    spec, units = sub.spec, sub.spec.units
    if not 0 < units <= max(max(p.rows, p.columns) * max(p.stack, 1) for p in sub.projections):
        raise ValueError(f"{units:,} {spec.unit} do not fit into the matrices of {sub.module}")
    counts = [p.parameters(units) for p in (*sub.projections, *sub.width_norms)]
    per_unit, fixed = sum(c[0] for c in counts), sum(c[1] for c in counts)
    weights, fixed_weights = (sum(c[i] for c in counts[: len(sub.projections)]) for i in (2, 3))
    costs = replace(
        spec,
        units=units if present else 0,
        parameters_per_unit=per_unit,
        fixed_parameters=fixed + norm_parameters + router_weights,
        weights_per_unit=weights,
        fixed_weights=fixed_weights + router_weights,
    )
    return replace(sub, spec=costs)
