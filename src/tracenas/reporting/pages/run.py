"""The page of a search or a run: no library, no external file, readable without JavaScript and on paper."""

import heapq
import math
import shlex
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tracenas.formats import MISSING, decimal, grouped, percent, perplexity
from tracenas.reporting.charts import run as charts
from tracenas.reporting.charts import sensitivity as costs
from tracenas.reporting.charts.drawing import architecture_drawing, sparks
from tracenas.reporting.charts.dynamics import GenerationFigures, generations
from tracenas.reporting.charts.front import front_pictures, hypervolume_chart
from tracenas.reporting.charts.heat import heat_scale
from tracenas.reporting.charts.quality import quality_chart
from tracenas.reporting.charts.stages import checkpoint_charts, progress_chart, training_charts
from tracenas.reporting.data.front import FrontData, Member
from tracenas.reporting.data.run import Compared, JournalCandidate, RunData
from tracenas.reporting.data.stages import Stages
from tracenas.reporting.labels import (
    NAMES,
    UNIT_NAMES,
    capitalised,
    cost_name,
    model_kind,
    proxy_label,
    source_label,
    spent,
    start_label,
)
from tracenas.reporting.pages.page import render
from tracenas.reporting.stage_tables import bench_table, checkpoints_table, evaluation_table, recovery_table
from tracenas.reporting.verdict import Verdict, random_label, random_rows, run_verdict, spread

__all__ = ["run_page"]

TOP = 10
"""Candidates in the table of the best."""


def run_page(run: RunData) -> str:
    """The page as text."""
    history = generations(run)
    verdict, compared = run_verdict(run), _compared(run)
    stages = Stages.read(run.path)
    best = heapq.nlargest(TOP, run.scored, key=lambda c: c.score or 0.0)
    return render(
        "run.html",
        run=run,
        verdict=verdict,
        stages=stages,
        base_score=_base_score(run),
        kept_shares=_kept_shares(run),
        measured_on=_measured_on(run),
        compared=_comparison_table(run, compared, verdict),
        perplexity_chart=_perplexity_chart(run, verdict),
        progress=_progress(run),
        drawing=architecture_drawing(run, run.best) if run.best else None,
        sensitivity=_sensitivity(run),
        front=_front(run),
        checkpoints=checkpoints_table(stages) if stages.checkpoints else None,
        checkpoint_charts=checkpoint_charts(stages),
        smallest=min(stages.checkpoints[1:], key=lambda c: c.cost or 0.0, default=None),
        generations=len(history),
        charts=_search_charts(run, history),
        quality=quality_chart(run, history, compared) if history else None,
        best_candidates=[(candidate, sparks(candidate, run)) for candidate in best],
        training=training_charts(stages.recoveries),
        recovery_table=recovery_table(stages.recoveries) if stages.recoveries else None,
        evaluations=[evaluation_table(e) for e in stages.evaluations],
        benches=[bench_table(b) for b in stages.benches],
    )


def _base_score(run: RunData) -> int | None:
    """The base model's Φ, one for every sub-block; None for other scores and other blocks."""
    blocks = sum(any(u > 0 for u in units) for units in zip(*run.base_units.values(), strict=True))
    keys = len(run.base_units.keys() - {"kv_heads"})
    return blocks * keys if keys == 2 and run.proxy == "phi" else None


def _kept_shares(run: RunData) -> list[str]:
    """What the best architecture keeps in all: `75 % of heads`."""
    shares = []
    for key, units in run.base_units.items():
        if run.best is not None and key != "kv_heads":
            kept = sum(dict(layer.kept).get(key, 0) for layer in run.best.architecture.layers)
            noun = UNIT_NAMES[key].removeprefix("attention ").removeprefix("MLP ")
            shares.append(f"{percent(kept / max(sum(units), 1), 0)} of {noun}")
    return shares


def _measured_on(run: RunData) -> str:
    texts = {(row.text, row.tokens) for row in run.comparison if row.perplexity is not None and row.text}
    if len(texts) > 1:
        return "Attention: the models were not measured on the same text"
    if not texts:
        return "By the loss on the calibration text" if run.starts else "Base, uniform, random and found side by side"
    ((text, tokens),) = texts
    return f"Perplexity on {source_label(text)}" + (f" ({tokens:,} tokens)" if tokens else "")


def _compared(run: RunData) -> list[Compared]:
    """The comparison's rows, with the starts that are not in it before found; of a search, what it measured of them."""
    rows, best = list(run.comparison), run.best
    if not rows and run.starts and best is not None:
        loss = run.base_loss
        rows = [Compared("base", run.base_params, loss=loss)] * (loss is not None) + [_scored("found", best)]
    known = {row.name: row.architecture for row in rows}
    for name, start in run.starts.items():
        if start.architecture != known.get("uniform"):
            title = name if name == "uniform" and name not in known else f"start: {start_label(name)}"
            rows.append(_scored(title, start))
    return sorted(rows, key=lambda row: row.name == "found")


def _scored(name: str, one: JournalCandidate) -> Compared:
    return Compared(name, one.params, loss=one.loss, score=one.score, architecture=one.architecture)


