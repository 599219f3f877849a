"""The page of a study that is still running: what it has measured, and how the proxies order that."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tracenas.reporting.formats import count, decimal, duration, plural
from tracenas.reporting.pages.markup import Markup, el, join
from tracenas.reporting.pages.page import Section, document, header, section_head, stat_card, unfinished
from tracenas.reporting.pages.tables import settings_cards, table
from tracenas.studies.correlation import MINIMUM, correlate
from tracenas.studies.tables import Target, number

__all__ = ["kept", "study_so_far"]

_LAYERS = 8
"""Layers of an architecture that the table shows."""

Row = Mapping[str, Any]


def study_so_far(settings: Row, records: Sequence[Row]) -> str:
    """The page as text.

    Args:
        settings: as config.yaml has them.
        records: of the journal.
    """
    sections: list[Section] = [
        ("correlation", "Correlation", _correlation(records) if len(records) >= MINIMUM else None),
        ("architectures", "Architectures", _architectures(records) if records else None),
        ("settings", "Settings", join(section_head("Settings"), settings_cards({"Settings": settings}))),
    ]
    model = str(settings["model"])
    chips = [plural(settings["architectures"], "architecture"), f"Seed {settings['seed']}", unfinished("Study")]
    return document(
        f"{model}: proxy study", header("proxy study", model, chips, sections), _cards(settings, records), sections
    )


def _cards(settings: Row, records: Sequence[Row]) -> Markup:
    spent = {key: sum(r["seconds"][key] for r in records) for key in ("scores", "targets")}
    note = f"scores {duration(spent['scores'])}, targets {duration(spent['targets'])}"
    measured = stat_card("Architectures measured", f"{len(records)} of {settings['architectures']}")
    return el("div", measured, stat_card("Time", duration(sum(spent.values())), note), class_="cards two")


def _targets(records: Sequence[Row]) -> list[Target]:
    names = dict.fromkeys(name for r in records for name in r["targets"])
    return [Target(name, name.replace("_", " "), loss=not name.startswith("task_")) for name in names]


def _values(records: Sequence[Row], target: Target) -> list[float | None]:
    return [r["targets"].get(target.name, {}).get("value") for r in records]


def _correlation(records: Sequence[Row]) -> Markup:
    targets, rng = _targets(records), np.random.default_rng(0)
    rows = []
    for name in dict.fromkeys(name for r in records for name in r["scores"]):
        scores = [r["scores"].get(name) for r in records]
        found = [correlate(scores, [t.quality(v) for v in _values(records, t)], rng, resamples=0) for t in targets]
        rows.append(([name, *(number(c.rho.value) for c in found)], "found" if name == "phi" else ""))
    lead = f"Spearman’s ρ over the first {plural(len(records), 'architecture')}, without intervals: it will change."
    body = table(["Proxy", *(t.label for t in targets)], rows, "numbers first-left")
    return join(section_head("How the proxies order so far", lead), el("div", body, class_="card flush"))


def _architectures(records: Sequence[Row]) -> Markup:
    targets = _targets(records)
    rows = []
    for record in records:
        figures = [decimal(values[0]) for t in targets for values in [_values([record], t)]]
        row = [record["kind"], count(record["params"]), *figures, kept(record["arch"])]
        rows.append((row, "found" if record["kind"] == "uniform" else ""))
    lead = "In the order of their measurement; kept units as attention/MLP per layer, × a skipped block."
    columns = ["Drawn", "Parameters", *(t.label for t in targets), "Kept per layer"]
    body = table(columns, rows, "numbers first-left")
    return join(section_head("Architectures", lead), el("div", body, class_="card flush"))


def kept(arch: Row) -> str:
    """`4/192 × 8/352`; stacks of an encoder–decoder one after the other."""
    layers = arch["layers"] if "layers" in arch else [la for stack in arch.values() for la in stack["layers"]]
    shown = ["×" if la.get("skip") else "/".join(str(v) for v in la.values()) for la in layers]
    return "  ".join(shown if len(shown) <= _LAYERS else [*shown[: _LAYERS - 1], f"… {shown[-1]}"])
