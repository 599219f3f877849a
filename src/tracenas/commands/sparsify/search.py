"""The search for per-sub-block shares of zeros (TraceNAS D.4): the same evolution over another genome."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tracenas.commands.sparsify.job import Job
from tracenas.config import SparsifyConfig, parse_rank
from tracenas.config.local_paths import names_same
from tracenas.errors import UserError
from tracenas.journal import Journal
from tracenas.pipeline.calibration import window_start
from tracenas.pipeline.resume import CONFIG, LEFT_OPEN, left_open, recorded_base_loss, same_model, same_settings
from tracenas.pipeline.run_directory import BEST, JOURNAL, SUMMARY, holds_result, run_directory, starting
from tracenas.pipeline.workers import with_threads
from tracenas.proxies import PROXIES
from tracenas.reporting.progress import SearchProgress, phase
from tracenas.rundir import provenance, write_json
from tracenas.scoring.evaluator import ScoringSettings
from tracenas.scoring.masked_weights import MaskedWeights, SparsityEvaluator
from tracenas.scoring.pooled import PooledScorer, local_pool
from tracenas.settings import read_settings
from tracenas.space.sparsity import Shares, SparsitySpace
from tracenas.strategies import SearchResult, SearchSettings, replayed, run_search
from tracenas.strategies.evolution import Evolution

__all__ = ["conclude_shares", "is_of_search", "search_shares", "with_run_threads"]

_NOT_RESULTS = ("out", "run", "resume", "shard_size", "save_dtype", "gradients", "workers")


def search_shares(job: Job, space: SparsitySpace) -> Shares:
    """Run or resume the search in `config.run`; its best.json can be given to `--ratios`."""
    config = job.config
    _check_proxy(config.proxy)
    run = _directory(config)
    assert config.data is not None
    samples, seq_len = job.tokens.shape
    resolved = {"samples": samples, "seq_len": seq_len, "batch": job.micro_batch, "threads": job.threads}
    with run_directory(run, "sparsify", config.resume) as begun:
        if begun:
            same_settings(run, config, _NOT_RESULTS)
        given = config.model_dump()
        with starting(run, "sparsify", {**given, **resolved, LEFT_OPEN: left_open(given, resolved)}, begun):
            with phase("base pass"):
                evaluator = _evaluator(job, space)
            same_model(run, evaluator.base_loss)
        label = "Φ" if config.proxy == "phi" else config.proxy
        with (
            _scored_by(evaluator, config, job.threads) as scorer,
            SearchProgress(config.iterations, label=label) as display,
        ):
            result = run_search(
                _strategy(config, space),
                scorer,
                Journal(run / JOURNAL),
                on_event=lambda e: display.update(
                    e.generation, e.done, e.planned - e.duplicates, e.best, None, e.duplicates
                ),
                facts={"bos": window_start(job.loaded, config.data, config.bos).carried},
            )
        _write_result(config, job.metric.name, result, evaluator.base_loss)
    return result.best


@contextmanager
def _scored_by(
    evaluator: SparsityEvaluator, config: SparsifyConfig, threads: int
) -> Iterator[SparsityEvaluator | PooledScorer[Shares]]:
    """The evaluator, or the workers that have it."""
    assert config.workers != "auto"
    if config.workers == 1:
        yield evaluator
        return
    with local_pool(evaluator, config.workers, threads) as pool:
        yield PooledScorer(evaluator, pool)


def with_run_threads(config: SparsifyConfig) -> SparsifyConfig:
    """The settings with the threads of the run that is gone on with, or of each of several workers."""
    threads = read_settings(_directory(config) / CONFIG, required=False).get("threads") if config.resume else None
    if config.threads is None and threads is not None:
        return config.model_copy(update={"threads": threads})
    return with_threads(config)


def is_of_search(config: SparsifyConfig) -> bool:
    """Whether the checkpoint directory is the one that the search was made for."""
    stored = read_settings(_directory(config) / CONFIG, required=False)
    return names_same(stored.get("out"), str(config.out))


def conclude_shares(config: SparsifyConfig, space: SparsitySpace, metric: str) -> None:
    """Make best.json and summary.json again from a whole journal, without the model, where one is missing.

    Raises:
        UserError: if the settings are others, or the journal is not whole.
    """
    run = _directory(config)
    with run_directory(run, "sparsify", True):
        same_settings(run, config, _NOT_RESULTS)
        if holds_result(run):
            return
        journal = Journal(run / JOURNAL)
        facts = {"bos": next((record.get("bos") for record in journal.read()), None)}
        result, base_loss = replayed(_strategy(config, space), journal, facts), recorded_base_loss(run)
        if result is None or base_loss is None:
            raise UserError(f"{journal.path}: candidates are missing; remove {config.out} first, which is written")
        _write_result(config, metric, result, base_loss)


def _directory(config: SparsifyConfig) -> Path:
    return config.run or config.out.with_name(config.out.name + ".search")


def _strategy(config: SparsifyConfig, space: SparsitySpace) -> Evolution[Shares]:
    """The search's strategy at its beginning."""
    settings = SearchSettings(config.population, config.elites, config.iterations, init="uniform", seed=config.seed)
    return Evolution(space, settings)


def _check_proxy(name: str) -> None:
    """Refuse a proxy that masked weights cannot be scored by.

    Raises:
        UserError: naming those that can.
    """
    if extra := sorted(PROXIES.get(name).needs - {"trace"}):
        able = ", ".join(n for n in PROXIES if PROXIES.get(n).needs <= {"trace"})
        raise UserError(f"proxy '{name}' needs {extra[0]}, which is not measured of masked weights; accepted: {able}")


def _evaluator(job: Job, space: SparsitySpace) -> SparsityEvaluator:
    """What scores candidates, with the metric's scores of the dense model."""
    config = job.config
    masked = MaskedWeights(
        job.loaded.model,
        job.loaded.blocks(),
        job.metric,
        job.tokens,
        compare=job.compare,
        micro_batch=job.micro_batch,
        gradients=job.gradients,
        seed=config.seed,
    )
    measuring = ScoringSettings(parse_rank(config.rank), config.seed, job.micro_batch)
    base, proxy = job.loaded.source.space().base, PROXIES.get(config.proxy)
    return SparsityEvaluator(masked, base, space.parameters, job.tokens, proxy, measuring)


def _write_result(config: SparsifyConfig, metric: str, result: SearchResult[Shares], base_loss: float) -> None:
    """best.json, as `--ratios` takes it, and summary.json."""
    run = _directory(config)
    settings = {"metric": metric, "sparsity": config.sparsity}
    facts: dict[str, Any] = {"score": result.score, "loss": result.record["loss"], "id": result.best.id}
    source = provenance(model=config.model, seed=config.seed, proxy=config.proxy, **settings)
    write_json(run / BEST, {"architecture": result.best.to_json(), **facts, "provenance": source})
    uniform = next((r for r in result.records if r["generation"] == 0), None)
    write_json(
        run / SUMMARY,
        {
            "model": config.model,
            **settings,
            "proxy": config.proxy,
            "base_loss": base_loss,
            "uniform": None if uniform is None else {"score": uniform["score"], "loss": uniform["loss"]},
            **facts,
            "evaluations": result.evaluated,
            "duplicates": result.duplicates,
            "seconds": sum(float(r["seconds"]) for r in result.records),
            "generations": [g.to_json() for g in result.generations],
        },
    )
