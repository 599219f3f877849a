"""A whole search against the published procedure, generation by generation in one run.

    python benchmarks/search.py [--population 6 --elites 2 --iterations 10] [--tokens 512] [--out FILE]

Scaled-down Table 5 (a third of the population are elites) on the random 110M Llama of `candidate.py`, uniform
initial population, 40 % of the block parameters' widths as budget. Both sides consider the same candidates: the
published procedure masks weights, runs adapters and evaluates the elites again in every generation; ours slices,
takes traces and evaluates nothing twice. Everything outside evaluations is timed, too.
"""

import argparse
import time
from dataclasses import replace
from typing import Any

import torch
from candidate import Sides
from machine import facts, publish

from tracenas.space.constraints import Budget
from tracenas.strategies import STRATEGIES, SearchSettings


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of both sides, and what they considered and evaluated."""
    sides = Sides.of(1, args.tokens, layers=args.layers)
    free = sides.space()
    limit = free.parameters(free.build([[5, 832]] * args.layers))
    space = replace(free, budget=Budget(limit), min_depth=args.layers // 2)
    sizes = {"population": args.population, "elites": args.elites, "iterations": args.iterations}
    strategy = STRATEGIES.get("evolution")(space, SearchSettings(**sizes, init="uniform", seed=0))

    started = time.perf_counter()
    evaluator = sides.evaluator(space)
    ours, inside = time.perf_counter() - started, 0.0
    started = time.perf_counter()
    published = sides.published()
    theirs = time.perf_counter() - started
    evaluated, considered = 0, 0
    started = time.perf_counter()
    while (batch := strategy.ask()) is not None:
        candidates = [p.candidate for p in batch.proposals if p.feasible]
        carried = list(strategy.elites)
        clock = time.perf_counter()
        scores = {c.id: s for c, s in zip(candidates, evaluator(candidates), strict=True)}
        inside += time.perf_counter() - clock
        strategy.tell(batch, [scores[p.candidate.id].score if p.feasible else float("-inf") for p in batch.proposals])
        ours += time.perf_counter() - started
        clock = time.perf_counter()
        for arch in [*carried, *candidates]:
            published.score(arch)
        theirs += time.perf_counter() - clock
        evaluated += len(candidates)
        considered += len(carried) + len(candidates)
        started = time.perf_counter()
    return {
        "candidates considered": considered,
        "evaluated by us": evaluated,
        "seconds": {"ours": round(ours, 2), "published": round(theirs, 2)},
        "published / ours": round(theirs / ours, 3),
        "of that, from slicing": round((theirs / considered) / (inside / evaluated), 3),
        "of that, from no repeated evaluations": round(considered / evaluated, 3),
        "outside evaluations, share of our time": round(1 - inside / ours, 4),
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--population", type=int, default=6)
    parser.add_argument("--elites", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    publish({"benchmark": "search", "machine": facts(), "settings": vars(args), "result": compare(args)}, args.out)


if __name__ == "__main__":
    main()
