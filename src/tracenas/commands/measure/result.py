"""A latency table that was written, for people and for scripts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracenas.benchmark.latency_table import PHASES, LatencyTable
from tracenas.benchmark.width_latency import CHECKS
from tracenas.reporting.terminal import Outcome, Table

__all__ = ["LatencyMeasured"]

_GOOD = 0.10
"""A median error beyond which budgets do not take a table unless told."""


@dataclass(frozen=True)
class LatencyMeasured(Outcome):
    """A table that was written.

    Args:
        path: the file.
        latencies: what it holds.
    """

    path: Path
    latencies: LatencyTable

    def to_json(self) -> dict[str, Any]:
        """For `--json`: the file's object and its path."""
        return {"path": str(self.path), **self.latencies.to_json()}

    def records(self) -> list[dict[str, Any]]:
        """Every measured width of every kind."""
        return [
            {"kind": kind.slots[0][1], "slots": len(kind.slots), "point": i, "width": width}
            | {phase: one[phase][place] for phase in PHASES}
            for kind in self.latencies.kinds
            for i, one in enumerate(kind.latency)
            for place, width in enumerate(kind.widths)
        ]

    def tables(self) -> list[Table]:
        """Latencies at some widths, and what the check says."""
        rows = []
        for i, point in enumerate(self.latencies.points):
            where = f"{point.batch}:{point.prompt}:{point.context}"
            rows.append((where, "outside", "", *(f"{self.latencies.outside[i][phase]:.3f}" for phase in PHASES)))
            for kind in self.latencies.kinds:
                for width in dict.fromkeys((kind.widths[0], kind.widths[len(kind.widths) // 2], kind.widths[-1])):
                    cells = (f"{kind.at(width, i, phase):.3f}" for phase in PHASES)
                    rows.append((where, f"{kind.slots[0][1]} (× {len(kind.slots)})", f"{width:,}", *cells))
        error = self.latencies.checked["median_error"]
        notes = [
            f"{self.path}: {CHECKS} whole architectures differ from the sum by {100 * error:.1f} % (median)"
            + ("" if error <= _GOOD else ": too much to be relied on")
        ]
        return [Table("", ("point", "part", "width", "prefill, ms", "decode, ms"), rows, notes)]
