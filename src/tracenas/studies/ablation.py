"""How a proxy's ranking changes with the text and the rank it is computed from (TraceNAS Fig. 3, Tables 6 and 7)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tracenas.formats import fixed
from tracenas.studies.correlation import correlate
from tracenas.studies.tables import StudyTarget, interval
from tracenas.tables import Table

__all__ = ["Setting", "ablation_tables", "compare"]

_NAMES = {"samples": "sequences N", "length": "context length", "rank": "rank r"}
_STREAM = 0x41424C41


@dataclass(frozen=True)
class Setting:
    """What a score is computed from: sequences, tokens per sequence, rank (0: exact gradients)."""

    samples: int
    length: int
    rank: int

    def value(self, category: str) -> str:
        """The category's own figure, as text."""
        figure: int = getattr(self, category)
        return "full" if category == "rank" and figure == 0 else str(figure)


def compare(
    grid: Mapping[str, Sequence[Setting]],
    records: Mapping[Setting, Mapping[str, Any]],
    targets: Sequence[StudyTarget],
    values: Mapping[str, Sequence[float | None]],
    *,
    seed: int,
    resamples: int,
) -> list[dict[str, Any]]:
    """Per category: each setting's correlation with its reference (the last setting) and with the targets.

    Args:
        records: scores per setting, in the order of the architectures.
        values: target → value per architecture.
    """

    def related(x: Sequence[float | None], y: Sequence[float | None]) -> dict[str, Any]:
        return correlate(x, y, np.random.default_rng([seed, _STREAM]), resamples=resamples).to_json()

    out = []
    for category, settings in grid.items():
        rows = []
        for setting in settings:
            scores = records[setting]["scores"]
            rows.append(
                {
                    "value": setting.value(category),
                    "with_reference": related(scores, records[settings[-1]]["scores"]),
                    "with_targets": {t.name: related(scores, [t.quality(v) for v in values[t.name]]) for t in targets},
                    "failed": sum(s is None for s in scores),
                    "seconds": records[setting]["seconds"],
                }
            )
        if rows:
            reference = {"reference": rows[-1]["value"], "targets": {t.name: t.label for t in targets}}
            out.append({"category": category, **reference, "rows": rows})
    return out


def ablation_tables(results: Mapping[str, Any]) -> list[Table]:
    """One table per category, as Fig. 3 and Tables 6 and 7 in one."""
    tables = []
    for entry in results["categories"]:
        name = _NAMES[entry["category"]]
        columns = (
            name,
            f"τ with {entry['reference']}",
            f"ρ with {entry['reference']}",
            *entry["targets"].values(),
            "s/arch.",
        )
        rows = []
        for row in entry["rows"]:
            reference = row["with_reference"]
            cells = [row["with_targets"][t] for t in entry["targets"]]
            pairs = [f"{fixed(c['rho']['value'])} / {fixed(c['tau']['value'])}" for c in cells]
            rows.append(
                (row["value"], interval(reference["tau"]), interval(reference["rho"]), *pairs, fixed(row["seconds"], 3))
            )
        note = "; with targets ρ / τ" if entry["targets"] else ""
        tables.append(Table(f"{name}, against the highest setting{note}", columns, tuple(rows)))
    return tables
