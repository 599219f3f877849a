"""What one evaluation of a candidate yields, and what a proxy makes of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

__all__ = ["Measurement", "Proxy", "SubBlockSums"]


@dataclass(frozen=True)
class SubBlockSums:
    """What every trace proxy needs of one sub-block: sums over its base coordinates, pruned ones counting 0.

    Args:
        count: N, coordinates of the base's trace.
        g, gg: Σg and Σg² of the candidate.
        b, bb: Σb and Σb² of the base.
        gb: Σ g·b.
        retention: r, kept units / units.
    """

    count: int
    g: float
    gg: float
    b: float
    bb: float
    gb: float
    retention: float


@dataclass(frozen=True)
class Measurement:
    """One candidate on the calibration tokens.

    Args:
        parameters: of the materialised model.
        loss: mean next-token loss, nats.
        sums: per (layer, sub-block), active ones only; empty if no trace was taken.
    """

    parameters: int
    loss: float
    sums: Mapping[tuple[int, str], SubBlockSums] = field(default_factory=dict)


@dataclass(frozen=True)
class Proxy:
    """A training-free score of a candidate; higher is better.

    Args:
        name: in the registry.
        score: from a measurement to the score.
        needs: `trace` if a backward pass must be run; without it only the loss is measured. `compensated` if
            candidates are realised with output projections refitted to the dense model's outputs.
        reference: paper and section.
    """

    name: str
    score: Callable[[Measurement], float]
    needs: frozenset[str] = frozenset()
    reference: str = ""
