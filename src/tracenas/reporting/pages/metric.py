"""The page of a metric search: front of fitness against complexity, best expressions, operators, generations."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tracenas.errors import UserError
from tracenas.reporting.charts.svg import Frame, circle, line, polyline, rect, star, text, ticks
from tracenas.reporting.data.reading import read_object, read_settings
from tracenas.reporting.formats import MISSING, decimal, duration, percent, plural
from tracenas.reporting.pages.markup import Markup, el, join
from tracenas.reporting.pages.page import Section, document, figure, header, section_head, stat_card, unfinished
from tracenas.reporting.pages.tables import settings_table, table
from tracenas.rundir import Journal, atomic_path, read_json
from tracenas.strategies.result import generations
from tracenas.symbolic.analysis import findings, front

__all__ = ["write_metric_report"]

_BEST = 15
_LOST = {
    "weight": ("Σ W² pruned", "magnitude’s own objective"),
    "activation": ("Σ (W·X)² pruned", "Wanda’s objective: the error at the layer’s output, inputs uncorrelated"),
    "gradient": ("Σ |W·G| pruned", "first-order effect on the loss"),
    "complexity": ("nodes", "of the simplified expression"),
}

Row = Mapping[str, Any]


def write_metric_report(run: Path, out: Path | None = None) -> Path:
    """Write RUN/report.html (or `out`) from a metric search's journal, settings and, if it has ended, summary.

    Raises:
        UserError: if what there must be is missing, or a file is corrupt.
    """
    settings = read_settings(run / "config.yaml")
    records = Journal(run / "journal.jsonl").read()
    running = "model" in settings and not (run / "summary.json").exists()
    summary = _so_far(run, settings, records) if running else read_object(run / "summary.json", required=True)
    if not running and not any(r.get("score") is not None for r in records):
        raise UserError(f"{run / 'journal.jsonl'}: no metric with a score in it")
    path = out or run / "report.html"
    page = _render(summary, records, settings, running)
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _so_far(run: Path, settings: Row, records: Sequence[Row]) -> dict[str, Any]:
    """What summary.json would say of a search that is still running."""
    known = read_json(run / "known.json") if (run / "known.json").is_file() else []
    history = generations(records, settings["population"], settings["elites"])
    return {
        **{key: settings[key] for key in ("model", "sparsity", "compare", "seed")},
        **findings(records, known),
        "duplicates": sum(g.duplicates for g in history[:-1]),
        "generations": [g.to_json() for g in history],
    }


def _render(summary: Row, records: Sequence[Row], settings: Row, running: bool) -> str:
    scored = any(r.get("score") is not None for r in records)
    sections: list[Section] = [
        ("known", "Comparison", _comparison(summary)),
        ("search", "Search", _search(summary, records) if scored else None),
        ("metrics", "Metrics", _metrics(records) if records else None),
        ("principles", "Principles", _principles(summary) if scored else None),
        ("settings", "Settings", _settings(settings)),
    ]
    model = str(summary["model"])
    chips: list[str | Markup] = [f"Sparsity {summary['sparsity']}", f"Compared by {summary['compare']}"]
    chips += [f"Seed {summary['seed']}", *([unfinished("Search")] if running else [])]
    top = header("metric search report", model, chips, sections)
    return document(f"{model}: metric search", top, _cards(summary), sections)


def _perplexity(loss: float | None) -> str:
    return MISSING if loss is None else decimal(math.exp(min(loss, 700)))


def _cards(summary: Row) -> Markup:
    rivals = [k for k in summary["known"] if k["loss"] is not None and k["name"] != "sparsegpt"]
    best = min(rivals, key=lambda k: k["loss"], default=None)
    note = (
        f"best known without update: {best['name']}, {_perplexity(best['loss'])}"
        if best
        else "no known metric measured"
    )
    failed = f"{summary['failed']:,} failed, {plural(summary['duplicates'], 'duplicate')} left out"
    cards = [
        stat_card("Perplexity of the found metric", _perplexity(summary["loss"]), note),
        stat_card("Metrics evaluated", f"{summary['evaluations']:,}", failed),
        stat_card(
            "Time of the evaluations",
            duration(summary["seconds"]),
            "" if summary["complexity"] is None else f"{summary['complexity']} nodes in the found metric",
        ),
    ]
    return el("div", *cards, class_="cards")


def _comparison(summary: Row) -> Markup | None:
    rows: list[tuple[str, str, float | None, str]] = []
    if summary["metric"] is not None:
        rows.append(("found", summary["metric"], summary["loss"], "found"))
    for known in summary["known"]:
        update = "updates weights" if known["name"] == "sparsegpt" else ""
        rows.append((known["name"], known["metric"] or update, known["loss"], ""))
    if not rows:
        return None
    rows.sort(key=lambda r: math.inf if r[2] is None else r[2])
    cells = [([n, el("code", m), _perplexity(loss), decimal(loss)], kind) for n, m, loss, kind in rows]
    lead = "Perplexity on the held-out text of the search, right after one-shot pruning, all pruned in the same way."
    body = table(["Metric", "Expression", "Perplexity", "NLL, nats/token"], cells)
    return join(section_head("Found and known metrics", lead), el("div", body, class_="card flush"))


def _search(summary: Row, records: Sequence[Row]) -> Markup:
    figures = [
        figure(
            "Fitness per generation",
            "New metrics as dots; lines: best so far, and median of the new ones.",
            _generations(summary, records),
        ),
        figure("Fitness against complexity", "The line joins metrics that none beats in both.", _front(records)),
    ]
    lead = f"{plural(len(records), 'metric')} over {plural(len(summary['generations']), 'generation')}."
    return join(section_head("How the search went", lead), el("div", *figures, class_="figures"))


def _losses(records: Sequence[Row]) -> tuple[list[float], float, float]:
    """Losses, and a range that a few bad metrics do not squeeze."""
    losses = [float(r["loss"]) for r in records if r["score"] is not None]
    low, high = min(losses), max(losses)
    high = min(high, float(np.quantile(losses, 0.75)) + 0.5 * (float(np.quantile(losses, 0.75)) - low))
    margin = 0.06 * (high - low) or 0.01
    return losses, low - margin, high + margin


def _generations(summary: Row, records: Sequence[Row]) -> Markup:
    _, low, high = _losses(records)
    history = summary["generations"]
    frame = Frame((-0.6, len(history) - 0.4), (low, high))
    parts = [
        frame.y_axis("NLL, nats/token", ticks(low, high)),
        frame.x_axis("generation", ticks(0, len(history) - 1, 6, whole=True)),
    ]
    for generation in range(len(history)):
        new = [r for r in records if r["generation"] == generation and r["score"] is not None]
        for place, record in enumerate(new):
            x = frame.x(generation + 0.7 * ((place + 0.5) / len(new) - 0.5))
            hidden = record["loss"] > high
            parts.append(_dot(frame, x, record, high, "dot low" if hidden else "dot"))
    best = [(g["generation"], -g["best"]) for g in history if g["best"] is not None]
    middle = [(n, float(np.median(losses))) for n, losses in _by_generation(records).items()]
    for points, style in ((best, "best-line"), (middle, "mean-line")):
        parts.append(polyline([(frame.x(n), frame.y(y)) for n, y in points if y <= high], style))
    return frame.svg("Loss of every metric by generation, and of the best", *parts)


def _by_generation(records: Sequence[Row]) -> dict[int, list[float]]:
    losses: dict[int, list[float]] = {}
    for record in records:
        if record["score"] is not None:
            losses.setdefault(record["generation"], []).append(record["loss"])
    return losses


def _front(records: Sequence[Row]) -> Markup:
    _, low, high = _losses(records)
    scored = [r for r in records if r["score"] is not None]
    most = max(r["params"] for r in scored)
    frame = Frame((0, most + 1), (low, high))
    best = [r for r in front(records) if r["loss"] <= high]
    parts = [frame.y_axis("NLL, nats/token", ticks(low, high)), frame.x_axis("nodes", ticks(1, most, 8, whole=True))]
    parts += [_dot(frame, frame.x(r["params"]), r, high, "dot low" if r["loss"] > high else "dot") for r in scored]
    parts.append(polyline([(frame.x(r["params"]), frame.y(r["loss"])) for r in best], "best-line"))
    parts += [star(frame.x(r["params"]), frame.y(r["loss"]), 7, "star", tip=_tip(r)) for r in best]
    return frame.svg("Loss against the number of nodes of every metric; the front is marked", *parts)


def _dot(frame: Frame, x: float, record: Row, high: float, style: str) -> Markup:
    return circle(x, frame.y(min(high, record["loss"])), 2.4, style, tip=_tip(record))


def _tip(record: Row) -> str:
    return f"{record['arch']['metric']}: perplexity {_perplexity(record['loss'])}, {record['params']} nodes"


def _metrics(records: Sequence[Row]) -> Markup:
    scored = sorted((r for r in records if r["score"] is not None), key=lambda r: r["loss"])
    names = {r["id"] for r in front(records)}
    rows = [
        (
            [
                el("code", r["arch"]["metric"]),
                _perplexity(r["loss"]),
                str(r["params"]),
                str(r["generation"]),
                "yes" if r["id"] in names else "",
            ],
            "",
        )
        for r in scored[:_BEST]
    ]
    parts = [
        section_head("Best expressions", "W: |weight|, G: mean |gradient|, X: root mean square of the input column."),
        el(
            "div", table(["Expression", "Perplexity", "Nodes", "Generation", "On the front"], rows), class_="card flush"
        ),
    ]
    failed = [r for r in records if r["status"] == "failed"]
    if failed:
        rows = [([el("code", r["arch"]["metric"]), r.get("reason", MISSING)], "") for r in failed[:_BEST]]
        parts += [
            el("h2", f"Failed metrics ({len(failed)})"),
            el("div", table(["Expression", "Why"], rows), class_="card flush"),
        ]
    return join(*parts)


def _principles(summary: Row) -> Markup:
    used = summary["usage"]
    bars = el(
        "div",
        figure("How often a name is used", "Dark: in the best quarter of the metrics; light: in all.", _bars(used)),
        class_="figures",
    )
    rows = [
        (
            [
                el("code", u["name"]),
                percent(u["share"], 0),
                percent(u["share_best"], 0),
                _perplexity(u["loss_with"]),
                _perplexity(u["loss_without"]),
            ],
            "",
        )
        for u in used
    ]
    names = ["Name", "In all", "In the best quarter", "Median perplexity with", "without"]
    correlation = [
        ([_LOST.get(k, (k, ""))[0], _LOST.get(k, ("", ""))[1], decimal(v["spearman"], 3), f"{v['metrics']:,}"], "")
        for k, v in summary["correlation"].items()
    ]
    lead = "What goes along with a low perplexity: associations in this population, which selection has shaped."
    about = (
        "Spearman correlation of what a mask removes with the loss after pruning, over all metrics and the known ones."
    )
    return join(
        section_head("Principles", lead),
        bars,
        el("h2", "Operators and variables"),
        el("div", table(names, rows, "numbers first-left"), class_="card flush"),
        section_head("What predicts quality after pruning", about),
        el("div", table(["Figure", "", "Correlation with the loss", "Metrics"], correlation), class_="card flush"),
    )


def _bars(used: Sequence[Row]) -> Markup:
    frame = Frame((0, 1), (0, 1), height=62 + 24.0 * len(used), left=84, right=30)
    labels = [percent(v, 0) for v in (0, 0.5, 1)]
    parts = [frame.x_axis("share of the metrics", [0, 0.5, 1], labels)]
    for place, u in enumerate(used):
        y = frame.top + 24 * place
        parts.append(text(frame.left - 10, y + 14, u["name"], "row-label", "end"))
        parts.append(line(frame.left, y + 22, frame.width - frame.right, y + 22, "grid"))
        for key, top, style in (("share_best", 2, "fill accent"), ("share", 11, "gone")):
            tip = f"{u['name']}: {percent(u[key], 0)}"
            parts.append(rect(frame.left, y + top, frame.x(u[key]) - frame.left, 8, style, tip=tip))
    return frame.svg("Share of the metrics that use each operator and variable", *parts)


def _settings(settings: Row) -> Markup | None:
    if not settings:
        return None
    return join(section_head("Settings"), el("div", settings_table(settings), class_="card"))
