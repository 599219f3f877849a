"""Would a second proxy help? Sums of ranks with every other proxy, over all studies within a budget.

    python benchmarks/study_pairs.py --work DIR [--proxy loss_compensated] [--weights 0.1 0.2 0.3 0.5] [--out FILE]

DIR is that of `study_runs.py`. For every study the ranks of `--proxy` plus or minus a weight times the ranks of a
second one are correlated (Spearman) with the study's main target; reported are the mean and the lowest over the
studies. With 20 proxies, two signs and four weights the best of 160 is a choice made after the fact: it flatters.
"""

import argparse
import statistics
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from machine import publish
from scipy.stats import rankdata, spearmanr

from tracenas.journal import Journal
from tracenas.rundir import read_json


def ranks(work: Path) -> dict[str, tuple[dict[str, np.ndarray], np.ndarray]]:
    """Study → ranks by proxy, and the main target's quality; architectures on which a proxy failed are the worst."""
    found = {}
    for path in sorted(work.glob("*/study.json")):
        study = read_json(path)
        if not study["within_budget"]:
            continue
        records = Journal(path.parent / "journal.jsonl").read()
        names = [row["name"] for row in study["proxies"]]
        values = {n: [r["scores"][n] if r["scores"][n] is not None else -np.inf for r in records] for n in names}
        quality = np.array([-r["targets"][study["main_target"]]["value"] for r in records])
        found[path.parent.name] = ({n: rankdata(v) / len(v) for n, v in values.items()}, quality)
    return found


def judged(studies: dict[str, Any], of: Any) -> dict[str, float]:
    """Mean and lowest ρ of a score."""
    rhos = [float(spearmanr(of(by_proxy), quality)[0]) for by_proxy, quality in studies.values()]
    return {"mean": round(statistics.mean(rhos), 4), "lowest": round(min(rhos), 4)}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--proxy", default="loss_compensated")
    parser.add_argument("--weights", type=float, nargs="+", default=[0.1, 0.2, 0.3, 0.5])
    parser.add_argument("--top", type=int, default=8)
    parser.add_argument("--out")
    args = parser.parse_args()
    studies = ranks(args.work)
    names = sorted(set.intersection(*(set(by_proxy) for by_proxy, _ in studies.values())) - {args.proxy})
    rows = []
    for name, size, sign in product(names, args.weights, (1, -1)):
        weight = sign * size
        told = judged(studies, lambda r, n=name, w=weight: r[args.proxy] + w * r[n])
        rows.append({"with": name, "weight": weight, **told})
    rows.sort(key=lambda row: -row["mean"])
    alone = judged(studies, lambda r: r[args.proxy])
    publish(
        {
            "benchmark": "study_pairs",
            "studies": list(studies),
            "proxy": args.proxy,
            "alone": alone,
            "best pairs": rows[: args.top],
        },
        args.out,
    )


if __name__ == "__main__":
    main()
