"""The page of a study: which proxies order architectures as their recovered quality does, and every figure."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tracenas.reporting.charts.study import interval_chart, kind_legend, rank_chart, scatter
from tracenas.reporting.data.reading import read_object, read_settings
from tracenas.reporting.formats import count, decimal, duration, percent, plural
from tracenas.reporting.pages.markup import Markup, el, join
from tracenas.reporting.pages.page import Section, document, figure, header, section_head, stat_card
from tracenas.reporting.pages.study_progress import kept, study_so_far
from tracenas.reporting.pages.tables import settings_cards, table
from tracenas.rundir import Journal, atomic_path
from tracenas.studies.tables import (
    StudyTable,
    agreement_table,
    correlation_table,
    interval,
    label_of,
    main_table,
    number,
    ranked,
    regret_table,
    target_table,
    undefined,
)

__all__ = ["write_study_report"]

_CSS = """
.figures.three { grid-template-columns: repeat(3, minmax(0, 1fr)); }
.over { margin: -8px 0 14px; }
svg .rank { stroke: var(--rule); stroke-width: 1.6; } svg .rank.moved { stroke: var(--mlp); stroke-width: 2; }
svg .rank.uniform { stroke: var(--uniform); stroke-width: 2.4; }
@media screen and (max-width: 900px) { .figures.three { grid-template-columns: minmax(0, 1fr); } }
"""

Row = Mapping[str, Any]


def write_study_report(run: Path, out: Path | None = None) -> Path:
    """Write RUN/report.html (or `out`) from a study's journal and its results, or its settings while it is running.

    Raises:
        UserError: if what there must be is missing, or a file is corrupt.
    """
    path = out or run / "report.html"
    settings = read_settings(run / "config.yaml")
    study = read_object(run / "study.json", required="model" not in settings)
    records = [_with_combined(study, r) for r in Journal(run / "journal.jsonl").read()]
    page = _render(study, records) if study else study_so_far(settings, records)
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _with_combined(study: Row, record: Row) -> Row:
    """The record with the scores of combinations, which the journal does not hold."""
    found = {name: scores.get(record["id"]) for name, scores in study.get("combined", {}).items()}
    return {**record, "scores": {**record["scores"], **found}}


def _render(study: Row, records: Sequence[Row]) -> str:
    sections: list[Section] = [
        ("correlation", "Correlation", _correlation(study)),
        ("regret", "First choices", _regret(study)),
        ("scatter", "Scatter plots", _scatter(study, records)),
        ("targets", "Targets", _targets(study, records)),
        ("architectures", "Architectures", _architectures(study, records)),
        ("settings", "Settings", _settings(study)),
    ]
    chips = [
        plural(study["architectures"], "architecture"),
        f"Within {study['params']}" if study["within_budget"] else "Across sizes",
        f"{count(study['base_params'])} parameters in the base",
        plural(len(study["proxies"]), "proxy", "proxies"),
        f"Seed {study['settings']['seed']}",
    ]
    return document(
        f"{study['title']}: proxy study",
        header("proxy study", str(study["model"]), chips, sections),
        _cards(study),
        sections,
        css=_CSS,
        footer=el("footer", "ρ: Spearman, τ: Kendall τ-b; +1: the proxy orders exactly as the target does."),
    )


def _cards(study: Row) -> Markup:
    main = study["main_target"]
    rows = ranked(study)
    cards = []
    for label, row in (("Best order", rows[0]), ("As published", _row(study, "phi"))):
        if row is not None and not (label == "As published" and row is rows[0]):
            found = row["targets"][main]
            name = "Φ" if row["name"] == "phi" else row["name"]
            cards.append(stat_card(f"{label}: {name}", f"ρ {number(found['rho']['value'])}", _note(found)))
    target = next(t for t in study["targets"] if t["name"] == main)
    if target["best"] is not None:
        note = "" if target["uniform"] is None else f"uniform {decimal(target['uniform'])}, "
        note += f"worst {decimal(target['worst'])}"
        cards.append(stat_card(f"Best of the pool, {target['label']}", decimal(target["best"]), note))
    spent = study["seconds"]
    note = f"scores {duration(spent['scores'])}, targets {duration(spent['targets'])}"
    cards.append(stat_card("Time", duration(spent["scores"] + spent["targets"]), note))
    return el("div", *cards, class_="cards two" if len(cards) % 3 else "cards")


def _note(found: Row) -> str:
    """Interval and τ under a card's ρ."""
    rho = found["rho"]
    if rho["value"] is None:
        return str(found["reason"])
    bounds = "" if rho["low"] is None else f"95 % interval {number(rho['low'])} to {number(rho['high'])}; "
    return f"{bounds}τ {number(found['tau']['value'])}"


def _row(study: Row, name: str) -> Row | None:
    return next((r for r in study["proxies"] if r["name"] == name), None)


def _flush(found: StudyTable) -> Markup:
    rows = [(list(row), "found" if row[0] == "phi" else "") for row in found.rows]
    return el("div", table(found.columns, rows, "numbers first-left"), class_="card flush")


