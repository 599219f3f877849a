"""Latency tables of any model, made by the library's own class: what budgets of milliseconds are tried with."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tracenas.benchmark.devices import processor
from tracenas.benchmark.latency_table import PHASES, KindLatency, LatencyTable, Point, kinds
from tracenas.families import Options
from tracenas.models.checkpoints.source import open_source
from tracenas.rundir import write_json

__all__ = ["POINTS", "made_table", "written"]

POINTS = (Point(1, 16, 16), Point(2, 8, 24))

Milliseconds = Callable[[str, float, int, str], float]
"""Of a sub-block, by its name, the share of its units, the point and the phase."""


def _milliseconds(name: str, share: float, point: int, phase: str) -> float:
    """Affine in the width, with another weight of attention in each phase."""
    weight = {"prefill_ms": 1.0, "decode_ms": 0.25}[phase] * (2.0 if name == "attention" else 1.0)
    return (1 + point) * weight * (0.1 + share)


def made_table(model: Path, of: Milliseconds = _milliseconds, **options: Any) -> LatencyTable:
    """A table of a model, with three widths of every kind and a median error of 4 %."""
    source = open_source(str(model))
    layers = source.space(Options(**options)).layers
    found = []
    for spec, slots in kinds(layers).items():
        choices = spec.choices()
        widths = tuple(dict.fromkeys((choices[0], choices[len(choices) // 2], choices[-1])))
        latency = tuple(
            {phase: tuple(of(spec.name, w / spec.units, i, phase) for w in widths) for phase in PHASES}
            for i in range(len(POINTS))
        )
        found.append(KindLatency(tuple(slots), spec.units, widths, latency))
    outside = tuple({"prefill_ms": 0.5 * (i + 1), "decode_ms": 0.25 * (i + 1)} for i in range(len(POINTS)))
    spread = tuple(dict.fromkeys(PHASES, 0.01) for _ in POINTS)
    space = source.space(Options(**options))
    named = {"name": source.name, "family": source.family.model_type, "parameters": space.parameters(space.base)}
    machine = {"device": processor(), "dtype": "fp32", "threads": 1, "torch": "2"}
    return LatencyTable("torch", machine, named, POINTS, outside, tuple(found), spread, {"median_error": 0.04})


def written(path: Path, table: LatencyTable, **changes: Any) -> str:
    """The table's file, with other fields where they are given."""
    write_json(path, replace(table, **changes).to_json())
    return str(path)
