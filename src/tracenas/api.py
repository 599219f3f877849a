"""The stages as functions with plain arguments: what the commands do, for Python."""

from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from tracenas.commands import call
from tracenas.errors import UserError

if TYPE_CHECKING:
    from tracenas.commands.bench.result import Bench
    from tracenas.commands.best.result import BestFound
    from tracenas.commands.evaluate import Evaluation
    from tracenas.commands.export import ExportOutcome
    from tracenas.commands.measure.result import LatencyMeasured
    from tracenas.commands.metric.command import MetricSearched
    from tracenas.commands.plan.command import SearchPlan
    from tracenas.commands.prune.result import Pruned
    from tracenas.commands.push import Pushed
    from tracenas.commands.recover.command import Recovered
    from tracenas.commands.report import Reported
    from tracenas.commands.run.result import FrontOutcome, RunOutcome
    from tracenas.commands.runs import Runs
    from tracenas.commands.score import Scored
    from tracenas.commands.search.result import SearchOutcome
    from tracenas.commands.select_calibration.command import Selected
    from tracenas.commands.sensitivity import Sensitivities
    from tracenas.commands.sparsify.command import Sparsified
    from tracenas.commands.study.ablation import Ablated
    from tracenas.commands.study.command import StudyOutcome
    from tracenas.keywords.further import (
        AblationOptions,
        BenchOptions,
        EvaluateOptions,
        ExportOptions,
        MeasureOptions,
        MetricSearchOptions,
        PushOptions,
        RecoverOptions,
        ReportOptions,
        SparsifyOptions,
        StudyOptions,
    )
    from tracenas.keywords.pruning import (
        BestOptions,
        PlanOptions,
        PruneOptions,
        RunOptions,
        ScoreOptions,
        SearchOptions,
        SelectCalibrationOptions,
        SensitivityOptions,
    )
    from tracenas.models.checkpoints.loading import LoadedModel
    from tracenas.strategies import Progress

__all__ = [
    "UserError",
    "__version__",
    "ablation",
    "bench",
    "best",
    "evaluate",
    "export",
    "load",
    "measure",
    "metric_search",
    "plan",
    "prune",
    "push",
    "recover",
    "register",
    "report",
    "resume",
    "run",
    "runs",
    "score",
    "search",
    "select_calibration",
    "sensitivity",
    "sparsify",
    "study",
]

__version__ = version("tracenas")


def load(
    model: str | Path, *, device: str = "auto", dtype: str = "auto", trust_remote_code: bool = False
) -> "LoadedModel":
    """A model and its tokenizer from a directory or the hub; our pruned checkpoints need no remote code."""
    from tracenas.models.checkpoints.loading import load as load_model

    return load_model(str(model), device=device, dtype=dtype, trust_remote_code=trust_remote_code)


def register() -> None:
    """Let transformers' Auto classes load heterogeneous checkpoints of every family without `trust_remote_code`."""
    from tracenas.families import FAMILIES
    from tracenas.models.shipped.heterogeneous import register as register_families

    register_families(*FAMILIES)


def plan(model: str | Path, **settings: "Unpack[PlanOptions]") -> "SearchPlan":
    """Feasible budgets, evaluations, memory and time, before any work (`tracenas plan`)."""
    return call("plan", {"model": model, **settings})


def search(
    model: str | Path,
    *,
    data: str | Path,
    params: str | None = None,
    out: str | Path,
    on_generation: "Callable[[Progress], None] | None" = None,
    **settings: "Unpack[SearchOptions]",
) -> "SearchOutcome":
    """Find the architecture with the highest proxy score under a budget (`tracenas search`).

    Args:
        model: directory or hub id.
        data: calibration text or tokens.
        params: budget for all parameters, `"60%"` or `"2.7B"`; this or `budget={"kv_cache": "70%", …}`, or both.
        out: run directory.
        on_generation: told the state of the search (`tracenas.strategies.Progress`) after every generation.
        settings: as the options of the command, with underscores.
    """
    values = {"model": model, "data": data, "params": params, "out": out, **settings}
    return call("search", values, on_generation=on_generation)


def best(run: str | Path, **settings: "Unpack[BestOptions]") -> "BestFound":
    """The best measured candidate of a run under any budgets (`tracenas best`)."""
    return call("best", {"run": run, **settings})


def score(model: str | Path, *, arch: str | Path, data: str | Path, **settings: "Unpack[ScoreOptions]") -> "Scored":
    """Score one architecture (`tracenas score`)."""
    return call("score", {"model": model, "arch": arch, "data": data, **settings})


def sensitivity(
    model: str | Path, *, data: str | Path, out: str | Path, **settings: "Unpack[SensitivityOptions]"
) -> "Sensitivities":
    """Measure the predicted cost of every width of every sub-block (`tracenas sensitivity`)."""
    return call("sensitivity", {"model": model, "data": data, "out": out, **settings})


def measure(model: str | Path, *, out: str | Path, **settings: "Unpack[MeasureOptions]") -> "LatencyMeasured":
    """Measure latencies of sub-blocks by width (`tracenas measure`)."""
    return call("measure", {"model": model, "out": out, **settings})


