"""The page's sections on what came after the search: compensation, recovery, evaluation, speed."""

import math
from collections.abc import Sequence

from tracenas.reporting.charts.svg import WIDE, Frame, circle, log_ticks, polyline, tick_label, ticks
from tracenas.reporting.data.run import Compared, RunData
from tracenas.reporting.data.stages import Recovery, Stages
from tracenas.reporting.formats import count, decimal, signed_percent
from tracenas.reporting.pages.markup import Markup, el, join
from tracenas.reporting.pages.page import Section, figure, section_head
from tracenas.reporting.pages.stage_tables import (
    StageTable,
    bench_table,
    compensation_facts,
    evaluation_table,
    recovery_table,
)
from tracenas.reporting.pages.tables import table

__all__ = ["progress_card", "progress_chart", "sections", "training_charts"]

KINDS = ("found", "uniform", "random", "other")


def sections(stages: Stages) -> list[Section]:
    """(anchor, name, content) of every stage that left something."""
    return [
        ("compensation", "Compensation", _compensation(stages)),
        ("recovery", "Recovery", _recovery(stages.recoveries)),
        ("evaluation", "Evaluation", _tables("Evaluation", [evaluation_table(e) for e in stages.evaluations])),
        ("speed", "Speed", _tables("Speed and memory", [bench_table(b) for b in stages.benches])),
    ]


def _tables(name: str, tables: Sequence[StageTable]) -> Markup | None:
    """A card per result file; its notes below the table."""
    if not tables:
        return None
    parts = []
    for title, columns, rows, notes in tables:
        caption = el("h3", title, class_="stack") if len(tables) > 1 else None
        body = table(columns, [(row, "") for row in rows], "numbers first-left")
        below = el("p", "; ".join(notes) + ".", class_="table-note") if notes else None
        parts.append(join(caption, el("div", body, below, class_="card flush")))
    return join(el("h2", name), *parts)


# --- compensation ---------------------------------------------------------------------------------


def _compensation(stages: Stages) -> Markup | None:
    made, compared = stages.compensation, _compared(stages)
    if not made:
        lead = "The checkpoint is the plain cut: no refit of its output projections is better on held-out text."
        return join(section_head("Compensation", lead), compared) if compared else None
    lead = "Output projections refitted by least squares to what the base's sub-blocks give; no training. "
    scored = (stages.scored.get("realisation"), stages.scored.get("ridge"))
    another = "" if scored == (made.get("method"), made.get("ridge")) else ", another one than was scored"
    lead += f"The checkpoint is this model{another}."
    before, after = made.get("plain_loss"), made.get("loss")
    if isinstance(before, float) and isinstance(after, float):
        lead += f" Its calibration loss is {'lower' if after < before else 'no lower'} than without the refit."
    pairs = compensation_facts(made)
    facts = el("dl", *(el("div", el("dt", k), el("dd", v)) for k, v in pairs), class_="settings one")
    cards = [el("div", el("h3", "The refit"), facts, class_="card"), *([compared] if compared else [])]
    trials = made.get("ridge_trials")
    if isinstance(trials, dict) and trials:
        chosen = f"{made.get('ridge', math.nan):g}"
        rows = [([ridge, decimal(loss)], "found" if ridge == chosen else "") for ridge, loss in trials.items()]
        tried = table(["Ridge, relative", "Loss on held-out sequences"], rows, "numbers first-left")
        cards.append(el("div", el("h3", "Strengths tried"), tried, class_="card"))
    return join(section_head("Compensation", lead), el("div", *cards, class_="split"))


def _compared(stages: Stages) -> Markup | None:
    """Held-out losses of the realisations that were compared, the written one marked."""
    losses, written = stages.choice.get("losses"), stages.choice.get("written")
    if not isinstance(losses, dict) or not losses:
        return None
    rows = [([name, decimal(loss)], "found" if name == written else "") for name, loss in losses.items()]
    compared = table(["Realisation", "Loss on held-out text"], rows, "numbers first-left")
    return el("div", el("h3", "Which one is written"), compared, class_="card")


def progress_card(run: RunData) -> Markup | None:
    """What the architectures came to after they were scored, as a picture and in numbers."""
    rows = [row for row in run.comparison if row.later and row.perplexity is not None]
    if not rows:
        return None
    names = list(dict.fromkeys(stage for row in rows for stage, _ in row.later))
    head = ["Model", "as scored", *names]
    body = []
    for row in rows:
        later = dict(row.later)
        body.append(([row.name, decimal(row.perplexity), *(decimal(later.get(n)) for n in names)], ""))
    chart = progress_chart(rows, run.compared("base"))
    picture = figure("Perplexity, stage by stage", "The same text and windows throughout.", chart)
    numbers = el("div", table(head, body, "numbers first-left"), class_="card")
    return el("div", picture, numbers, class_="split stages")


