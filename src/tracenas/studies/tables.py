"""From a study's records to its results: correlations, regret, agreement of targets, cost; and as Markdown tables.

A record is one architecture: `id`, `kind`, `params`, `scores` {proxy: higher is better, or None}, `reasons` {proxy:
why it has none}, `targets` {target: {"value", "by_seed", "reason", "seconds"}}.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from tracenas.formats import fixed
from tracenas.studies.correlation import correlate
from tracenas.studies.regrets import regret
from tracenas.tables import Table

__all__ = [
    "StudyTarget",
    "all_tables",
    "analyse",
    "interval",
    "markdown",
    "ranked",
    "target_label",
    "undefined",
]

Record = Mapping[str, Any]
_STREAM = 0x53545544


@dataclass(frozen=True)
class StudyTarget:
    """A measured quality.

    Args:
        name: its key in the records.
        label: for people.
        loss: whether it is a loss in nats per token, lower being better; else higher is better.
        group, steps: what recovery started from and after how many steps it is measured; empty for other targets.
    """

    name: str
    label: str
    loss: bool = True
    group: str = ""
    steps: int = 0

    def quality(self, value: float | None) -> float | None:
        """Higher is better."""
        return -value if self.loss and value is not None else value


def analyse(
    records: Sequence[Record],
    proxies: Mapping[str, float],
    targets: Sequence[StudyTarget],
    *,
    seed: int = 0,
    resamples: int = 2000,
    within_budget: bool = True,
) -> dict[str, Any]:
    """Everything that study.json says of the records.

    Correlations are of the proxy's score with the target's quality (minus the loss), so that +1 is a perfect order.
    Every correlation is bootstrapped with the same draws of architectures.

    Args:
        proxies: their names, and the seconds that each takes for one architecture.
        seed: of the bootstrap.
        within_budget: whether all architectures are of one size: only then does a first choice have a regret.
    """
    uniform = next((i for i, r in enumerate(records) if r["kind"] == "uniform"), None)
    columns = {t.name: [_value(r, t.name) for r in records] for t in targets}

    def related(x: Sequence[float | None], y: Sequence[float | None]) -> dict[str, Any]:
        return correlate(x, y, np.random.default_rng([seed, _STREAM]), resamples=resamples).to_json()

    rows = []
    for proxy, seconds in proxies.items():
        scores = [r["scores"].get(proxy) for r in records]
        by_target = {}
        for t in targets:
            entry = related(scores, [t.quality(v) for v in columns[t.name]])
            entry["rho_by_seed"] = _by_seed(records, scores, t)
            chosen = regret(scores, columns[t.name], uniform) if within_budget and t.loss else None
            entry["regret"] = None if chosen is None else chosen.to_json()
            by_target[t.name] = entry
        rows.append({"name": proxy, "seconds": seconds, **_failures(records, proxy, scores), "targets": by_target})
    pairs = [
        {
            "a": a.name,
            "b": b.name,
            "related": _comparable(a, b),
            **related(*([t.quality(v) for v in columns[t.name]] for t in (a, b))),
        }
        for a, b in combinations(targets, 2)
    ]
    for pair in pairs:
        pair["flips"], pair["comparable"] = _flips(columns[pair["a"]], columns[pair["b"]])
    return {
        "targets": [_target(records, t, columns[t.name], uniform) for t in targets],
        "proxies": rows,
        "agreement": pairs,
    }


def _value(record: Record, target: str) -> float | None:
    value = record["targets"].get(target, {}).get("value")
    return float(value) if value is not None and math.isfinite(value) else None


def _failures(records: Sequence[Record], proxy: str, scores: Sequence[float | None]) -> dict[str, Any]:
    reasons = Counter(str(r["reasons"][proxy]) for r in records if proxy in r["reasons"])
    return {
        "failed": sum(s is None for s in scores),
        "failures": [{"reason": reason, "count": count} for reason, count in reasons.most_common()],
    }


def _by_seed(records: Sequence[Record], scores: Sequence[float | None], target: StudyTarget) -> list[float | None]:
    """ρ with every single seed's measurement, where there are several."""
    counts = [len(r["targets"].get(target.name, {}).get("by_seed") or ()) for r in records]
    out = []
    for place in range(max(counts, default=0) if max(counts, default=0) > 1 else 0):
        values = [(r["targets"].get(target.name, {}).get("by_seed") or [None] * (place + 1))[place] for r in records]
        quality = [target.quality(v) for v in values]
        out.append(correlate(scores, quality, np.random.default_rng(0), resamples=0).rho.value)
    return out


def _target(records: Sequence[Record], target: StudyTarget, values: list[float | None], uniform: int | None) -> Record:
    measured = [v for v in values if v is not None]
    spreads = []
    for record in records:
        by_seed = [v for v in record["targets"].get(target.name, {}).get("by_seed") or () if v is not None]
        if len(by_seed) > 1:
            spreads.append(float(np.std(by_seed, ddof=1)))
    order = (min, max) if target.loss else (max, min)
    return {
        "name": target.name,
        "label": target.label,
        "loss": target.loss,
        "measured": len(measured),
        "failed": len(values) - len(measured),
        "best": order[0](measured) if measured else None,
        "worst": order[1](measured) if measured else None,
        "uniform": None if uniform is None else values[uniform],
        "seed_spread": float(np.mean(spreads)) if spreads else None,
    }


