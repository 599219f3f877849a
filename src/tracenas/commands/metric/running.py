"""A metric search from its settings to its files: space, strategy, evaluation, results."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tracenas.commands.metric.fitness import GRADIENTS, HELD_OUT, build
from tracenas.commands.sparsify.job import sparsity_calibration
from tracenas.config import MetricSearchConfig
from tracenas.data.tokens import default_micro_batch, load_tokens, save_tokens
from tracenas.data.windows import token_file_start
from tracenas.errors import UserError
from tracenas.hub.commits import pinned
from tracenas.journal import Journal
from tracenas.models.checkpoints.source import ModelSource
from tracenas.models.functionals.memory import attempt
from tracenas.pipeline.calibration import stored_evaluation_windows, window_start
from tracenas.pipeline.loading import load_model
from tracenas.pipeline.resume import as_started, resolve_settings, resolved_settings
from tracenas.pipeline.run_directory import BEST, CALIBRATION, JOURNAL, SUMMARY, holds_result, run_directory, starting
from tracenas.reporting.pages.metric import write_metric_report
from tracenas.reporting.progress import SearchProgress, phase
from tracenas.reporting.tracking.generations import generation_points
from tracenas.reporting.tracking.trackers import Trackers, tracked
from tracenas.rundir import REPORT, provenance, read_json, write_json
from tracenas.saliency.gradients import write_gradients
from tracenas.saliency.linear import projections
from tracenas.saliency.masks import Sparsity
from tracenas.strategies import Progress, Score, SearchResult, SearchSettings, replayed, run_search
from tracenas.symbolic import KNOWN, locate
from tracenas.symbolic.analysis import findings
from tracenas.symbolic.evolve import GeneticProgramming, Programming
from tracenas.symbolic.grammar import ExpressionSpace, Program
from tracenas.threads import set_threads
from tracenas.worker_pool import WorkerPool

__all__ = ["run"]

KNOWN_METRICS = ("magnitude", "wanda", "gblm", "pruner_zero", "sparsegpt", "random")
KNOWN_FILE = "known.json"
_NOT_RESULTS = ("out", "resume", "workers", "report_to", "run_name")
_NEEDS_GRADIENTS = ("gblm", "pruner_zero")

Evaluate = Callable[[Sequence[dict[str, Any]]], Iterator[dict[str, Any]]]


def run(config: MetricSearchConfig, source: ModelSource) -> dict[str, Any]:
    """Run or resume a search into `config.out`; what summary.json says.

    Raises:
        UserError: for wrong input, before any work is done.
    """
    strategy = _strategy(config)
    _check_sparsity(config, source)
    with run_directory(config.out, "metric search", config.resume) as begun:
        if begun:
            config = as_started(config.out, config, _NOT_RESULTS)
        with tracked(config.out, config.trackers, config.run_name, begun=begun) as trackers:
            summary = _concluded(config) if begun else None
            if summary is None:
                summary = _search(config, source, strategy, begun, trackers)
            else:
                trackers.begin(resolved_settings(config.out, MetricSearchConfig))
            _report(trackers, config, summary)
            return summary


def _search(
    config: MetricSearchConfig, source: ModelSource, strategy: GeneticProgramming, begun: bool, trackers: Trackers
) -> dict[str, Any]:
    """The search from where it is; its generations are reported, its result is not."""
    with starting(config.out, "metric search", config.model_dump(), begun):
        spec = _prepare(config, source, gradients="G" in strategy.space.variables)
    trackers.begin(resolved_settings(config.out, MetricSearchConfig))
    with ExitStack() as stack:
        evaluate = _evaluator(spec, config.workers, stack)
        published = _published_metrics(config.out / KNOWN_FILE, evaluate, gradients=bool(spec["gradients"]))
        result = _run(config, strategy, evaluate, stack, trackers)
    return _conclude(config, result, published)


def _report(trackers: Trackers, config: MetricSearchConfig, summary: dict[str, Any]) -> None:
    """Report the generations that were not, and what was found."""
    if trackers:
        trackers.report(generation_points(Journal(config.out / JOURNAL).read(), config.population, config.elites))
        values = {f"result/{key}": summary[key] for key in ("perplexity", "loss", "complexity", "evaluations")}
        trackers.conclude(values, {"result/metric": summary["metric"]}, config.out / BEST)


def _strategy(config: MetricSearchConfig) -> GeneticProgramming:
    """The search's strategy at its beginning."""
    variables = tuple(sorted(v for v in config.variables.replace(" ", "").split(",") if v))
    space = ExpressionSpace(variables, config.max_nodes, config.initial_depth)
    settings = SearchSettings(
        config.population, config.elites, config.iterations, config.crossover, init="random", seed=config.seed
    )
    seeds = [Program(locate(t).expression) for t in KNOWN.values()] if config.init == "known" else []
    seeds = [s for s in seeds if s.expression.variables <= set(variables)]
    programming = Programming(config.tournament, config.mutation, config.patience)
    return GeneticProgramming(space, settings, programming, seeds=seeds)


def _concluded(config: MetricSearchConfig) -> dict[str, Any] | None:
    """What a search has come to whose journal is whole, without the model; None while metrics are left to evaluate."""
    out = config.out
    if holds_result(out) and (out / REPORT).is_file():
        summary: dict[str, Any] = read_json(out / SUMMARY)
        return summary
    if not all((out / name).is_file() for name in (CALIBRATION, KNOWN_FILE)):
        return None
    result = replayed(_strategy(config), Journal(out / JOURNAL), _facts(config))
    return None if result is None else _conclude(config, result, read_json(out / KNOWN_FILE))