def progress_chart(rows: Sequence[Compared], base: Compared | None) -> Markup:
    """Perplexity of the architectures after every stage; the base's as a level line."""
    names = ["as scored", *dict.fromkeys(stage for row in rows for stage, _ in row.later)]
    lines = [(row, [(0, row.perplexity), *((names.index(s), p) for s, p in row.later)]) for row in rows]
    known = [(row, [(i, p) for i, p in line if p is not None and p > 0]) for row, line in lines]
    level = base.perplexity if base is not None and base.perplexity else None
    values = [p for _, line in known for _, p in line] + ([level] if level else [])
    low, high = min(values), max(values)
    pad = 0.08 * (high - low) or 0.05 * high
    log = high / low > WIDE
    shown = (low / 1.15, high * 1.15) if log else (low - pad, high + pad)
    frame = Frame((-0.25, len(names) - 0.75), shown, left=76 if log else 56, log_y=log)
    vertical = frame.y_axis("perplexity (log scale)", *log_ticks(*shown)) if log else None
    at = list(range(len(names)))
    parts = [vertical or frame.y_axis("perplexity", ticks(*shown)), frame.x_axis("", [float(i) for i in at], names)]
    if level:
        parts.append(polyline([(frame.left, frame.y(level)), (frame.width - frame.right, frame.y(level))], "base-line"))
    for row, line in known:
        kind = _kind(row.name)
        parts.append(polyline([(frame.x(i), frame.y(p)) for i, p in line], f"line {kind}"))
        tips = [(i, p, f"{row.name}, {names[i]}: perplexity {decimal(p)}") for i, p in line]
        parts += [circle(frame.x(i), frame.y(p), 4.5, f"point {kind}", tip=tip) for i, p, tip in tips]
    legend = _legend([row.name for row, _ in known], base is not None and bool(level))
    return join(frame.svg("Perplexity after every stage", *parts), legend)


def _kind(name: str) -> str:
    return next((kind for kind in KINDS if name.startswith(kind)), "other")


def _legend(names: Sequence[str], base: bool = False) -> Markup:
    keys = [el("span", el("i", class_=f"swatch-line {_kind(name)}"), name, class_="key") for name in names]
    if base:
        keys.append(el("span", el("i", class_="swatch-base"), "base", class_="key"))
    return el("div", *keys, class_="legend")


# --- recovery -------------------------------------------------------------------------------------


def _recovery(recoveries: Sequence[Recovery]) -> Markup | None:
    if not recoveries:
        return None
    _, columns, rows, notes = recovery_table(recoveries)
    best = recoveries[0].result
    before, after = best.get("perplexity_before"), best.get("perplexity")
    lead = ""
    if isinstance(before, float) and isinstance(after, float):
        change = signed_percent(after / before - 1)
        lead = f"{recoveries[0].name}: perplexity {decimal(before)} to {decimal(after)} ({change}) "
        lead += f"with {count(best.get('tokens'))} tokens."
    marked = [(row, "found" if row[0] == "found" and len(rows) > 1 else "") for row in rows]
    below = el("p", "; ".join(notes) + ".", class_="table-note") if notes else None
    card = el("div", table(columns, marked, "numbers first-left"), below, class_="card flush")
    return join(section_head("Recovery", lead), training_charts(recoveries), card)


def training_charts(recoveries: Sequence[Recovery]) -> Markup | None:
    """Training loss, validation loss and held-out perplexity by step, a line per recovery."""
    figures = []
    for key, name, label in (
        ("loss", "Training loss", "loss, nats per token"),
        ("validation_nll", "Validation loss, which chooses", "loss, nats per token"),
        ("perplexity", "Held-out perplexity, which is reported", "perplexity"),
    ):
        series = [(one.name, one.series(key)) for one in recoveries]
        drawn = [(who, points) for who, points in series if len(points) > 1]
        if drawn:
            legend = _legend([who for who, _ in drawn]) if len(recoveries) > 1 else None
            figures.append(figure(name, _last(drawn[0]), _steps_chart(drawn, name, label), legend))
    return el("div", *figures, class_="figures stages") if figures else None


def _last(series: tuple[str, list[tuple[int, float]]]) -> str:
    name, points = series
    (first, start), (last, end) = points[0], points[-1]
    return f"{name}: {decimal(start)} at step {first:,}, {decimal(end)} at step {last:,}."


def _steps_chart(series: Sequence[tuple[str, list[tuple[int, float]]]], name: str, label: str) -> Markup:
    values = [v for _, points in series for _, v in points]
    low, high = min(values), max(values)
    log = low > 0 and high / low > 20
    last = max(step for _, points in series for step, _ in points)
    if log:
        margin = (high / low) ** 0.06
        low, high = low / margin, high * margin
        at = [10**v for v in ticks(math.log10(low), math.log10(high))]
    else:
        pad = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
        low, high = low - pad, high + pad
        at = ticks(low, high)
    frame = Frame((0, last), (low, high), log_y=log)
    marks = [decimal(v, 2) for v in at] if log else None
    whole = ticks(0, last, whole=True)
    parts = [frame.y_axis(f"{label}{' (log scale)' if log else ''}", at, marks)]
    parts.append(frame.x_axis("step", whole, [tick_label(v, whole) for v in whole]))
    for who, points in series:
        kind = _kind(who)
        line = [(frame.x(s), frame.y(v)) for s, v in points]
        parts.append(polyline(line, f"line {kind}"))
        if len(points) <= 60:
            tips = [f"{who}, step {s:,}: {decimal(v)}" for s, v in points]
            parts += [circle(x, y, 2.6, f"point {kind}", tip=t) for (x, y), t in zip(line, tips, strict=True)]
    return frame.svg(f"{name} by step", *parts)
