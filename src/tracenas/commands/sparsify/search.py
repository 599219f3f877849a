"""The search for per-sub-block shares of zeros (TraceNAS D.4): the same evolution over another genome."""

from pathlib import Path
from typing import Any

from tracenas.commands.sparsify.job import Job
from tracenas.config import parse_rank
from tracenas.errors import UserError
from tracenas.journal import Journal
from tracenas.pipeline.calibration import window_start
from tracenas.pipeline.resume import same_model, same_settings
from tracenas.pipeline.run_directory import BEST, JOURNAL, SUMMARY, run_directory, starting
from tracenas.proxies import PROXIES
from tracenas.reporting.progress import SearchProgress, phase
from tracenas.rundir import provenance, write_json
from tracenas.scoring.evaluator import ScoringSettings
from tracenas.scoring.masked_weights import MaskedWeights, SparsityEvaluator
from tracenas.space.sparsity import Shares, SparsitySpace
from tracenas.strategies import SearchResult, SearchSettings, run_search
from tracenas.strategies.evolution import Evolution

__all__ = ["search_shares"]

_NOT_RESULTS = ("out", "run", "resume", "shard_size", "save_dtype", "gradients")


def search_shares(job: Job, space: SparsitySpace) -> Shares:
    """Run or resume the search in `config.run`; its best.json can be given to `--ratios`."""
    config = job.config
    _check_proxy(config.proxy)
    run = config.run or config.out.with_name(config.out.name + ".search")
    settings = SearchSettings(config.population, config.elites, config.iterations, init="uniform", seed=config.seed)
    assert config.data is not None
    resolved = {"samples": job.tokens.shape[0], "seq_len": job.tokens.shape[1], "batch": job.micro_batch}
    with run_directory(run, "sparsify", config.resume) as begun:
        if begun:
            same_settings(run, config, _NOT_RESULTS)
        with starting(run, "sparsify", {**config.model_dump(), **resolved}, begun):
            with phase("base pass"):
                evaluator = _evaluator(job, space)
            same_model(run, evaluator.base_loss)
        strategy: Evolution[Shares] = Evolution(space, settings)
        label = "Φ" if config.proxy == "phi" else config.proxy
        with SearchProgress(settings.iterations, label=label) as display:
            result = run_search(
                strategy,
                evaluator,
                Journal(run / JOURNAL),
                on_event=lambda e: display.update(
                    e.generation, e.done, e.planned - e.duplicates, e.best, None, e.duplicates
                ),
                facts={"bos": window_start(job.loaded, config.data, config.bos).carried},
            )
        _write_result(job, run, result, evaluator.base_loss)
    return result.best


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


def _write_result(job: Job, run: Path, result: SearchResult[Shares], base_loss: float) -> None:
    """best.json, as `--ratios` takes it, and summary.json."""
    config, metric = job.config, job.metric.name
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
