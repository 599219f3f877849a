"""Search strategies from the same starts, by the same evaluator, at equal numbers of candidates.

    python benchmarks/strategies.py MODEL --data TEXT --eval NAME=TEXT [--eval ...] [--params 75% 60% 50%]
        [--variants table guided evolution] [--evaluations 40] [--samples 8] [--seq-len 512] [--seed 0]
        [--sensitivity TABLE] [--saliency wanda] [--dtype bf16] [--threads 1] [--windows 16] --out FILE

- `table`: guided search whose model of the score is the sensitivity table, corrected by what was measured;
- `guided`: guided search by a regression on the retention ratios alone (as it is without a table);
- `evolution`: evolution, anchored on the first start.
Every one ends with its evaluations (no patience), racing as searches have it. Of the best candidate and of the first
start: the loss on the search's own text and on the first windows of every text, not overlapping, without special
tokens, refitted as in the search; differences are paired over windows. Seconds are the processor's.
"""

import argparse
import itertools
import json
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import facts, publish

from tracenas.commands.search.settings import resolve_search, sized, strategy_settings
from tracenas.config import SearchConfig
from tracenas.errors import UserError
from tracenas.journal import Journal
from tracenas.models.checkpoints.source import open_source
from tracenas.models.functionals.loss import next_token_nll
from tracenas.pipeline.opening import open_session
from tracenas.pipeline.rises import ranked_by_table
from tracenas.pipeline.scoring import make_evaluator, make_racing
from tracenas.pipeline.sensitivity import run_table
from tracenas.pipeline.session import RankedTarget
from tracenas.pipeline.target import PruningTarget, resolve_target
from tracenas.saliency.allocation.solver import predicted_rises
from tracenas.saliency.starts import STARTS
from tracenas.space.architecture import Architecture
from tracenas.space.search_space import SearchSpace
from tracenas.strategies import STRATEGIES, SearchResult, run_search

VARIANTS = {"table": "guided", "guided": "guided", "evolution": "evolution"}
"""Strategies by name; `table` has the table."""

Losses = dict[str, list[float]]


def texts(tokenizer: Any, named: list[str], windows: int, length: int) -> dict[str, torch.Tensor]:
    """The first windows of every text, [windows, length]."""
    found = {}
    for text in named:
        name, _, path = text.partition("=")
        prose = Path(path).read_text()[: windows * length * 16]
        ids = tokenizer(prose, add_special_tokens=False)["input_ids"]
        found[name] = torch.tensor(ids[: windows * length]).view(windows, length)
    return found


def locality(space: SearchSpace, records: list[dict[str, Any]], first: int) -> dict[str, float]:
    """Over the candidates behind the first generation: how much of the nearest earlier one stays, and of the prefix.

    `unchanged`: share of the sub-blocks with the width of the earlier candidate that shares most of them; `prefix`:
    share of the blocks before the first that differs, of the earlier candidate that shares most; `known`: share of the
    sub-blocks' widths that any earlier candidate had (the memo of refits hits).
    """
    rows = [space.counts(space.validate(Architecture.from_json(r["arch"], where="journal"))) for r in records]
    flat = [np.array([k for row in counts for k in row]) for counts in rows]
    found: dict[str, list[float]] = {"unchanged": [], "prefix": [], "known": []}
    for place in range(first, len(rows)):
        found["unchanged"].append(max(float((flat[place] == flat[e]).mean()) for e in range(place)))
        same = [[a == b for a, b in zip(rows[place], rows[e], strict=True)] for e in range(place)]
        found["prefix"].append(max((s.index(False) if False in s else len(s)) / len(s) for s in same))
        found["known"].append(
            float(np.mean([any(flat[e][i] == k for e in range(place)) for i, k in enumerate(flat[place])]))
        )
    return {name: round(float(np.mean(values)), 3) for name, values in found.items()}


