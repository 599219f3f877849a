"""What `tracenas demo` on a published model adds to a run's page: answers, recovery, time told and taken."""

from collections.abc import Mapping, Sequence
from typing import Any

from tracenas.reporting.formats import MISSING, decimal, duration, signed_percent
from tracenas.reporting.pages.markup import Markup, el, join
from tracenas.reporting.pages.page import section_head
from tracenas.reporting.pages.tables import table

__all__ = ["published_model"]


def published_model(found: Mapping[str, Any]) -> Markup | None:
    """The section's content; None where nothing was found.

    Args:
        found: published-model.json, as `Stages.published` holds it.
    """
    if not found:
        return None
    lead = "Greedy answers of the base, of the found model as it was pruned and compensated, and of the recovered one."
    return join(
        section_head("The same questions to all", lead),
        _answers(found["answers"]),
        el("div", _perplexity(found["perplexity"]), _time(found["plan"]), class_="split stages"),
    )


def _answers(rows: Sequence[Mapping[str, str]]) -> Markup:
    names = [name for name in rows[0] if name != "prompt"] if rows else []
    cells = [([el("b", r["prompt"]), *(_text(r[name]) for name in names)], "") for r in rows]
    return el("div", table(["Prompt", *(name.capitalize() for name in names)], cells, "answers"), class_="card flush")


def _text(said: str) -> Markup:
    return el("div", said.strip() or MISSING)


def _perplexity(rows: Sequence[Mapping[str, Any]]) -> Markup:
    cells = [([r["name"], f"{r['params']:,}", decimal(r["before"]), decimal(r["after"])], "") for r in rows]
    head = el("h3", "Held-out perplexity")
    drawn = table(["Model", "Parameters", "Not trained", "Recovered"], cells, "numbers first-left")
    note = el("p", "Pruned models are compensated; all are recovered on the same text.", class_="table-note")
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
