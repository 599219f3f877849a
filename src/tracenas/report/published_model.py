"""What `tracenas demo` on a published model adds to a run's page: answers, equal recovery, time told and taken."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tracenas.report.formats import MISSING, decimal, duration, signed_percent
from tracenas.report.markup import Markup, el, join
from tracenas.report.tables import table
from tracenas.rundir import read_json

__all__ = ["RESULTS", "with_published_model"]

RESULTS = "published-model.json"
"""In the run directory: perplexity, answers, plan."""


def with_published_model(page: str, run: Path) -> str:
    """The page with a section for RUN/published-model.json, if it is there."""
    path = run / RESULTS
    if not path.is_file():
        return page
    found: Mapping[str, Any] = read_json(path)
    body = join(
        el("h2", "The same questions, and the same training for all"),
        el("p", "Greedy answers of the base and of the found model after recovery.", class_="lead"),
        _answers(found["answers"]),
        el("div", _perplexity(found["perplexity"]), _time(found["plan"]), class_="split stages"),
    )
    section = el("section", body, id="published-model")
    for mark in ('<section id="architecture">', "</main>"):
        if mark in page:
            page = page.replace(mark, section + mark, 1)
            break
    link = el("a", "Answers", href="#published-model")
    for mark in ('<a href="#architecture">', "</nav>"):
        if mark in page:
            return page.replace(mark, link + mark, 1)
    return page


def _answers(rows: Sequence[Mapping[str, str]]) -> Markup:
    cells = [([el("b", r["prompt"]), _text(r["base"]), _text(r["found"])], "") for r in rows]
    return el("div", table(["Prompt", "Base", "Found"], cells, "answers"), class_="card flush")


def _text(said: str) -> Markup:
    return el("div", said.strip() or MISSING, style="white-space: pre-wrap; overflow-wrap: anywhere; min-width: 16rem")


def _perplexity(rows: Sequence[Mapping[str, Any]]) -> Markup:
    cells = [([r["name"], f"{r['params']:,}", decimal(r["before"]), decimal(r["after"])], "") for r in rows]
    head = el("h3", "Held-out perplexity")
    drawn = table(["Model", "Parameters", "Not trained", "Recovered"], cells, "numbers first-left")
    note = el("p", "Pruned models are compensated; the base had the same recovery as they.", class_="table-note")
    return el("div", head, drawn, note, class_="card")


def _time(plan: Mapping[str, Any]) -> Markup:
    told, took = plan["estimate_seconds"], plan["actual_seconds"]
    rows: list[tuple[list[str | Markup | None], str]] = [([name, duration(s)], "") for name, s in told.items()]
    total = sum(told.values())
    rows.append(([el("b", "estimated in all"), duration(total)], ""))
    if int(plan.get("sessions", 1)) == 1 and took:
        actual = sum(took.values())
        rows.append(([el("b", "it took"), f"{duration(actual)} ({signed_percent(actual / total - 1)})"], ""))
    return el("div", el("h3", "Time, estimated before"), table(["Part", ""], rows, "numbers first-left"), class_="card")
