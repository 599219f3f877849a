"""What a proxy's first choice costs: its measured quality against the best of the pool and against uniform."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Regret", "regret"]


@dataclass(frozen=True)
class Regret:
    """Loss of a proxy's first choice, in nats per token.

    Args:
        loss: of the first choice; of several with the same score, their mean.
        choices: how many share the highest score.
        best: the lowest loss of the pool.
        uniform: the uniform architecture's; None if it was not measured.
    """

    loss: float
    choices: int
    best: float
    uniform: float | None

    @property
    def to_best(self) -> float:
        """Nats above the best of the pool, ≥ 0."""
        return self.loss - self.best

    @property
    def to_uniform(self) -> float | None:
        """Nats above uniform; negative where the choice is better."""
        return None if self.uniform is None else self.loss - self.uniform

    def to_json(self) -> dict[str, Any]:
        """Plain data; the ratios are of perplexities."""
        uniform = self.to_uniform
        return {
            **asdict(self),
            "to_best": self.to_best,
            "ratio_to_best": _ratio(self.to_best),
            "to_uniform": uniform,
            "ratio_to_uniform": None if uniform is None else _ratio(uniform),
        }


def regret(scores: Sequence[float | None], losses: Sequence[float | None], uniform: int | None) -> Regret | None:
    """The regret of choosing by `scores` (higher is better) among architectures with a known loss (lower is better).

    Args:
        uniform: place of the uniform architecture in the pool; None if it is not in it.

    Returns:
        None if no architecture has both.

    Raises:
        ValueError: if the columns differ in length.
    """
    measured = [loss for loss in losses if loss is not None]
    pairs = [(s, loss) for s, loss in zip(scores, losses, strict=True) if s is not None and loss is not None]
    if not pairs:
        return None
    top = max(score for score, _ in pairs)
    first = [loss for score, loss in pairs if score == top]
    base = losses[uniform] if uniform is not None else None
    return Regret(math.fsum(first) / len(first), len(first), min(measured), base)


def _ratio(nats: float) -> float | None:
    """exp(nats); None where that overflows."""
    return math.exp(nats) if nats < 700 else None
