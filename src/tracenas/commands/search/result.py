"""What `tracenas search` answers: the run directory and the best architecture."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracenas.reporting.terminal import Table, print_table
from tracenas.space.architecture import Architecture

__all__ = ["SearchOutcome"]


@dataclass(frozen=True)
class SearchOutcome:
    """Where a finished search is and what it found.

    Args:
        path: the run directory.
        best: its best.json, as `prune` takes it.
        architecture: the best candidate.
        score: its proxy score.
        summary: what summary.json says.
    """

    path: Path
    best: Path
    architecture: Architecture
    score: float
    summary: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "run": str(self.path),
            "best": str(self.best),
            "architecture": self.architecture.to_json(),
            **self.summary,
        }

    def show(self) -> None:
        """A summary on stdout."""
        s = self.summary
        print_table(
            Table(
                f"search of {s['model']}",
                ("", "value"),
                [
                    (f"best {s['proxy']}", f"{self.score:.4f}"),
                    (
                        "parameters",
                        f"{s['params']:,} of {s['base']['params']:,} ({100 * s['params'] / s['base']['params']:.1f}%)",
                    ),
                    (
                        "blocks kept",
                        f"{sum(not la.skip for la in self.architecture.layers)} of {len(self.architecture.layers)}",
                    ),
                    ("calibration loss", f"{s['loss']:.4f} (base {s['base']['loss']:.4f})"),
                    ("evaluations", f"{s['evaluations']:,} in {s['seconds']:.1f} s"),
                    ("best architecture", str(self.best)),
                    *([("weights", s["weights"])] if "weights" in s else []),
                ],
            )
        )