def prune(
    model: str | Path,
    *,
    out: str | Path,
    arch: str | Path | None = None,
    method: str | None = None,
    **settings: "Unpack[PruneOptions]",
) -> "Pruned":
    """Write the smaller checkpoint of an architecture, or of a one-shot method (`tracenas prune`).

    Args:
        model: directory or hub id.
        out: checkpoint directory.
        arch: architecture JSON or a run's best.json; this or `method`.
        method: `"nirvana"`, `"wanda"`, …, with `params="50%"` (or `budget={…}`) and `data`.
        settings: as the options of the command, with underscores.
    """
    return call("prune", {"model": model, "out": out, "arch": arch, "method": method, **settings})


def select_calibration(
    model: str | Path,
    *,
    data: str | Path,
    params: str | None = None,
    out: str | Path,
    **settings: "Unpack[SelectCalibrationOptions]",
) -> "Selected":
    """Choose the calibration set that prunes best (`tracenas select-calibration`)."""
    return call("select-calibration", {"model": model, "data": data, "params": params, "out": out, **settings})


def evaluate(models: Sequence[str | Path], **settings: "Unpack[EvaluateOptions]") -> "Evaluation":
    """Measure one or more models on the same data (`tracenas eval`)."""
    return call("eval", {"models": models, **settings})


def run(
    model: str | Path,
    *,
    data: str | Path,
    params: str | None = None,
    out: str | Path,
    on_generation: "Callable[[Progress], None] | None" = None,
    **settings: "Unpack[RunOptions]",
) -> "RunOutcome | FrontOutcome":
    """Search, prune, compare on the held-out `text="…"` and report, resumable; with `front` checkpoints of many sizes.

    `recover={…}`, `eval={…}` and `bench={…}` add these stages, of every size.
    """
    values = {"model": model, "data": data, "params": params, "out": out, **settings}
    return call("run", values, on_generation=on_generation)


def report(run: str | Path, **settings: "Unpack[ReportOptions]") -> "Reported":
    """Draw a run's report.html again (`tracenas report`)."""
    return call("report", {"run": run, **settings})


def resume(run: str | Path) -> Any:
    """Go on with any run directory; returns what its command returns (`tracenas resume`)."""
    return call("resume", {"run": run})


def runs(directory: str | Path = ".") -> "Runs":
    """The runs in a directory and right below it, and their state (`tracenas runs`)."""
    return call("runs", {"directory": directory})


def recover(
    model: str | Path,
    *,
    method: str,
    data: str | Path,
    out: str | Path,
    on_step: Callable[[int, int], None] | None = None,
    **settings: "Unpack[RecoverOptions]",
) -> "Recovered":
    """Train a pruned checkpoint until it is useful again (`tracenas recover`): pretrain, lora or distill.

    `on_step` is told the number of every optimizer step that is done, and how many there will be.
    """
    values = {"model": model, "method": method, "data": data, "out": out, **settings}
    return call("recover", values, on_step=on_step)


def bench(models: Sequence[str | Path], **settings: "Unpack[BenchOptions]") -> "Bench":
    """Latency, throughput and memory of models, interleaved in one run (`tracenas bench`)."""
    return call("bench", {"models": models, **settings})


def export(model: str | Path, *, out: str | Path, **settings: "Unpack[ExportOptions]") -> "ExportOutcome":
    """Write a checkpoint in the form that a serving program reads (`tracenas export`)."""
    return call("export", {"model": model, "out": out, **settings})


def push(directory: str | Path, repo: str, **settings: "Unpack[PushOptions]") -> "Pushed":
    """Put a checkpoint on the Hugging Face hub, after a check (`tracenas push`)."""
    return call("push", {"directory": directory, "repo": repo, **settings})


def sparsify(
    model: str | Path, *, sparsity: str, out: str | Path, **settings: "Unpack[SparsifyOptions]"
) -> "Sparsified":
    """Set weights to zero, unstructured or N:M (`tracenas sparsify`)."""
    return call("sparsify", {"model": model, "sparsity": sparsity, "out": out, **settings})


def metric_search(
    model: str | Path, *, data: str | Path, out: str | Path, **settings: "Unpack[MetricSearchOptions]"
) -> "MetricSearched":
    """Discover symbolic pruning metrics by genetic programming, resumable (`tracenas metric search`).

    Their fitness is measured on the held-out `text="…"`.
    """
    return call("metric search", {"model": model, "data": data, "out": out, **settings})


def study(
    model: str | Path, *, data: str | Path, out: str | Path, **settings: "Unpack[StudyOptions]"
) -> "StudyOutcome":
    """Do proxies order architectures as their recovered quality does? Resumable (`tracenas study`).

    Losses are measured on the held-out `text="…"`.
    """
    return call("study", {"model": model, "data": data, "out": out, **settings})


def ablation(
    model: str | Path, *, data: str | Path, out: str | Path, **settings: "Unpack[AblationOptions]"
) -> "Ablated":
    """How stable a proxy's ranking is with less text or rank (`tracenas study ablation`)."""
    return call("study ablation", {"model": model, "data": data, "out": out, **settings})
