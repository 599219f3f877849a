"""Does the search choose well? Held-out loss of the found, the uniform and random architectures of the same size.

    python benchmarks/chooses.py MODEL --data TEXT --eval-text TEXT [--params 60% 50%] [--seeds 0 1 2]
        [--recover STEPS] [--set KEY=VALUE …] [--out FILE]

Right after pruning, as scored; with `--recover` also after so many steps of continued pretraining, the same for all
(4 sequences of 128 tokens a step unless `--set recover.KEY=VALUE`), from the start that `--set compensate=HOW` names.
One `tracenas run` per budget and seed (the seed moves the calibration set, the search and the random rivals),
resumable: finished runs are read, an interrupted one goes on.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

from cells import over_seeds, pairs
from machine import facts, publish

import tracenas

TRAIN: dict[str, Any] = {"method": "pretrain", "seq_len": 128, "global_batch": 4, "learning_rate": 3e-4}


def rows_of(comparison: list[dict[str, Any]]) -> dict[str, float]:
    """NLL of base, uniform, the random ones' mean and best, and found."""
    by_name = {r["name"]: float(r["nll"]) for r in comparison}
    rivals = [v for k, v in by_name.items() if k.startswith("random")]
    return {
        "base": by_name["base"],
        "uniform": by_name["uniform"],
        "random, mean": statistics.mean(rivals),
        "random, best": min(rivals),
        "found": by_name["found"],
    }


def recovered_rows(recovered: list[dict[str, Any]] | None) -> dict[str, float]:
    """NLL of found, uniform and one random architecture before and after recovery."""
    return {
        f"{row['name']}, {what}": float(row[key]["nll"])
        for row in recovered or []
        for key, what in (("pruned", "compensated"), ("recovered", "recovered"))
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--eval-text", required=True)
    parser.add_argument("--params", nargs="+", default=["60%", "50%"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--proxy", default="phi")
    parser.add_argument("--recover", type=int, default=0, metavar="STEPS", help="recover the three, so many steps")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="further settings of the run")
    parser.add_argument("--work", type=Path, required=True, help="directory of the runs")
    parser.add_argument("--out")
    args = parser.parse_args()
    settings = {
        "start": "none",
        "seq_len": 256,
        "eval_windows": 128,
        "population": 20,
        "elites": 6,
        "iterations": 12,
        "random_architectures": 5,
        "compensate": "auto",
    }
    given = pairs(args.set, numbers=False)
    training = {k.removeprefix("recover."): v for k, v in given.items() if k.startswith("recover.")}
    settings |= {k: v for k, v in given.items() if not k.startswith("recover.")}
    if args.recover:
        settings |= {"recover": {**TRAIN, "max_steps": args.recover, **training}, "recover_rivals": True}
    table, raw = [], []
    for params in args.params:
        seeds = []
        for seed in args.seeds:
            out = args.work / f"{Path(args.model).name}-{args.proxy}-{params.rstrip('%')}-{seed}"
            outcome = tracenas.run(
                args.model,
                data=args.data,
                eval_text=args.eval_text,
                params=params,
                out=out,
                seed=seed,
                proxy=args.proxy,
                resume=True,
                **settings,
            )
            seeds.append({**rows_of(outcome.comparison), **recovered_rows(outcome.recovered)})
            raw.append(
                {"params": params, "seed": seed, "evaluations": outcome.search.summary["evaluations"], **seeds[-1]}
            )
        for name in seeds[0]:
            table.append({"params": params, "architecture": name, **over_seeds([s[name] for s in seeds])})
    model = Path(args.model).name
    publish(
        {
            "benchmark": "chooses",
            "model": model,
            "proxy": args.proxy,
            "machine": facts(),
            "settings": settings,
            "table": table,
            "seeds": raw,
        },
        args.out,
    )


if __name__ == "__main__":
    main()
