"""What wider generations cost in quality: the same number of candidates in fewer, larger generations.

    python benchmarks/wide_generations.py MODEL --data TEXT [--children 8,32,128] [--evaluations 204] [--seeds 3]

Wide generations keep many workers busy, and learn less often: within one, nothing is known of its scores, and the bar
of a race is that of its beginning. Per seed, which moves calibration and search, all widths search on the same text;
`worse by` is the score of the narrowest less that of a width, nats per token, its mean and standard deviation over
seeds. `tokens` is what candidates were run on, in the narrowest's (races stop fewer).
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from cells import model_name, searched
from machine import facts, publish

from tracenas.rundir import read_json

_ELITES = 4


def found(args: argparse.Namespace, children: int, seed: int, home: Path) -> dict[str, Any]:
    """One search."""
    settings = {
        "params": args.params,
        "samples": args.samples,
        "seq_len": args.seq_len,
        "population": children + _ELITES,
        "elites": _ELITES,
        "iterations": args.evaluations,
        "evaluations": args.evaluations,
        "patience": 0,
        "threads": 1,
        "seed": seed,
    }
    run = searched(args.model, home / f"{children}-{seed}", data=args.data, **settings)
    summary = read_json(run / "summary.json")
    return {key: summary[key] for key in ("score", "evaluations", "measured_tokens", "stopped")}


def compared(runs: list[dict[str, Any]], narrowest: list[dict[str, Any]]) -> dict[str, Any]:
    """A width beside the narrowest, seed by seed."""
    worse = [base["score"] - run["score"] for run, base in zip(runs, narrowest, strict=True)]
    tokens = [run["measured_tokens"] / base["measured_tokens"] for run, base in zip(runs, narrowest, strict=True)]
    return {
        "scores": [round(run["score"], 4) for run in runs],
        "worse by": round(statistics.fmean(worse), 4),
        "standard deviation": round(statistics.stdev(worse), 4) if len(worse) > 1 else None,
        "tokens": round(statistics.fmean(tokens), 3),
        "stopped": [run["stopped"] for run in runs],
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--params", default="60%")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--seq-len", type=int, default=128)
    parser.add_argument("--children", default="8,32,128")
    parser.add_argument("--evaluations", type=int, default=204)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--keep", type=Path, help="directory for the runs, which go on there; default: one that is removed"
    )
    parser.add_argument("--out")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        home = args.keep or Path(directory)
        widths = [int(width) for width in args.children.split(",")]
        runs = {width: [found(args, width, seed, home) for seed in range(args.seeds)] for width in widths}
    settings = {key: getattr(args, key) for key in ("params", "samples", "seq_len", "evaluations", "seeds")}
    result = {str(width): compared(runs[width], runs[widths[0]]) for width in widths}
    shown = {"model": model_name(args.model), "elites": _ELITES, **settings}
    publish({"benchmark": "wide_generations", **shown, "machine": facts(), "by children": result}, args.out)


if __name__ == "__main__":
    main()
