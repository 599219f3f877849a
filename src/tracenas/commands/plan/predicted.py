"""What a sensitivity table predicts at the budget, before any weights are loaded."""

from pathlib import Path
from typing import Any

from tracenas.pipeline.rises import ranked_by_table, rises
from tracenas.pipeline.target import PruningTarget
from tracenas.saliency.allocation.solver import allocate
from tracenas.saliency.sensitivity.table import SensitivityTable

__all__ = ["UNCHECKED", "predicted_rises"]

UNCHECKED = "sensitivity table: its units are the model's; whether its weights are will be checked once they are loaded"


def predicted_rises(path: Path, target: PruningTarget) -> dict[str, Any]:
    """The predicted rise of the loss, nats per token: of the solved architecture, of MLPs alone, of equal ratios.

    The last two where they can meet the budget; beside them the solver's gap and its architecture.

    Args:
        path: of the table; only its sub-blocks and their units are compared with the target's.

    Raises:
        UserError: if the table is missing, damaged or of other units, or no combination of widths meets the budget.
    """
    ranked = ranked_by_table(target, SensitivityTable.load(path, target.blocks, {}))
    solved = allocate(ranked, None)
    arch = solved.architecture
    return {
        **rises(ranked, arch),
        **solved.facts,
        "params": target.space.parameters(arch),
        "architecture": arch.to_json(),
    }