def _comparison_table(run: RunData, compared: Sequence[Compared], verdict: Verdict) -> dict[str, Any]:
    """Base, uniform, random (each, and mean ± sd), starts and found side by side; empty columns are left out."""
    columns: list[tuple[str, Callable[[Compared], float | None]]] = [
        ("Perplexity", lambda r: r.perplexity),
        ("NLL, nats/token", lambda r: r.nll),
        ("Calibration loss", lambda r: r.loss),
        (proxy_label(run.proxy), lambda r: r.score),
    ]
    columns = [(name, get) for name, get in columns if any(get(row) is not None for row in compared)]
    base = run.compared("base")
    base_params = base.params if base and base.params else run.base_params
    chance = random_rows(run.comparison)
    rows = []

    def add(kind: str, name: str, params: int | None, figures: Sequence[str], best: bool = False) -> None:
        share = percent(params / base_params) if params and base_params else MISSING
        cells = [*figures[:1], grouped(params), share, *figures[1:]]
        rows.append({"kind": kind, "name": name, "cells": cells, "best": best})

    for row in compared:
        add(
            model_kind(row.name), row.name, row.params, [decimal(get(row)) for _, get in columns], row is verdict.winner
        )
        if len(chance) > 1 and row is chance[-1]:
            mean = spread(chance, lambda r: r.params)
            figures = [str(spread(chance, get) or MISSING) for _, get in columns]
            add("mean", random_label(chance), round(mean.mean) if mean else None, figures)
    names = [name for name, _ in columns]
    return {"columns": ["Model", *names[:1], "Parameters", "of base", *names[1:]], "rows": rows}


def _perplexity_chart(run: RunData, verdict: Verdict) -> str | None:
    measured = any(row.perplexity is not None and row.perplexity > 0 for row in run.comparison)
    return charts.perplexity_chart(run.comparison, verdict.winner) if measured else None


def _progress(run: RunData) -> dict[str, Any] | None:
    """What the architectures came to after they were scored, as a picture and in numbers."""
    rows = [row for row in run.comparison if row.later and row.perplexity is not None]
    if not rows:
        return None
    stages = list(dict.fromkeys(stage for row in rows for stage, _ in row.later))
    cells = [[row.name, *map(decimal, (row.perplexity, *map(dict(row.later).get, stages)))] for row in rows]
    chart = progress_chart(rows, stages, run.compared("base"))
    return {"chart": chart, "columns": ["Model", "as scored", *stages], "rows": cells}


def _sensitivity(run: RunData) -> dict[str, Any] | None:
    """What widths are predicted to cost, and what was predicted and measured of the loss in the end."""
    if run.best is None or not (keys := costs.cost_keys(run)):
        return None
    rows = []
    for name, suffix in (("found", ""), ("MLP only", "_mlp"), ("uniform", "_uniform")):
        predicted, measured = (run.number(f"{kind}_rise{suffix}") for kind in ("predicted", "measured"))
        if predicted is not None:
            share = MISSING if measured is None or not predicted else f"{measured / predicted:.2f}"
            rows.append([name, decimal(predicted, 3), decimal(measured, 3), share])
    return {
        "figures": [(key, costs.sensitivity_chart(run, run.best, key), heat_scale(key)) for key in keys],
        "scale": costs.cost_scale(run),
        "rows": rows,
    }


def _front(run: RunData) -> dict[str, Any] | None:
    """The front of a search of all sizes, as far as it has come: pictures, and ten points with the command of each."""
    front = FrontData.read(run.path, run.summary)
    if front is None or not (front.members or front.curves):
        return None
    places = np.linspace(0, len(front.members) - 1, min(TOP, len(front.members))).round().astype(int)
    shown = [front.members[place] for place in dict.fromkeys(places.tolist())]
    names = list(dict.fromkeys(name for member in shown for name in member.costs))
    if all(member.costs.get("active_params") == member.costs.get("params") for member in shown):
        names = [name for name in names if name != "active_params"]
    names.sort(key=lambda name: front.names.index(name) if name in front.names else len(front.names))
    figures: list[tuple[str, Callable[[Member], str]]] = [
        ("Loss", lambda m: decimal(m.loss)),
        ("Perplexity", lambda m: perplexity(m.loss)),
    ]
    if all(member.loss is None for member in shown):
        figures = [(proxy_label(run.proxy), lambda m: decimal(m.score))]
    return {
        "count": len(front.members),
        "costs": " and ".join(cost_name(name) for name in front.names),
        "pictures": list(front_pictures(run, front)),
        "hypervolume": hypervolume_chart(front) if len(front.hypervolume) > 1 else None,
        "columns": ["Point", *(name for name, _ in figures), *(capitalised(cost_name(name)) for name in names)],
        "rows": [
            [str(n), *(get(one) for _, get in figures), *(spent(name, one.costs.get(name)) for name in names)]
            for n, one in enumerate(shown, start=1)
        ],
        "commands": [[str(n), _command(run, front, one, n)] for n, one in enumerate(shown, start=1)],
    }


def _command(run: RunData, front: FrontData, member: Member, number: int) -> str:
    """What makes a member of the front a checkpoint."""
    limits = [f"--budget {name}={member.costs[name]:.15g}" for name in front.names if name in member.costs]
    file, model = f"point-{number}.json", shlex.quote(run.model)
    best = f"tracenas best {shlex.quote(str(run.path))} {' '.join(limits)} --out {file}"
    return f"{best} && tracenas prune {model} --arch {file} --out point-{number}"


def _search_charts(run: RunData, history: Sequence[GenerationFigures]) -> dict[str, Any] | None:
    if not any(g.elites for g in history):
        return None
    scores, remark = charts.score_chart(history, run.best, proxy_label(run.proxy))
    widths = [(key, charts.width_chart(history, run, key), heat_scale(key)) for key in NAMES if key in run.base_units]
    return {
        "scores": scores,
        "remark": remark,
        "widths": widths,
        "width_step": math.ceil(len(history) / charts.COLUMNS),
        "lowest": charts.lowest_ratio(history, run),
        "variance": charts.variance_chart(history),
    }