def _conclude(
    config: MetricSearchConfig, result: SearchResult[Program], published: list[dict[str, Any]]
) -> dict[str, Any]:
    """Write best.json, summary.json and the report; what summary.json says."""
    summary = _summary(config, result, published)
    write_json(config.out / BEST, _best(config, summary, result))
    write_json(config.out / SUMMARY, summary)
    write_metric_report(config.out)
    return summary


def _facts(config: MetricSearchConfig) -> dict[str, Any]:
    """What every line of the journal says."""
    return {"bos": token_file_start(config.out / CALIBRATION).carried}


def _check_sparsity(config: MetricSearchConfig, source: ModelSource) -> None:
    target = Sparsity.parse(config.sparsity)
    if target.m and config.compare != "row":
        raise UserError(f"sparsity {config.sparsity} compares within groups of a row: compare must be row")
    for index, _, projection in projections(source.blocks()):
        target.check_columns(projection.columns, f"layer {index} {projection.path}")


def _prepare(config: MetricSearchConfig, source: ModelSource, *, gradients: bool) -> dict[str, Any]:
    """Calibration, held-out windows, gradients and config.yaml in the run directory; the workers' spec."""
    out = config.out
    calibration, windows, measured = (out / n for n in (CALIBRATION, HELD_OUT, GRADIENTS))
    threads = set_threads(config.threads)
    loaded = load_model(source, config)
    if not calibration.is_file():
        tokens = sparsity_calibration(loaded, config, config.data)
        start = window_start(loaded, config.data, config.bos)
        save_tokens(calibration, tokens, {"source": config.data, "model": config.model, **start.note})
    tokens = load_tokens(calibration)
    stored_evaluation_windows(windows, loaded, config, tokens.shape[1])
    micro_batch = config.batch or default_micro_batch(tokens.shape[1])
    if gradients and not measured.is_file():
        with phase("gradients") as steps:
            write_gradients(
                loaded.model,
                loaded.blocks(),
                tokens.to(loaded.device),
                measured,
                micro_batch=micro_batch,
                report=steps.report,
            )
    resolved = {
        "device": str(loaded.device),
        "dtype": loaded.dtype_name,
        "threads": threads,
        "seq_len": tokens.shape[1],
        "batch": micro_batch,
    }
    resolve_settings(config, out, resolved)
    settings = config.model_dump(include={"trust_remote_code", "sparsity", "compare", "seed"})
    return {"model": pinned(config.model), **settings, **resolved, "run": str(out), "gradients": gradients}


def _evaluator(spec: dict[str, Any], workers: int, stack: ExitStack) -> Evaluate:
    """Evaluates tasks in this process, or in `workers` others."""
    if workers > 1:
        start = "spawn" if spec["device"].startswith("cuda") else "forkserver"
        pool = stack.enter_context(WorkerPool("tracenas.commands.metric.fitness:build", spec, workers, start=start))
        return lambda tasks: (a.get("result", {"failed": a.get("error")}) for a in pool.map(tasks))
    with phase("load the model"):
        fitness = build(spec)

    def here(tasks: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for task in tasks:
            result, reason = attempt(partial(fitness, task), torch.device(spec["device"]))
            yield {"failed": reason} if result is None else result

    return here


def _published_metrics(path: Path, evaluate: Evaluate, *, gradients: bool) -> list[dict[str, Any]]:
    """The known metrics measured in the same way, from known.json if it is there."""
    if path.is_file():
        stored: list[dict[str, Any]] = read_json(path)
        return stored
    names = [n for n in KNOWN_METRICS if gradients or n not in _NEEDS_GRADIENTS]
    rows = []
    for name, answer in zip(names, evaluate([{"metric": n} for n in names]), strict=True):
        text = KNOWN.get(name)
        nodes = locate(text).expression.nodes if text is not None else None
        rows.append(
            {"name": name, "metric": text, "params": nodes, "loss": answer.get("loss"), "lost": answer.get("lost")}
        )
    write_json(path, rows)
    return rows


def _run(
    config: MetricSearchConfig, strategy: Any, evaluate: Evaluate, stack: ExitStack, trackers: Trackers
) -> SearchResult[Program]:
    def score(programs: Sequence[Program]) -> Iterator[Score]:
        for answer in evaluate([{"metric": p.expression.infix} for p in programs]):
            if "failed" in answer:
                yield Score.failed(answer["failed"])
            else:
                yield Score(-answer["loss"], loss=answer["loss"], extra={"lost": answer["lost"]})

    display = stack.enter_context(SearchProgress(config.iterations, label="−nll"))

    def on_event(event: Progress) -> None:
        display.update(
            event.generation, event.done, event.planned - event.duplicates, event.best, None, event.duplicates
        )
        if event.record is None and trackers:
            records = [r for r in Journal(config.out / JOURNAL).read() if r["generation"] <= event.generation]
            trackers.report(generation_points(records, config.population, config.elites))

    return run_search(
        strategy,
        score,
        Journal(config.out / JOURNAL),
        on_event=on_event,
        facts=_facts(config),
    )


def _best(config: MetricSearchConfig, summary: dict[str, Any], result: SearchResult[Program]) -> dict[str, Any]:
    best = locate(summary["metric"]).expression
    return {
        "metric": best.infix,
        "tree": best.to_json(),
        "score": result.score,
        "loss": summary["loss"],
        "complexity": best.nodes,
        "id": best.id,
        "provenance": provenance(model=config.model, seed=config.seed, sparsity=config.sparsity, text=config.text),
    }


def _summary(
    config: MetricSearchConfig, result: SearchResult[Program], published: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "model": config.model,
        "sparsity": config.sparsity,
        "compare": config.compare,
        "seed": config.seed,
        **findings(result.records, published),
        "duplicates": result.duplicates,
        "generations": [g.to_json() for g in result.generations],
    }
