"""Two whole searches in one run: the published procedure, and the recommended proxy with racing.

    python benchmarks/whole_search.py MODEL --data TEXT --eval-text TEXT --work DIR [--params 60%] [--seeds 0 1 2]
        [--proxy auto] [--steps 50] [--samples 16 --seq-len 256] [--set KEY=VALUE …] [--search KEY=VALUE …]
        [--threads 1] [--clock cpu|wall] [--out FILE.json]

Both sides: the same evolution (the uniform architecture at the start, population, elites, generations, seed),
calibration, saliency and budget, and both start with loading the model. Published: Φ by masked weights and LoRA
adapters through autograd, the elites evaluated again in every generation. Ours: `tracenas search`, statistics for
compensation included. What both found is written from a start without and with compensation (`sequential`), and
recovered alike; held-out loss in nats per token.
With one thread and `--clock cpu` seconds are processor time: what other programs do does not enter.
"""

import argparse
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cells import over_seeds, pairs, perplexity, recovered
from machine import CLOCKS, facts, publish
from published import PublishedScorer

import tracenas
from tracenas.config import SearchConfig
from tracenas.models.checkpoints.source import open_source
from tracenas.pipeline.opening import open_session
from tracenas.pipeline.target import resolve_target
from tracenas.rundir import read_json, write_json
from tracenas.space.architecture import Architecture
from tracenas.strategies import STRATEGIES, SearchSettings

EVOLUTION: dict[str, Any] = {
    "population": 20,
    "elites": 6,
    "iterations": 12,
    "strategy": "evolution",
    "init": "importance",
}
TRAIN: dict[str, Any] = {"seq_len": 128, "global_batch": 4, "learning_rate": 3e-4, "seed": 0}
WINDOW, WINDOWS = 256, 128


def published(config: SearchConfig, clock: Callable[[], float]) -> tuple[Architecture, dict[str, Any]]:
    """The published search: best architecture, seconds, candidates and evaluations."""
    started = clock()
    source = open_source(config.model)
    target = resolve_target(source, config, params=config.params, tolerance=config.tolerance)
    session = open_session(target, config, data=config.data)
    space, blocks = target.space, target.blocks
    scorer = PublishedScorer(
        session.loaded.model, blocks, session.ordering, session.tokens, config.trace_rank, session.micro_batch
    )
    sizes = {"population": config.population, "elites": config.elites, "iterations": config.iterations}
    prior = session.prior() if config.init == "importance" else None
    uniform = space.uniform()
    settings = SearchSettings(**sizes, init=config.init, seed=config.seed)
    strategy = STRATEGIES.get("evolution")(space, settings, prior=prior, seeds=[] if uniform is None else [uniform])
    prepared, evaluations, candidates = clock() - started, 0, 0
    best: tuple[float, Architecture | None] = (-math.inf, None)
    while (batch := strategy.ask()) is not None:
        for arch in strategy.elites:
            scorer.score(arch)
        scores = [scorer.score(p.candidate) if p.feasible else -math.inf for p in batch.proposals]
        evaluations += len(strategy.elites)
        for proposal, score in zip(batch.proposals, scores, strict=True):
            evaluations += proposal.feasible
            candidates += proposal.feasible
            best = max(best, (score, proposal.candidate), key=lambda pair: pair[0])
        strategy.tell(batch, scores)
    seconds = clock() - started
    assert best[1] is not None
    facts_ = {"seconds": seconds, "before the first candidate": prepared}
    return best[1], {**facts_, "candidates": candidates, "evaluations": evaluations, "score": best[0]}


def ours(config: SearchConfig, clock: Callable[[], float], out: Path) -> tuple[Architecture, dict[str, Any]]:
    """`tracenas search` from loading to summary.json."""
    started = clock()
    given = config.model_dump(exclude_unset=True, exclude={"model", "out"})
    found = tracenas.search(config.model, out=out, **given)
    seconds, summary = clock() - started, found.summary
    told = {key: summary[key] for key in ("evaluations", "proxy", "measured_tokens", "stopped")}
    plain = summary["evaluations"] * summary["calibration_tokens"]
    return found.architecture, {"seconds": seconds, **told, "tokens over plain": told["measured_tokens"] / plain}


