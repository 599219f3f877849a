"""The page of a study that is still running: what it has measured, and how the proxies order that."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tracenas.formats import decimal, fixed, short_count
from tracenas.reporting.pages.page import render
from tracenas.studies.correlation import MINIMUM, correlate
from tracenas.studies.tables import StudyTarget

__all__ = ["kept_units", "running_study_page"]

_LAYERS = 8
"""Layers of an architecture that the table shows."""

Row = Mapping[str, Any]


def running_study_page(settings: Row, records: Sequence[Row]) -> str:
    """The page as text.

    Args:
        settings: as config.yaml has them.
        records: of the journal.
    """
    names = dict.fromkeys(name for r in records for name in r["targets"])
    targets = [StudyTarget(name, name.replace("_", " "), loss=not name.startswith("task_")) for name in names]
    return render(
        "study_running.html",
        settings_values=settings,
        measured=len(records),
        targets=[t.label for t in targets],
        seconds={key: sum(r["seconds"][key] for r in records) for key in ("scores", "targets")},
        correlation=_correlation(records, targets) if len(records) >= MINIMUM else [],
        architectures=[
            [r["kind"], short_count(r["params"]), *(decimal(_value(r, t)) for t in targets), kept_units(r["arch"])]
            for r in records
        ],
    )


def _value(record: Row, target: StudyTarget) -> float | None:
    value: float | None = record["targets"].get(target.name, {}).get("value")
    return value


def _correlation(records: Sequence[Row], targets: Sequence[StudyTarget]) -> list[list[str]]:
    """ρ of every proxy with every target."""
    rng = np.random.default_rng(0)
    qualities = [[t.quality(_value(r, t)) for r in records] for t in targets]
    rows = []
    for name in dict.fromkeys(name for r in records for name in r["scores"]):
        scores = [r["scores"].get(name) for r in records]
        rows.append([name, *(fixed(correlate(scores, q, rng, resamples=0).rho.value) for q in qualities)])
    return rows


def kept_units(arch: Row) -> str:
    """`4/192 × 8/352`; stacks of an encoder–decoder one after the other."""
    layers = arch["layers"] if "layers" in arch else [la for stack in arch.values() for la in stack["layers"]]
    shown = ["×" if la.get("skip") else "/".join(str(v) for v in la.values()) for la in layers]
    return "  ".join(shown if len(shown) <= _LAYERS else [*shown[: _LAYERS - 1], f"… {shown[-1]}"])
