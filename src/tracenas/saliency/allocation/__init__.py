"""How a budget is shared out over sub-blocks, given every unit's saliency: one file each."""

from tracenas.registry import Registry
from tracenas.saliency.allocation.ranked import Allocated, Allocation, Ranked

__all__ = ["ALLOCATIONS", "Allocated", "Allocation", "Ranked"]

ALLOCATIONS: Registry[Allocation] = Registry(
    "allocation",
    {
        "adaptive": "tracenas.saliency.allocation.adaptive:allocate",
        "depth": "tracenas.saliency.allocation.depth:allocate",
        "global": "tracenas.saliency.allocation.threshold:per_parameter",
        "global_units": "tracenas.saliency.allocation.threshold:per_unit",
        "mlp": "tracenas.saliency.allocation.mlp:allocate",
        "solver": "tracenas.saliency.allocation.solver:allocate",
        "uniform": "tracenas.saliency.allocation.uniform:allocate",
    },
)
