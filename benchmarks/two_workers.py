"""Two workers on two cores beside their ceiling: two independent processes that score the same candidates at once.

    python benchmarks/two_workers.py RUN [--out FILE]

RUN is a finished search of one process and one thread. Its candidates are scored again three times, from the first ask
to the last journal line: by two independent processes at once, each of which has a session of its own and scores all of
them (the ceiling of two workers is half of their mean time), by two workers, and by two Ray actors. Seconds begin once
whoever scores has answered a first task; `start` is what that took. The journals are compared with that of RUN, but for
times.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import facts, publish

from tracenas.cluster.joining import joined
from tracenas.commands.search.conclusion import Searched
from tracenas.commands.search.settings import strategy_settings
from tracenas.config import SearchConfig
from tracenas.journal import Journal
from tracenas.models.checkpoints.source import open_source
from tracenas.pipeline.budgets import resolve_budgets
from tracenas.pipeline.distributed import actor_pool
from tracenas.pipeline.estimate import forward_only
from tracenas.pipeline.opening import open_session
from tracenas.pipeline.resume import resolved_settings
from tracenas.pipeline.run_directory import JOURNAL
from tracenas.pipeline.scoring import by_blocks, make_evaluator, make_racing
from tracenas.pipeline.session import Session
from tracenas.pipeline.starts import run_starts
from tracenas.proxies.combination import choose
from tracenas.scoring.pooled import PooledScorer, local_pool, serving
from tracenas.scoring.travelling import CandidateScorer
from tracenas.strategies import run_search
from tracenas.worker_pool import TaskPool

_WORKERS = 2


@dataclass
class Reopened:
    """A finished search, ready to be made again."""

    config: SearchConfig
    session: Session
    scorer: CandidateScorer
    searched: Searched

    @classmethod
    def of(cls, run: Path) -> "Reopened":
        """That of a run directory, which is only read."""
        settings = {k: v for k, v in resolved_settings(run, SearchConfig).items() if k in SearchConfig.model_fields}
        config = SearchConfig(**{**settings, "out": run, "workers": _WORKERS})
        target = resolve_budgets(open_source(config.model), config, run)
        half = forward_only(choose(config.proxy).needs)
        session = open_session(target, config, data=config.data, run=run, hold_out=True, half=half)
        starts = run_starts(session, config)
        evaluator = make_evaluator(session, config.proxy, config.trace_rank)
        scorer = make_racing(evaluator, config.race, strategy_settings(config).elites) or evaluator
        return cls(config, session, scorer, Searched.of(session, starts, (), evaluator.base_loss))

    def searched_by(self, scorer: Any) -> dict[str, Any]:
        """What the search takes by a scorer, what evaluations took in it, and its journal, but for times."""
        with tempfile.TemporaryDirectory() as directory:
            journal, told = Journal(Path(directory) / JOURNAL), scorer.on_generation
            strategy, facts_ = self.searched.strategy(self.config), {"bos": self.searched.bos}
            started = time.perf_counter()
            run_search(strategy, scorer, journal, on_generation=told, facts=facts_)
            seconds, records = time.perf_counter() - started, journal.read()
            evaluated = sum(record["seconds"] for record in records)
            return {"seconds": seconds, "evaluations": evaluated, "journal": without_times(records)}


def without_times(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Journal lines as they are compared."""
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


def alone(run: Path) -> None:
    """One of the independent processes: ready, told to go, and what it found."""
    again = Reopened.of(run)
    scorer = by_blocks(again.session, again.scorer)
    scorer.score(again.session.space.base)
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(again.searched_by(scorer)), flush=True)


def independent(run: Path) -> list[dict[str, Any]]:
    """What two of them say that score at once."""
    argv = [sys.executable, __file__, str(run), "--alone"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(argv, **pipes) for _ in range(_WORKERS)]  # type: ignore[call-overload]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    return [json.loads(process.communicate()[0]) for process in processes]


@contextmanager
def processes(again: Reopened) -> Iterator[TaskPool]:
    """Workers of this machine."""
    with local_pool(again.scorer, _WORKERS, again.session.threads) as pool:
        yield pool


@contextmanager
def actors(again: Reopened) -> Iterator[TaskPool]:
    """Those of a cluster of this machine."""
    target = f"{serving.__module__}:{serving.__name__}"
    with joined("auto") as cluster, actor_pool(cluster, again.session, again.scorer, target, again.config) as pool:
        yield pool


def by_workers(again: Reopened, opened: Any) -> dict[str, Any]:
    """What the search takes by a pool's workers."""
    started = time.perf_counter()
    with opened(again) as pool:
        scorer: Any = PooledScorer(again.scorer, pool)
        base = again.session.space.base
        list(scorer([base] * _WORKERS))
        start = time.perf_counter() - started
        found = again.searched_by(scorer)
    return {**found, "start": start}


def compared(found: Mapping[str, Any], ceiling: float, journal: list[dict[str, Any]]) -> dict[str, Any]:
    """A pool beside the ceiling."""
    return {
        "seconds": round(found["seconds"], 2),
        "start, seconds": round(found["start"], 2),
        "share of the ceiling": round(ceiling / found["seconds"], 3),
        "workers evaluate, share of the time": round(found["evaluations"] / found["seconds"] / _WORKERS, 3),
        "evaluations, seconds": round(found["evaluations"], 2),
        "same journal": found["journal"] == journal,
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out")
    args = parser.parse_args()
    if args.alone:
        alone(args.run)
        return
    journal = without_times(Journal(args.run / JOURNAL).read())
    both = independent(args.run)
    ceiling = statistics.fmean(one["seconds"] for one in both) / _WORKERS
    again = Reopened.of(args.run)
    settings = ("samples", "seq_len", "population", "elites", "dtype", "race", "params")
    result = {
        "benchmark": "two_workers",
        "model": Path(again.config.model).name,
        "machine": facts(),
        "settings": {key: getattr(again.config, key) for key in settings},
        "candidates": len(journal),
        "two independent processes, seconds": [round(one["seconds"], 2) for one in both],
        "evaluations, seconds": [round(one["evaluations"], 2) for one in both],
        "the same journal": [one["journal"] == journal for one in both],
        "ceiling, seconds": round(ceiling, 2),
        "workers": compared(by_workers(again, processes), ceiling, journal),
        "actors": compared(by_workers(again, actors), ceiling, journal),
    }
    publish(result, args.out)


if __name__ == "__main__":
    main()