def _comparable(a: StudyTarget, b: StudyTarget) -> bool:
    """Whether two targets differ in one thing only: in the start, or in the steps."""
    return bool(a.group and b.group) and (a.group == b.group) != (a.steps == b.steps)


def _flips(a: Sequence[float | None], b: Sequence[float | None]) -> tuple[int, int]:
    """Pairs of architectures that two targets order differently, of the pairs that both order."""
    both = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    signs = [np.sign(p[0] - q[0]) * np.sign(p[1] - q[1]) for p, q in combinations(both, 2)]
    return sum(bool(s < 0) for s in signs), sum(bool(s != 0) for s in signs)


# --- as text --------------------------------------------------------------------------------------


def interval(estimate: Record) -> str:
    """`0.94 [0.85, 0.98]`."""
    value = fixed(estimate["value"])
    return value if estimate["low"] is None else f"{value} [{fixed(estimate['low'])}, {fixed(estimate['high'])}]"


def correlation_table(study: Record) -> Table:
    """Like TraceNAS Table 1: ρ and τ of every proxy with every target, best proxy for the main target first."""
    targets = study["targets"]
    columns = ["proxy", *(t["label"] for t in targets)]
    rows = []
    for row in ranked(study):
        cells = [row["targets"][t["name"]] for t in targets]
        rows.append((row["name"], *(f"{fixed(c['rho']['value'])} / {fixed(c['tau']['value'])}" for c in cells)))
    return Table("Spearman ρ / Kendall τ-b", tuple(columns), tuple(rows))


def main_table(study: Record) -> Table:
    """Correlation with the main target and cost per proxy."""
    main = study["main_target"]
    columns = ("proxy", "ρ [95 %]", "τ [95 %]", "failed", "s/arch.")
    rows = []
    for row in ranked(study):
        cell, spent = row["targets"][main], fixed(row["seconds"], 3)
        rows.append((row["name"], interval(cell["rho"]), interval(cell["tau"]), str(row["failed"]), spent))
    return Table(f"correlation with {target_label(study, main)}", columns, tuple(rows))


def regret_table(study: Record) -> Table | None:
    """What each proxy's first choice reached on the main target; None across sizes."""
    main = study["main_target"]
    rows = []
    with_regret = [r for r in ranked(study) if r["targets"][main]["regret"] is not None]
    for row in sorted(with_regret, key=lambda r: r["targets"][main]["regret"]["to_best"]):
        chosen = row["targets"][main]["regret"]
        figures = [fixed(chosen[k], 4) for k in ("loss", "to_best", "to_uniform")]
        ratios = [fixed(chosen[k], 3) for k in ("ratio_to_best", "ratio_to_uniform")]
        rows.append((row["name"], *figures, *ratios))
    columns = ("proxy", "first choice", "− best", "− uniform", "ppl / best", "ppl / uniform")
    title = f"regret: the first choice's {target_label(study, main)}, nats per token, and ratio of perplexities"
    return Table(title, columns, tuple(rows)) if rows else None


def target_table(study: Record) -> Table:
    """Best, worst and uniform of every target."""
    columns = ("target", "measured", "best", "uniform", "worst", "sd over seeds")
    rows = [
        (t["label"], str(t["measured"]), *(fixed(t[k], 4) for k in ("best", "uniform", "worst", "seed_spread")))
        for t in study["targets"]
    ]
    return Table("targets (losses in nats per token)", columns, tuple(rows))


def agreement_table(study: Record) -> Table:
    """Do targets agree with each other?"""
    rows = [
        (
            f"{target_label(study, p['a'])} and {target_label(study, p['b'])}",
            interval(p["rho"]),
            interval(p["tau"]),
            f"{p['flips']} of {p['comparable']}",
        )
        for p in study["agreement"]
        if p["related"]
    ]
    return Table("agreement of the targets", ("targets", "ρ", "τ", "pairs that flip"), tuple(rows))


def undefined(study: Record) -> list[str]:
    """One line per correlation that could not be computed."""
    return [
        f"{row['name']} with {target_label(study, name)}: undefined, {cell['reason']}"
        for row in study["proxies"]
        for name, cell in row["targets"].items()
        if cell["reason"] is not None
    ]


def ranked(study: Record) -> list[Record]:
    """The proxies, best ρ with the main target first, undefined ones last."""
    main = study["main_target"]

    def place(row: Record) -> tuple[float, str]:
        value = row["targets"][main]["rho"]["value"]
        return (math.inf if value is None else -value, row["name"])

    return sorted(study["proxies"], key=place)


def target_label(study: Record, target: str) -> str:
    """A target's label."""
    return next(str(t["label"]) for t in study["targets"] if t["name"] == target)


def all_tables(study: Record) -> list[Table]:
    """In the order of interest."""
    tables = [main_table(study), regret_table(study)]
    tables += [correlation_table(study)] if len(study["targets"]) > 1 else []
    agreement = agreement_table(study)
    tables += [target_table(study), agreement if agreement.rows else None]
    return [table for table in tables if table is not None]


def markdown(study: Record, heading: str = "##") -> str:
    """All tables of a study, for a documentation page."""
    notes = undefined(study)
    tables = all_tables(study)
    parts = [f"{heading} {study['title']}", study["protocol"]]
    for table in tables:
        parts += [f"**{table.title[0].upper()}{table.title[1:]}**", table.markdown()]
    return "\n\n".join([*parts, *(f"- {note}" for note in notes)]) + "\n"
