"""What a metric search teaches: its front, its operators, and what goes along with quality (Pruner-Zero §4)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from tracenas.symbolic.tree import ARITY, VARIABLES, Expression

__all__ = ["Usage", "correlations", "findings", "front", "simplest", "spearman", "usage"]


def front(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Records that no other beats in both loss and complexity (`params`), simplest first."""
    best: list[Mapping[str, Any]] = []
    scored = [r for r in records if r["score"] is not None]
    for record in sorted(scored, key=lambda r: (r["params"], -r["score"])):
        if not best or record["score"] > best[-1]["score"]:
            best.append(record)
    return best


def simplest(records: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The record with the highest score and, of several, the fewest nodes; None where none has a score."""
    scored = [r for r in records if r["score"] is not None]
    return min(scored, key=lambda r: (-r["score"], r["params"]), default=None)


def findings(records: Sequence[Mapping[str, Any]], published: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a journal says of its metrics, as summary.json holds it.

    Args:
        published: `name, metric, params, loss, lost` of the known metrics, measured in the same way.
    """
    scored = [r for r in records if r["score"] is not None]
    best = simplest(records)
    loss = None if best is None else float(best["loss"])
    return {
        "metric": None if best is None else best["arch"]["metric"],
        "loss": loss,
        "perplexity": None if loss is None else math.exp(min(loss, 700)),
        "complexity": None if best is None else best["params"],
        "evaluations": sum(r["status"] != "infeasible" for r in records),
        "failed": sum(r["status"] == "failed" for r in records),
        "seconds": sum(float(r["seconds"]) for r in records),
        "known": list(published),
        "front": [
            {"metric": r["arch"]["metric"], "complexity": r["params"], "loss": r["loss"]} for r in front(records)
        ],
        "usage": [u.to_json() for u in usage([(Expression.from_json(r["arch"]), float(r["loss"])) for r in scored])],
        "correlation": correlations([*scored, *({**k, "params": k["params"] or 0} for k in published)]),
    }


@dataclass(frozen=True)
class Usage:
    """How often a primitive or variable stands in metrics, and how these do.

    Args:
        share: of all scored metrics, the share that uses it.
        share_best: the same among the best quarter.
        loss_with, loss_without: median loss of the metrics that use it, and that do not; None where there are none.
    """

    name: str
    share: float
    share_best: float
    loss_with: float | None
    loss_without: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def usage(metrics: Sequence[tuple[Expression, float]]) -> list[Usage]:
    """Operator and variable frequencies over (expression, loss) pairs, most frequent among the best first."""
    if not metrics:
        return []
    ranked = sorted(metrics, key=lambda pair: pair[1])
    names = [{e.name for _, e in expression.walk()} for expression, _ in ranked]
    losses = np.array([loss for _, loss in ranked], dtype=np.float64)
    quarter = max(1, len(ranked) // 4)
    out = []
    for name in (*VARIABLES, *ARITY):
        has = np.array([name in used for used in names])
        if has.any():
            out.append(
                Usage(
                    name,
                    float(has.mean()),
                    float(has[:quarter].mean()),
                    float(np.median(losses[has])),
                    float(np.median(losses[~has])) if not has.all() else None,
                )
            )
    return sorted(out, key=lambda u: (-u.share_best, -u.share, u.name))


def spearman(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Rank correlation with average ranks for ties; None where one side is constant or there are fewer than 3."""
    if len(x) < 3 or len(set(x)) == 1 or len(set(y)) == 1:
        return None
    return float(stats.spearmanr(x, y).statistic)


def correlations(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Spearman correlation of every figure under a record's `lost`, and of its complexity, with its loss.

    Records without `lost` or loss (failed ones) are left out; a figure that a record lacks, for that figure.
    """
    usable = [r for r in records if r.get("loss") is not None and r.get("lost")]
    names = list(dict.fromkeys(name for r in usable for name in r["lost"]))
    pairs = {name: [(r["lost"][name], r["loss"]) for r in usable if r["lost"].get(name) is not None] for name in names}
    pairs["complexity"] = [(r["params"], r["loss"]) for r in usable]
    return {
        name: {"spearman": spearman([p for p, _ in rows], [q for _, q in rows]), "metrics": len(rows)}
        for name, rows in pairs.items()
        if rows
    }
