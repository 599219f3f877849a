"""What `tracenas search` answers: the run directory and the best architecture."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracenas.formats import counted
from tracenas.journal import Journal
from tracenas.pipeline.run_directory import JOURNAL
from tracenas.reporting.terminal import Outcome, Table
from tracenas.space.architecture import Architecture

__all__ = ["SearchOutcome"]


@dataclass(frozen=True)
class SearchOutcome(Outcome):
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

    def records(self) -> list[dict[str, Any]]:
        """The journal: a record per candidate."""
        return list(Journal(self.path / JOURNAL).read())

    def tables(self) -> list[Table]:
        """A summary."""
        s = self.summary
        params, base, layers = s["params"], s["base"], self.architecture.layers
        loss = "–" if s["loss"] is None else f"{s['loss']:.4f}"
        rows = [
            (f"best {s['proxy']}", f"{self.score:.4f}"),
            ("parameters", f"{params:,} of {base['params']:,} ({100 * params / base['params']:.1f}%)"),
            ("blocks kept", f"{sum(not layer.skip for layer in layers)} of {len(layers)}"),
            ("calibration loss", f"{loss} (base {base['loss']:.4f})"),
            ("evaluations", f"{s['evaluations']:,} in {s['seconds']:.1f} s"),
            *([("front", _described(s["front"]))] if "front" in s else []),
            *([("ended", s["settled"]["said"])] if "settled" in s else []),
            *([("taken", s["selection"]["said"])] if "selection" in s else []),
            ("best architecture", str(self.best)),
            *([("weights", s["weights"])] if "weights" in s else []),
        ]
        return [Table(f"search of {s['model']}", ("", "value"), rows)]


def _described(front: Mapping[str, Any]) -> str:
    """How many architectures, and between what costs."""
    members = front["members"]
    spans = []
    for name in front["costs"]:
        spent = [member["costs"][name] for member in members]
        spans.append(f"{counted(min(spent))} to {counted(max(spent))} {name}")
    asked = " ".join(f"--budget {name}=…" for name in front["costs"])
    return f"{len(members)} architectures, {', '.join(spans)}: tracenas best RUN {asked}"
