"""What one evaluation of a candidate yields, and what a proxy makes of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

__all__ = ["NEEDS", "Array", "Measurement", "Proxy", "SubBlockSums", "Undefined", "WeightSums"]

Array = npt.NDArray[np.float64]

NEEDS = {
    "trace": "gradient traces: a backward pass for the inputs' gradients",
    "weight_gradients": "every weight's gradient per sequence, reduced and given up at once: a backward pass",
    "codes": "signs of the gates' pre-activations",
    "features": "correlations between features of the sub-blocks' outputs",
    "hidden": "the hidden states after every block, against the base's",
    "base_logits": "the base's next-token distributions",
    "steps": "a few steps of recovery",
    "compensated": "output projections refitted to the dense model's outputs",
    "sensitivity": "the cost of every width, measured once on the base: no pass of a candidate",
}
"""What a proxy may need beside the loss, and what that is."""


class Undefined(ValueError):
    """A proxy has no value for a candidate; the message is the reason."""


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
class WeightSums:
    """What the weight-gradient proxies need of one weight matrix W, g_n = ∂L_n/∂W the gradient of sequence n's loss.

    Args:
        squares: mean W².
        saliency: E_n Σ |W ⊙ g_n|.
        scaled: E_n Σ W² ⊙ minmax|g_n|.
        softmax: E_n mean(softmax(g_n)²), the softmax over the rows.
        ratios: Σ_i E|g_i|/σ(g_i) over every pair of sequences (2m, 2m+1).
    """

    squares: float
    saliency: float
    scaled: float
    softmax: float
    ratios: tuple[float, ...]


@dataclass(frozen=True)
class Measurement:
    """One candidate on the calibration tokens; what no wanted proxy needs is empty.

    Args:
        parameters: of the materialised model.
        loss: mean next-token loss, nats; not a number where no proxy wants the candidate to be run.
        sums: `trace`, per (layer, sub-block), active ones only.
        losses: mean loss per sequence, nats per token.
        kls: `base_logits`, KL(base ‖ candidate) per sequence, nats per token.
        weights: `weight_gradients`, per (layer, projection's path), active ones only.
        kernel: `codes`, agreeing bits of every two sequences' activation codes, [sequences, sequences].
        features: `features`, correlation matrices per (layer, sub-block), active ones only.
        alignment: `hidden`, mean cosine of the hidden states with the base's, per block.
        recovered: `steps`, loss per held-out sequence after the steps, nats per token.
        rise: `sensitivity`, predicted rise of the loss, nats per token.
    """

    parameters: int
    loss: float
    sums: Mapping[tuple[int, str], SubBlockSums] = field(default_factory=dict)
    losses: tuple[float, ...] = ()
    kls: tuple[float, ...] = ()
    weights: Mapping[tuple[int, str], WeightSums] = field(default_factory=dict)
    kernel: Array | None = None
    features: Mapping[tuple[int, str], Array] = field(default_factory=dict)
    alignment: tuple[float, ...] = ()
    recovered: tuple[float, ...] = ()
    rise: float | None = None


@dataclass(frozen=True)
class Proxy:
    """A score of a candidate; higher is better.

    Args:
        name: in the registry.
        score: from a measurement to the score; raises `Undefined` where there is none.
        needs: of `NEEDS`; without any, one forward pass for the loss.
        reference: paper and section.
        terms: of an additive proxy: one term per sequence, the score is minus their mean.
    """

    name: str
    score: Callable[[Measurement], float]
    needs: frozenset[str] = frozenset()
    reference: str = ""
    terms: Callable[[Measurement], tuple[float, ...]] | None = None

    def __post_init__(self) -> None:
        if unknown := self.needs - set(NEEDS):
            raise ValueError(f"proxy '{self.name}': unknown need '{min(unknown)}'; known: {', '.join(NEEDS)}")

    @property
    def additive(self) -> bool:
        """Whether the score is minus a mean over sequences, so that it can be taken sequence by sequence."""
        return self.terms is not None

    @property
    def runs(self) -> bool:
        """Whether candidates are run for it."""
        return self.needs != frozenset({"sensitivity"})

    @property
    def cost(self) -> str:
        """What it costs, in words."""
        if not self.runs:
            return "no pass: a sum over a table"
        if "steps" in self.needs:
            return "recovery steps: forward and full backward pass each, and the optimizer"
        if "weight_gradients" in self.needs:
            return "forward and full backward pass"
        return "forward and input-gradient backward pass" if "trace" in self.needs else "forward pass"

    @property
    def backward(self) -> bool:
        """Whether a backward pass is run."""
        return bool(self.needs & {"trace", "weight_gradients", "steps"})
