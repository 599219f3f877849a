"""The search for per-sub-block shares of zeros (TraceNAS D.4): the same evolution over another genome."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracenas.commands.search.command import BEST, JOURNAL, SUMMARY
from tracenas.config import SparsifyConfig, parse_rank
from tracenas.errors import UserError
from tracenas.models.checkpoints.source import ModelSource
from tracenas.pipeline.calibration import window_start
from tracenas.pipeline.resume import same_model, same_settings
from tracenas.pipeline.run_directory import run_directory, starting
from tracenas.rundir import Journal, provenance, write_json
from tracenas.space.sparsity import Shares, SparsitySpace
from tracenas.strategies import SearchResult, Settings, run_search
from tracenas.strategies.evolution import Evolution

if TYPE_CHECKING:
    import torch

    from tracenas.models.checkpoints.loading import LoadedModel
    from tracenas.saliency.gradients import GradientStore
    from tracenas.saliency.unstructured import Metric
    from tracenas.scoring.masked_weights import SparsityEvaluator

__all__ = ["check_proxy", "search_shares", "sparsity_space"]

_NOT_RESULTS = ("out", "run", "resume", "shard_size", "save_dtype", "gradients")


def sparsity_space(source: ModelSource, share: float, spread: float) -> SparsitySpace:
    """The space over a model's sub-blocks; their sizes are the weights of their linear layers."""
    blocks = source.blocks()
    sizes = [
        [(s.spec.name, sum(p.rows * p.columns for p in s.projections)) for s in b.sub_blocks if s.spec.units]
        for b in blocks
    ]
    free = source.space()
    return SparsitySpace(sizes, share, free.parameters(free.base), spread=spread)


def search_shares(
    config: SparsifyConfig,
    loaded: "LoadedModel",
    space: SparsitySpace,
    metric: "Metric",
    compare: str,
    gradients: "GradientStore | None",
    tokens: "torch.Tensor",
    batch: int,
) -> Shares:
    """Run or resume the search in `config.run`; its best.json can be given to `--ratios`."""
    from tracenas.reporting.progress import SearchProgress

    check_proxy(config.proxy)
    run = config.run or config.out.with_name(config.out.name + ".search")
    settings = Settings(config.population, config.elites, config.iterations, init="uniform", seed=config.seed)
    assert config.data is not None
    chosen = {"samples": tokens.shape[0], "seq_len": tokens.shape[1], "micro_batch": batch}
    with run_directory(run, "sparsify", config.resume) as begun:
        if begun:
            same_settings(run, config.model_dump(), _NOT_RESULTS)
        with starting(run, "sparsify", {**config.model_dump(), **chosen}, begun):
            evaluator = _evaluator(config, loaded, space, metric, compare, gradients, tokens, batch)
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
                facts={"bos": window_start(loaded, config.data, config.bos).carried},
            )
        _write_result(config, run, metric, result, evaluator.base_loss)
    return result.best


def check_proxy(name: str) -> None:
    """Refuse a proxy that masked weights cannot be scored by.

    Raises:
        UserError: naming those that can.
    """
    from tracenas.proxies import PROXIES

    if extra := sorted(PROXIES.get(name).needs - {"trace"}):
        able = ", ".join(n for n in PROXIES if PROXIES.get(n).needs <= {"trace"})
        raise UserError(f"proxy '{name}' needs {extra[0]}, which is not measured of masked weights; accepted: {able}")


def _evaluator(
    config: SparsifyConfig,
    loaded: "LoadedModel",
    space: SparsitySpace,
    metric: "Metric",
    compare: str,
    gradients: "GradientStore | None",
    tokens: "torch.Tensor",
    batch: int,
) -> "SparsityEvaluator":
    """What scores candidates, with the metric's scores of the dense model."""
    from tracenas.proxies import PROXIES
    from tracenas.scoring.evaluator import Settings as Measuring
    from tracenas.scoring.masked_weights import MaskedWeights, SparsityEvaluator

    proxy = PROXIES.get(config.proxy)
    masked = MaskedWeights(
        loaded.model,
        loaded.blocks(),
        metric,
        tokens,
        compare=compare,
        micro_batch=batch,
        gradients=gradients,
        seed=config.seed,
    )
    free = loaded.source.space()
    measuring = Measuring(parse_rank(config.rank), config.seed, batch)
    return SparsityEvaluator(masked, free.base, space.parameters, tokens, proxy, measuring)


def _write_result(
    config: SparsifyConfig, run: Path, metric: "Metric", result: SearchResult[Shares], base_loss: float
) -> None:
    """best.json, as `--ratios` takes it, and summary.json."""
    facts: dict[str, Any] = {"score": result.score, "loss": result.record["loss"], "id": result.best.id}
    made = provenance(
        model=config.model, seed=config.seed, proxy=config.proxy, metric=metric.name, sparsity=config.sparsity
    )
    write_json(run / BEST, {"architecture": result.best.to_json(), **facts, "provenance": made})
    uniform = next((r for r in result.records if r["generation"] == 0), None)
    write_json(
        run / SUMMARY,
        {
            "model": config.model,
            "metric": metric.name,
            "sparsity": config.sparsity,
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