def quality(args: argparse.Namespace, path: Path, work: Path) -> dict[str, float]:
    """Held-out loss after pruning and after recovery, from both starts."""
    found = {}
    for start, how in (("plain", "none"), ("compensated", "sequential")):
        data = {"data": args.data, "samples": args.samples, "seq_len": args.seq_len}
        data |= {"compensate_samples": 48} if how != "none" else {}
        pruned = work / f"{path.stem}-{start}"
        if not (pruned / "config.json").is_file():
            tracenas.prune(args.model, arch=path, out=pruned, save_dtype="fp32", compensate=how, **data)
        found[f"{start}, pruned"] = perplexity(str(pruned), args.eval_text, WINDOW, WINDOWS)["nll"]
        settings = {"method": "pretrain", "data": args.data, **TRAIN, **pairs(args.set)}
        trained = recovered(str(pruned), work / "recovered", steps=args.steps, **settings)
        found[f"{start}, recovered"] = perplexity(trained, args.eval_text, WINDOW, WINDOWS)["nll"]
    return found


def one(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Both searches of a seed; finished ones are read."""
    result: dict[str, Any] = {"seed": seed}
    for side in ("published", "ours"):
        work = args.work / f"{Path(args.model).name}-{args.params.rstrip('%')}-{seed}"
        work.mkdir(parents=True, exist_ok=True)
        done = work / f"{side}.result.json"
        if not done.is_file():
            sizes = {**EVOLUTION, "samples": args.samples, "seq_len": args.seq_len, **pairs(args.search)}
            given = {"model": args.model, "data": args.data, "params": args.params, "seed": seed, **sizes}
            proxy = "phi" if side == "published" else args.proxy
            config = SearchConfig(out=work / "run", proxy=proxy, threads=args.threads, **given)
            clock = CLOCKS[args.clock]
            arch, told = published(config, clock) if side == "published" else ours(config, clock, work / "run")
            write_json(work / f"{side}.json", arch.to_json())
            write_json(done, {**told, "nll": quality(args, work / f"{side}.json", work)})
        result[side] = read_json(done)
    return result


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Ratios of the medians, the factors of it, and losses over the seeds."""
    a, b = [r["published"] for r in rows], [r["ours"] for r in rows]
    per_evaluation = [r["seconds"] / r["evaluations"] for r in a]
    median = statistics.median
    factors = {
        "no repeated evaluations": median(r["evaluations"] / r["candidates"] for r in a),
        "racing": 1 / median(r["tokens over plain"] for r in b),
    }
    total = median(r["seconds"] for r in a) / median(r["seconds"] for r in b)
    rest = (
        total / math.prod(factors.values()) * median(r["evaluations"] for r in b) / median(r["candidates"] for r in a)
    )
    losses = {
        side: {what: over_seeds([r[side]["nll"][what] for r in rows]) for what in rows[0][side]["nll"]}
        for side in ("published", "ours")
    }
    return {
        "published / ours": round(total, 2),
        "of that, from": {
            **{k: round(v, 2) for k, v in factors.items()},
            "slicing and forward only, statistics and set-up included": round(rest, 2),
        },
        "seconds per published evaluation": round(median(per_evaluation), 3),
        "held-out nats per token": losses,
    }


def _warm(model: str) -> None:
    """What is imported with the first model belongs to no side."""
    import peft  # noqa: F401

    from tracenas.models.checkpoints.loading import load

    load(open_source(model), device="cpu", dtype="fp32")


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--eval-text", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--params", default="60%")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--proxy", default="auto")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of the recovery")
    parser.add_argument("--search", nargs="*", default=[], metavar="KEY=VALUE", help="settings of the searches")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="cpu")
    parser.add_argument("--out")
    args = parser.parse_args()
    if args.clock == "cpu" and args.threads != 1:
        raise SystemExit("--clock cpu counts the seconds of all threads: use --threads 1")
    _warm(args.model)
    rows = [one(args, seed) for seed in args.seeds]
    told = {k: v for k, v in vars(args).items() if k not in ("work", "model", "data", "eval_text", "out")}
    result = {"benchmark": "whole_search", "model": Path(args.model).name, "machine": facts(), "settings": told}
    publish({**result, "result": summary(rows), "seeds": rows}, args.out)


if __name__ == "__main__":
    main()
