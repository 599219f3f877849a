"""The page of a study: which proxies order architectures as their recovered quality does, and every figure."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from tracenas.journal import Journal
from tracenas.reporting.charts.study import interval_chart, kind_legend, rank_chart, scatter
from tracenas.reporting.data.reading import read_object
from tracenas.reporting.pages.page import render, write_page
from tracenas.reporting.pages.study_running import kept_units, running_study_page
from tracenas.rundir import REPORT
from tracenas.settings import read_settings
from tracenas.studies.tables import (
    agreement_table,
    correlation_table,
    interval,
    main_table,
    ranked,
    regret_table,
    target_label,
    target_table,
    undefined,
)

__all__ = ["write_study_report"]

Row = Mapping[str, Any]


def write_study_report(run: Path, out: Path | None = None) -> Path:
    """Write RUN/report.html (or `out`) from a study's journal and its results, or its settings while it is running.

    Raises:
        UserError: if what there must be is missing, or a file is corrupt.
    """
    settings = read_settings(run / "config.yaml", required=False)
    study = read_object(run / "study.json", required="model" not in settings)
    records = [_with_combined(study, r) for r in Journal(run / "journal.jsonl").read()]
    page = _study_page(study, records) if study else running_study_page(settings, records)
    return write_page(out or run / REPORT, page)


def _with_combined(study: Row, record: Row) -> Row:
    """The record with the scores of combinations, which the journal does not hold."""
    combined = {name: scores.get(record["id"]) for name, scores in study.get("combined", {}).items()}
    return {**record, "scores": {**record["scores"], **combined}}


def _study_page(study: Row, records: Sequence[Row]) -> str:
    target = next(t for t in study["targets"] if t["name"] == study["main_target"])
    proxies = ranked(study)
    published = next((r for r in study["proxies"] if r["name"] == "phi"), None)
    sign = 1 if target["loss"] else -1

    def place(record: Row) -> tuple[bool, float]:
        value = record["targets"][target["name"]]["value"]
        return value is None, 0.0 if value is None else sign * value

    return render(
        "study.html",
        study=study,
        target=target,
        labels={t["name"]: t["label"] for t in study["targets"]},
        proxies=proxies,
        published=published if published is not proxies[0] else None,
        intervals=interval_chart(proxies, target["name"]),
        main_table=main_table(study),
        correlation_table=correlation_table(study),
        regret_table=regret_table(study),
        undefined=undefined(study),
        plots=[(row, scatter(records, row["name"], target)) for row in proxies],
        kinds=kind_legend(records),
        target_table=target_table(study),
        agreement_table=agreement_table(study),
        flips=_flips(study, records),
        records=sorted(records, key=place),
        kept_units=kept_units,
    )


def _flips(study: Row, records: Sequence[Row]) -> list[tuple[str, str, Markup]]:
    """Name, note and picture of the pairs of targets whose ranks are shown beside each other.

    Short against long recovery where both were measured, and the starts against each other.
    """
    related = [p for p in study["agreement"] if p["related"]]
    recovered = [p for p in related if not (p["a"].endswith("_0") or p["b"].endswith("_0"))]
    targets = {t["name"]: t for t in study["targets"]}
    figures = []
    for pair in recovered or [p for p in related if study["main_target"] in (p["a"], p["b"])]:
        picture = rank_chart(records, targets[pair["a"]], targets[pair["b"]])
        if picture is not None:
            name = f"{target_label(study, pair['a'])} → {target_label(study, pair['b'])}"
            note = f"ρ {interval(pair['rho'])}; {pair['flips']} of {pair['comparable']} pairs flip"
            figures.append((name, note, picture))
    return figures
