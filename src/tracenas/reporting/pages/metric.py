"""The page of a metric search: front of fitness against complexity, best expressions, operators, generations."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tracenas.errors import UserError
from tracenas.journal import Journal
from tracenas.reporting.charts.metric import front_chart, generations_chart, usage_chart
from tracenas.reporting.data.reading import read_object
from tracenas.reporting.pages.page import render, write_page
from tracenas.rundir import REPORT, read_json
from tracenas.settings import read_settings
from tracenas.strategies.result import generations
from tracenas.symbolic.analysis import findings, front

__all__ = ["write_metric_report"]

Row = Mapping[str, Any]


def write_metric_report(run: Path, out: Path | None = None) -> Path:
    """Write RUN/report.html (or `out`) from a metric search's journal, settings and, if it has ended, summary.

    Raises:
        UserError: if what there must be is missing, or a file is corrupt.
    """
    settings = read_settings(run / "config.yaml", required=False)
    records = Journal(run / "journal.jsonl").read()
    running = "model" in settings and not (run / "summary.json").exists()
    summary = _running_summary(run, settings, records) if running else read_object(run / "summary.json", required=True)
    scored = [r for r in records if r.get("score") is not None]
    if not running and not scored:
        raise UserError(f"{run / 'journal.jsonl'}: no metric with a score in it")
    page = render(
        "metric.html",
        summary=summary,
        settings_values=settings,
        running=running,
        records=records,
        scored=sorted(scored, key=lambda r: r["loss"]),
        front=[r["id"] for r in front(scored)],
        charts=_charts(summary, scored) if scored else None,
    )
    return write_page(out or run / REPORT, page)


def _running_summary(run: Path, settings: Row, records: Sequence[Row]) -> dict[str, Any]:
    """What summary.json would say of a search that is still running."""
    references = read_json(run / "known.json") if (run / "known.json").is_file() else []
    history = generations(records, settings["population"], settings["elites"])
    return {
        **{key: settings[key] for key in ("model", "sparsity", "compare", "seed")},
        **findings(records, references),
        "duplicates": sum(g.duplicates for g in history[:-1]),
        "generations": [g.to_json() for g in history],
    }


def _charts(summary: Row, scored: Sequence[Row]) -> dict[str, str]:
    return {
        "generations": generations_chart(summary["generations"], scored),
        "front": front_chart(scored),
        "usage": usage_chart(summary["usage"]),
    }
