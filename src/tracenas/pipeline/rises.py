"""What a sensitivity table or a saliency says of a target's units, and the predicted rise of the loss; no torch."""

from collections.abc import Callable, Mapping
from contextlib import suppress

import numpy as np

from tracenas.errors import UserError
from tracenas.families import Key
from tracenas.pipeline.target import PruningTarget
from tracenas.saliency.allocation import ALLOCATIONS, Ranked
from tracenas.saliency.allocation.ranked import Scores
from tracenas.saliency.allocation.solver import predicted_rise
from tracenas.saliency.sensitivity.table import SensitivityTable
from tracenas.space.architecture import Architecture

__all__ = ["ranked_by_table", "ranked_units", "rises"]


def ranked_units(target: PruningTarget, saliency: Mapping[Key, Scores], importance: Mapping[Key, float]) -> Ranked:
    """What an allocation is told.

    Args:
        saliency: float64 [units] per sub-block, by base id; empty for allocations that need none.

    Raises:
        UserError: if the saliencies are not finite.
    """
    for key, value in saliency.items():
        if not np.isfinite(value).all():
            raise UserError(f"block {key[0]}, {key[1]}: saliencies are not finite; try dtype=fp32")
    groups = {(i, s.spec.name): s.groups for i, block in enumerate(target.blocks) for s in block.sub_blocks}
    return Ranked(target.space, saliency, groups, importance)


def ranked_by_table(target: PruningTarget, table: SensitivityTable) -> Ranked:
    """The target's units with the predicted rises of a table."""
    saliency = {key: one.saliency for key, one in table.costs.items()}
    return ranked_units(target, saliency, {key: one.at(0) for key, one in table.costs.items()})


def rises(
    ranked: Ranked, arch: Architecture, measured: Callable[[Architecture], float | None] | None = None
) -> dict[str, float]:
    """The predicted rise of the loss, nats per token: of an architecture, of equal MLPs and of equal ratios.

    The last two where they can meet the budget.

    Args:
        ranked: with saliencies that are predicted rises.
        measured: the rise that was measured of an architecture, beside it; None where there is none.
    """
    compared = {"": arch}
    for name in ("mlp", "uniform"):
        with suppress(UserError):
            compared[f"_{name}"] = ALLOCATIONS.get(name)(ranked, None).architecture
    figures: dict[str, float] = {}
    for suffix, one in compared.items():
        figures[f"predicted_rise{suffix}"] = predicted_rise(ranked, one)
        if measured is not None and (rise := measured(one)) is not None:
            figures[f"measured_rise{suffix}"] = rise
    return figures
