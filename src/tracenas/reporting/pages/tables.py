"""The report's tables: comparison, best candidates, settings, failures."""

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from tracenas.reporting.charts.dynamics import retention
from tracenas.reporting.charts.run import NAMES
from tracenas.reporting.charts.svg import rect
from tracenas.reporting.data.run import Compared, RunData
from tracenas.reporting.formats import MISSING, decimal, duration, percent, plural, proxy_label
from tracenas.reporting.pages.markup import Markup, el, join
from tracenas.reporting.pages.verdict import Verdict, random_label, random_rows, spread

__all__ = [
    "candidates_table",
    "comparison_table",
    "failures_table",
    "flatten",
    "settings_cards",
    "settings_table",
    "table",
]

Figure = Callable[[Compared], float | None]


def table(head: Iterable[str], rows: Iterable[tuple[Iterable[str | Markup | None], str]], class_: str = "") -> Markup:
    """A table that scrolls sideways where it is too wide; rows are (cells, class)."""
    header = el("thead", el("tr", *(el("th", name, scope="col") for name in head)))
    body = el("tbody", *(el("tr", *(el("td", c) for c in cells), class_=kind or None) for cells, kind in rows))
    return el("div", el("table", header, body, class_=class_ or None), class_="scroll", tabindex=0)


def comparison_table(run: RunData, verdict: Verdict) -> Markup:
    """Base, uniform, random (each, and mean ± sd) and found side by side; empty columns are left out."""
    columns: list[tuple[str, Figure]] = [
        ("Perplexity", lambda r: r.perplexity),
        ("NLL, nats/token", lambda r: r.nll),
        ("Calibration loss", lambda r: r.loss),
        (proxy_label(run.proxy), lambda r: r.score),
    ]
    columns = [(name, get) for name, get in columns if any(get(row) is not None for row in run.comparison)]
    base = run.compared("base")
    base_params = base.params if base and base.params else run.base_params
    chance = random_rows(run.comparison)
    rows: list[tuple[list[str | Markup], str]] = []
    for row in run.comparison:
        figures = [decimal(get(row)) for _, get in columns]
        badge = el("span", "best", class_="badge") if row is verdict.winner else None
        name = join(el("span", row.name, class_=f"dot-label {_kind(row)}"), badge)
        size = [_params(row.params), _share(row.params, base_params)]
        rows.append(([name, *figures[:1], *size, *figures[1:]], _kind(row)))
        if len(chance) > 1 and row is chance[-1]:
            mean = spread(chance, lambda r: r.params)
            figures = [str(spread(chance, get) or MISSING) for _, get in columns]
            total = round(mean.mean) if mean else None
            size = [_params(total), _share(total, base_params)]
            rows.append(([random_label(chance), *figures[:1], *size, *figures[1:]], "mean"))
    names = [name for name, _ in columns]
    return table(["Model", *names[:1], "Parameters", "of base", *names[1:]], rows, "numbers first-left")


def _kind(row: Compared) -> str:
    return "random" if row.name.startswith("random") else row.name if row.name in ("base", "uniform", "found") else ""


def _params(value: int | None) -> str:
    return MISSING if value is None else f"{value:,}"


def _share(value: int | None, base: int | None) -> str:
    return percent(value / base) if value and base else MISSING


def candidates_table(run: RunData, top: int = 10) -> Markup:
    """The best candidates with their architecture as two rows of small bars."""
    best = heapq.nlargest(top, run.scored, key=lambda c: c.score or 0.0)
    keys = [key for key in NAMES if key in run.base_units]
    has_loss = any(c.loss is not None for c in best)
    head = ["#", proxy_label(run.proxy), "Architecture (layer 0 left)", *(["Loss"] if has_loss else [])]
    rows: list[tuple[list[str | Markup], str]] = []
    for place, c in enumerate(best, start=1):
        shapes = join(*(_spark(list(retention(c.architecture, k, run.base_units[k])), k) for k in keys))
        loss = [decimal(c.loss)] if has_loss else []
        row: list[str | Markup] = [str(place), decimal(c.score), shapes, *loss, _params(c.params)]
        mark = "found" if run.best is not None and c.architecture == run.best.architecture else ""
        rows.append(([*row, str(c.generation), duration(c.seconds), el("code", c.id)], mark))
    return table([*head, "Parameters", "Generation", "Time", "Candidate"], rows, "numbers first-left sparks")


def _spark(ratios: list[float], key: str) -> Markup:
    """A bar per layer; a skipped one is a small mark at the bottom."""
    step = 120 / max(len(ratios), 1)
    bars = [
        rect(i * step, 14 - 14 * r, max(step - 1, 0.8), 14 * r, f"fill {key}")
        if r > 0
        else rect(i * step, 12.5, max(step - 1, 0.8), 1.5, "gone")
        for i, r in enumerate(ratios)
        if r == r
    ]
    tip = f"{NAMES[key]}: " + ", ".join("–" if r != r else percent(r, 0) for r in ratios)
    return el("svg", el("title", tip), *bars, viewBox="0 0 120 14", class_="spark", role="img", aria_label=tip)


def failures_table(run: RunData) -> Markup:
    """How many candidates failed, and why."""
    rows = [([reason, f"{number:,}"], "") for reason, number in run.failures]
    total = sum(number for _, number in run.failures)
    share = percent(total / len(run.candidates))
    lead = f"{plural(total, 'candidate')} of {len(run.candidates):,} got no score ({share})."
    return join(el("p", lead, class_="lead"), table(["Reason", "Candidates"], rows, "numbers first-left"))


def settings_table(values: Mapping[str, Any]) -> Markup:
    """Keys and values, nested keys joined by dots."""
    pairs = [el("div", el("dt", key), el("dd", value if value else MISSING)) for key, value in flatten(values)]
    return el("dl", *pairs, class_="settings")


def settings_cards(groups: Mapping[str, Any]) -> Markup:
    """A card per group of settings, under its name; what is empty, or no group, is left out."""
    return join(
        *(
            el("div", el("h3", name), settings_table(values), class_="card")
            for name, values in groups.items()
            if isinstance(values, Mapping) and values
        )
    )


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, value as text) of nested mappings; lists on one line, nothing as –."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from flatten(value, f"{name}.")
        elif value is None:
            yield name, MISSING
        elif isinstance(value, list | tuple):
            yield name, ", ".join(map(str, value))
        elif isinstance(value, bool):
            yield name, "yes" if value else "no"
        else:
            yield name, str(value)