def _correlation(study: Row) -> Markup:
    main = study["main_target"]
    lead = f"Score of every proxy against “{label_of(study, main)}”. {study['protocol']}"
    chart = el("div", interval_chart(ranked(study), main), class_="card")
    parts = [section_head("Do the proxies order as the target does?", lead), chart, _flush(main_table(study))]
    parts += [el("p", note, class_="lead") for note in undefined(study)]
    if len(study["targets"]) > 1:
        parts += [section_head("With every target", "ρ / τ, as in TraceNAS Table 1."), _flush(correlation_table(study))]
    return join(*parts)


def _regret(study: Row) -> Markup | None:
    found = regret_table(study)
    if found is None:
        return None
    lead = (
        "What one gets by trusting a proxy: the target of its highest-scored architecture, against the best of the "
        "pool and against uniform (negative: better than uniform)."
    )
    return join(section_head("First choices", lead), _flush(found))


def _scatter(study: Row, records: Sequence[Row]) -> Markup:
    main = study["main_target"]
    target = next(t for t in study["targets"] if t["name"] == main)
    figures = []
    for row in ranked(study):
        picture = scatter(records, row["name"], target)
        found = row["targets"][main]
        pair = f"ρ {number(found['rho']['value'])}, τ {number(found['tau']['value'])}"
        note = pair if found["reason"] is None else f"undefined: {found['reason']}"
        if row["failed"]:
            note += f"; {row['failed']} failed"
        figures.append(figure(row["name"], note, picture))
    way = "falls from the upper left to the lower right" if target["loss"] else "rises from the lower left"
    lead = f"Against “{target['label']}”, best order first. The points of a perfect proxy form a line that {way}."
    lead += " Hollow marks lie outside of the picture."
    legend = el("div", kind_legend(records), class_="over")
    return join(section_head("Scatter plots", lead), legend, el("div", *figures, class_="figures three"))


def _targets(study: Row, records: Sequence[Row]) -> Markup:
    lead = "Losses in nats per token; the spread is the mean standard deviation over the orders of the training data."
    parts = [section_head("Targets", lead), _flush(target_table(study))]
    agreement = agreement_table(study)
    if not agreement.rows:
        return join(*parts)
    by_name = {t["name"]: t for t in study["targets"]}
    figures = []
    for pair in _flip_pairs(study):
        picture = rank_chart(records, by_name[pair["a"]], by_name[pair["b"]])
        if picture is not None:
            name = f"{label_of(study, pair['a'])} → {label_of(study, pair['b'])}"
            note = f"ρ {interval(pair['rho'])}; {pair['flips']} of {pair['comparable']} pairs flip"
            figures.append(figure(name, note, picture))
    lead = "Best on top. Orange: moved by a quarter of the pool or more; violet: uniform."
    parts += [section_head("Rank flips", lead), el("div", *figures, class_="figures")] if figures else []
    parts += [section_head("Agreement of the targets"), _flush(agreement)]
    return join(*parts)


def _flip_pairs(study: Row) -> list[Row]:
    """Short against long recovery where both were measured, and the starts against each other."""
    related = [p for p in study["agreement"] if p["related"]]
    last = study["main_target"]
    chosen = [p for p in related if not (p["a"].endswith("_0") or p["b"].endswith("_0"))]
    return chosen or [p for p in related if last in (p["a"], p["b"])]


def _architectures(study: Row, records: Sequence[Row]) -> Markup:
    targets = study["targets"]
    main = next(t for t in targets if t["name"] == study["main_target"])
    sign = 1 if main["loss"] else -1

    def place(record: Row) -> tuple[bool, float]:
        value = record["targets"][main["name"]]["value"]
        return value is None, 0.0 if value is None else sign * value

    rows = []
    for record in sorted(records, key=place):
        figures = [decimal(record["targets"][t["name"]]["value"]) for t in targets]
        size = percent(record["params"] / study["base_params"])
        units = kept(record["arch"])
        rows.append(([record["kind"], size, *figures, units], "found" if record["kind"] == "uniform" else ""))
    columns = ["Drawn", "of base", *(t["label"] for t in targets), "Kept per layer"]
    lead = f"In the order of “{main['label']}”; kept units as attention/MLP per layer, × a skipped block."
    failed = [
        ([label_of(study, name), found["reason"], record["id"]], "")
        for record in records
        for name, found in record["targets"].items()
        if found.get("reason")
    ]
    listed = el("div", table(columns, rows, "numbers first-left"), class_="card flush")
    parts = [section_head("Architectures", lead), listed]
    missing = [([r["name"], f["reason"], str(f["count"])], "") for r in study["proxies"] for f in r["failures"]]
    for title, names, cells in (
        ("Failed scores", ["Proxy", "Why", "Architectures"], missing),
        ("Failed measurements", ["Target", "Why", "Architecture"], failed),
    ):
        if cells:
            parts += [section_head(title), el("div", table(names, cells), class_="card flush")]
    return join(*parts)


def _settings(study: Row) -> Markup:
    cards = settings_cards({"Settings": study["settings"], "Provenance": study.get("provenance")})
    return join(section_head("Settings and provenance"), cards)