class Contest:
    """One choice of text: a session and its refits, for all budgets."""

    def __init__(self, args: argparse.Namespace, run: Path) -> None:
        self.source = open_source(args.model)
        asked = SearchConfig(
            model=args.model, data=args.data, params=args.params[0], out=run, seed=args.seed, dtype=args.dtype,
            threads=args.threads, evaluations=args.evaluations, samples=args.samples, seq_len=args.seq_len,
            saliency=args.saliency, sensitivity=args.sensitivity,
        )  # fmt: skip
        self.config = sized(resolve_search(asked, self.source)).model_copy(update={"patience": 0})
        self.session = open_session(
            self.target(args.params[0]),
            self.config,
            data=args.data,
            run=run,
            hold_out=True,
            sensitivity=args.sensitivity,
        )
        self.table = run_table(self.session, self.session.micro_batch, compensated=True, file=args.sensitivity)
        self.evaluator = make_evaluator(self.session, self.config.proxy, 0)
        self.texts = texts(self.session.loaded.tokenizer, args.eval, args.windows, args.seq_len)
        self.run = run

    def target(self, params: str) -> PruningTarget:
        """The model under a budget."""
        return resolve_target(self.source, self.config, params=params, tolerance=self.config.tolerance)

    def starts(self, target: PruningTarget) -> list[Architecture]:
        """What every search begins with."""
        ranked = ranked_by_table(target, self.table)
        found = []
        for name in self.config.starts:
            with suppress(UserError):  # MLPs alone may leave too much
                found.append(STARTS.get(name)(ranked, None).architecture)
        return found

    def search(self, target: PruningTarget, variant: str, seed: int) -> tuple[SearchResult[Architecture], float]:
        """A whole search, and its seconds."""
        session, settings = self.session, replace(strategy_settings(self.config), seed=seed)
        rises = predicted_rises(ranked_by_table(target, self.table)) if variant == "table" else None
        prior = replace(RankedTarget(target, session.ordering, session.importance).prior(), rises=rises)
        strategy = STRATEGIES.get(VARIANTS[variant])(target.space, settings, prior=prior, starts=self.starts(target))
        memo: Any = self.evaluator.realisation
        memo._memo.clear()
        memo.memo_used = 0
        racing = make_racing(self.evaluator, "auto", settings.elites)
        journal = Journal(self.run / f"{target.space.window[1]}-{variant}-{seed}.jsonl")
        started = time.process_time()
        result = run_search(
            strategy, racing or self.evaluator, journal, on_generation=None if racing is None else racing.on_generation
        )
        return result, time.process_time() - started

    def losses(self, arch: Architecture) -> Losses:
        """Of every window: on the search's own text and on the others."""
        rows = {"search": self.session.tokens, **self.texts}
        with self.session.supernet().realise(arch, self.evaluator.realisation) as model, torch.no_grad():
            return {
                name: [float(next_token_nll(model, row[None]).mean()) for row in windows]
                for name, windows in rows.items()
            }


def means(losses: Losses) -> dict[str, float]:
    """Mean loss per text."""
    return {name: round(float(np.mean(values)), 4) for name, values in losses.items()}


def paired(one: Losses, other: Losses) -> dict[str, list[float]]:
    """Mean difference per text with its standard error over windows."""
    out = {}
    for name in one:
        d = np.array(one[name]) - np.array(other[name])
        out[name] = [round(float(d.mean()), 4), round(float(d.std(ddof=1) / len(d) ** 0.5), 4)]
    return out


def main() -> None:
    """Every variant at every budget; a line on stdout for each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--eval", action="append", required=True)
    parser.add_argument("--params", nargs="+", default=["75%", "60%", "50%"])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--evaluations", type=int, default=40)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0, help="of the text")
    parser.add_argument("--draws", nargs="+", type=int, default=[0], help="seeds of the strategies")
    parser.add_argument("--saliency", default="wanda")
    parser.add_argument("--sensitivity", type=Path)
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--keep", type=Path, help="where journals stay; by default they are removed")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    lines: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        run = args.keep or Path(temporary)
        run.mkdir(parents=True, exist_ok=True)
        contest = Contest(args, run)
        for params in args.params:
            target = contest.target(params)
            start = contest.losses(contest.starts(target)[0])
            for draw, variant in itertools.product(args.draws, args.variants):
                result, seconds = contest.search(target, variant, draw)
                best = contest.losses(result.best)
                line = {"params": params, "variant": variant, "draw": draw, "start": means(start), "best": means(best)}
                line |= {"gain": paired(start, best), "cpu_seconds": round(seconds), "candidates": len(result.records)}
                line["found at"] = [r["id"] for r in result.records].index(result.best.id)
                lines.append(line | locality(target.space, list(result.records), contest.config.population or 12))
                print(json.dumps(lines[-1]), flush=True)
    settings = {k: v for k, v in vars(args).items() if k not in ("model", "data", "eval", "out", "keep", "sensitivity")}
    record = {"benchmark": "strategies", "model": Path(args.model).name, "machine": facts(), "settings": settings}
    publish({**record, "lines": lines}, args.out)


if __name__ == "__main__":
    main()
