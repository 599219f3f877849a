"""What an unstructured pruning metric is, and what it may read of a layer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from tracenas.saliency.masks import Sparsity

__all__ = ["NEEDS", "Metric", "Statistics"]

NEEDS = ("inputs", "gram", "gradient", "gradient_rms")
"""What a metric can ask for beside the weight."""


@dataclass(frozen=True)
class Statistics:
    """One linear layer on the calibration text; what the metric did not ask for is None.

    Args:
        weight: float32 [rows = outputs, columns = inputs].
        generator: for random metrics; its seed derives from (seed, block, layer).
        tokens: tokens per calibration sequence.
        input_rms: √mean x² per input column over all tokens, float32 [columns].
        gram: mean of x xᵀ over all tokens, float32 [columns, columns].
        gradient: mean over the sequences of |∂L/∂W|, float32 [rows, columns]; L: mean loss of a sequence.
        gradient_rms: √ of the mean over the sequences of (∂L/∂W)².
    """

    weight: "Tensor"
    generator: "Generator"
    tokens: int
    input_rms: "Tensor | None" = None
    gram: "Tensor | None" = None
    gradient: "Tensor | None" = None
    gradient_rms: "Tensor | None" = None

    def read(self, name: str) -> "Tensor":
        """A statistic that must be there."""
        value: Tensor | None = getattr(self, "input_rms" if name == "inputs" else name)
        if value is None:
            raise ValueError(f"the metric reads '{name}', which it does not name among its needs")
        return value


@dataclass(frozen=True)
class Metric:
    """Scores every weight of a layer; the lowest are pruned.

    Args:
        name: as it is registered or written.
        score: from the statistics to float32 [rows, columns].
        needs: some of `NEEDS`.
        compare: what its authors compare: within an output row, or the whole layer.
        solve: for metrics that update weights: (statistics, target) → (weight with zeros, where it stays).
        reference: paper and section.
    """

    name: str
    score: "Callable[[Statistics], Tensor]"
    needs: frozenset[str] = frozenset()
    compare: str = "row"
    solve: "Callable[[Statistics, Sparsity], tuple[Tensor, Tensor]] | None" = None
    reference: str = ""
