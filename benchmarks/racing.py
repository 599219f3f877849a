"""Racing against the plain scheme: the same search with and without, calibration tokens spent and the final choice.

    python benchmarks/racing.py MODEL --data TEXT --work DIR [--proxy loss_compensated] [--params 60%] [--seeds 0 1 2]
        [--set KEY=VALUE …] [--out FILE.json]

A stopped candidate is worse than the worst elite, so as long as no verdict is wrong both searches ask for the same
candidates and choose the same one; where they part, the losses on all sequences say who chose better.
"""

import argparse
from pathlib import Path
from typing import Any

from cells import pairs, searched
from machine import facts, publish

from tracenas.rundir import read_json


def one(args: argparse.Namespace, seed: int, race: str) -> dict[str, Any]:
    """What one search spent and chose; a finished one is read."""
    out = args.work / f"{Path(args.model).resolve().name}-{args.params.rstrip('%')}-{seed}-{race}"
    settings: dict[str, Any] = {"samples": 16, "seq_len": 256, "population": 20, "elites": 6, "iterations": 25}
    settings |= {"data": args.data, "params": args.params, "proxy": args.proxy, "race": race, "seed": seed}
    searched(args.model, out, **{**settings, **pairs(args.set)})
    summary, best = read_json(out / "summary.json"), read_json(out / "best.json")
    keys = ("evaluations", "measured_tokens", "stopped", "seconds", "calibration_tokens")
    return {**{k: summary[k] for k in keys}, "best": best["id"], "loss": best["loss"]}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--proxy", default="loss_compensated")
    parser.add_argument("--params", default="60%")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of the searches")
    parser.add_argument("--out")
    args = parser.parse_args()
    rows = []
    for seed in args.seeds:
        raced, plain = one(args, seed, "on"), one(args, seed, "off")
        rows.append(
            {
                "seed": seed,
                "tokens_over_plain": round(raced["measured_tokens"] / plain["measured_tokens"], 4),
                "seconds_over_plain": round(raced["seconds"] / plain["seconds"], 4),
                "same_choice": raced["best"] == plain["best"],
                "loss_minus_plain": raced["loss"] - plain["loss"],
                "raced": raced,
                "plain": plain,
            }
        )
    name = Path(args.model).resolve().name
    publish({"benchmark": "racing", "model": name, "proxy": args.proxy, "machine": facts(), "seeds": rows}, args.out)


if __name__ == "__main__":
    main()
