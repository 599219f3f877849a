"""Sub-blocks with their costs counted from their matrices."""

from collections.abc import Sequence
from dataclasses import dataclass

from tracenas.families.description import Attribute, PositionBias, Projection, SubBlock
from tracenas.space.sub_block import SubBlockSpec

__all__ = ["Costs", "sub_block"]


@dataclass(frozen=True)
class Costs:
    """Extra cost facts a family gives `sub_block` beside the matrices."""

    norm_parameters: int = 0
    fixed_weights: int = 0
    """Entries of matrices that no unit lies in and no trace is taken of (routers)."""
    score_width: int = 0
    cache_per_unit: int = 0
    fixed_cache: int = 0
    heads_per_unit: int = 1
    bidirectional: bool = False


def sub_block(
    name: str,
    unit: str,
    units: int,
    projections: Sequence[Projection],
    *,
    module: str,
    output: str,
    quantum: int,
    minimum: int | None = None,
    norms: Sequence[str] = (),
    post_norm: str = "",
    groups: int = 1,
    attributes: Sequence[Attribute] = (),
    outputs: int = 1,
    width_norms: Sequence[Projection] = (),
    position_bias: PositionBias | None = None,
    costs: Costs | None = None,
    present: bool = True,
) -> SubBlock:
    """A sub-block with its costs counted from its matrices; `present=False` for one the base has bypassed."""
    costs = costs or Costs()
    if not 0 < units <= max(max(p.rows, p.columns) * max(p.stack, 1) for p in projections):
        raise ValueError(f"{units:,} {unit} do not fit into the matrices of {module}")
    counts = [p.parameters(units) for p in (*projections, *width_norms)]
    per_unit, fixed = sum(c[0] for c in counts), sum(c[1] for c in counts)
    weights, fixed_weights = (sum(c[i] for c in counts[: len(projections)]) for i in (2, 3))
    spec = SubBlockSpec(
        name=name,
        unit=unit,
        units=units if present else 0,
        quantum=quantum,
        minimum=minimum if minimum is not None else quantum,
        parameters_per_unit=per_unit,
        fixed_parameters=fixed + costs.norm_parameters + costs.fixed_weights,
        weights_per_unit=weights,
        fixed_weights=fixed_weights + costs.fixed_weights,
        score_width=costs.score_width,
        cache_per_unit=costs.cache_per_unit,
        fixed_cache=costs.fixed_cache,
        heads_per_unit=costs.heads_per_unit,
        bidirectional=costs.bidirectional,
    )
    return SubBlock(
        spec,
        tuple(projections),
        module,
        output,
        tuple(norms),
        post_norm,
        groups,
        tuple(attributes),
        outputs,
        tuple(width_norms),
        position_bias,
    )
