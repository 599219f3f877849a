"""What `tracenas best` answers."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracenas.budgets import BUDGETS
from tracenas.formats import counted, data_size
from tracenas.reporting.terminal import Outcome, Table, to_plain
from tracenas.space.architecture import Architecture

__all__ = ["BestFound"]


@dataclass(frozen=True)
class BestFound(Outcome):
    """The best measured candidate under some budgets.

    Args:
        run: the run directory.
        score, loss: as the journal has them; the loss in nats per token, None where it is not known.
        costs: all that there are for this model, by name.
        path: the file that was written; None: none.
    """

    run: Path
    architecture: Architecture
    score: float
    loss: float | None
    costs: Mapping[str, int | float]
    path: Path | None = None

    def facts(self) -> dict[str, Any]:
        """What scripts and the written file have of it."""
        return {
            "architecture": self.architecture.to_json(),
            "score": self.score,
            "loss": self.loss,
            "id": self.architecture.id,
            "costs": dict(self.costs),
        }

    def to_json(self) -> Any:
        """For `--json`."""
        return to_plain({**self.facts(), "run": self.run, "out": self.path})

    def tables(self) -> list[Table]:
        """A summary."""
        layers = self.architecture.layers
        rows = [
            ("score", f"{self.score:.4f}"),
            ("calibration loss", "–" if self.loss is None else f"{self.loss:.4f}"),
            ("blocks kept", f"{sum(not layer.skip for layer in layers)} of {len(layers)}"),
            *((name, _shown(name, cost)) for name, cost in self.costs.items()),
            *([("architecture", str(self.path))] if self.path is not None else []),
        ]
        return [Table(f"best candidate of {self.run}", ("", "value"), rows)]


def _shown(name: str, cost: int | float) -> str:
    size = f" ({data_size(int(cost))})" if BUDGETS.get(name).bytes else ""
    return f"{counted(cost)}{size}"
