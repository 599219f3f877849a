"""The stages as functions with plain arguments: what the commands do, for Python."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracenas.errors import UserError
from tracenas.space.architecture import Architecture

if TYPE_CHECKING:
    from tracenas.commands.bench import Bench
    from tracenas.commands.evaluate import Evaluation
    from tracenas.commands.export import ExportOutcome
    from tracenas.commands.metric.command import MetricSearched
    from tracenas.commands.plan.command import Plan
    from tracenas.commands.prune.result import Pruned
    from tracenas.commands.recover.command import Recovered
    from tracenas.commands.report import Reported
    from tracenas.commands.run.result import RunOutcome
    from tracenas.commands.score import Scored
    from tracenas.commands.search.result import SearchOutcome
    from tracenas.commands.select_calibration import Selected
    from tracenas.commands.sparsify.command import Sparsified
    from tracenas.commands.study.ablation import Ablated
    from tracenas.commands.study.command import StudyOutcome
    from tracenas.models.checkpoints.loading import LoadedModel

__all__ = [
    "Architecture",
    "UserError",
    "__version__",
    "ablation",
    "bench",
    "evaluate",
    "export",
    "load",
    "metric_search",
    "plan",
    "prune",
    "recover",
    "register",
    "report",
    "run",
    "score",
    "search",
    "select_calibration",
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


def plan(model: str | Path, **settings: Any) -> "Plan":
    """Feasible budgets, evaluations, memory and time, before any work (`tracenas plan`)."""
    from tracenas.commands.plan.command import plan as stage
    from tracenas.config import PlanConfig, build

    return stage(build(PlanConfig, {"model": str(model), **settings}))


def search(model: str | Path, *, data: str | Path, params: str, out: str | Path, **settings: Any) -> "SearchOutcome":
    """Find the architecture with the highest proxy score under a budget (`tracenas search`).

    Args:
        model: directory or hub id.
        data: calibration text or tokens.
        params: budget for all parameters, `"60%"` or `"2.7B"`.
        out: run directory.
        settings: as the options of the command, with underscores.
    """
    from tracenas.commands.search.command import search as stage
    from tracenas.config import SearchConfig, build

    values = {"model": str(model), "data": str(data), "params": params, "out": out, **settings}
    return stage(build(SearchConfig, values))


def score(model: str | Path, *, arch: str | Path, data: str | Path, **settings: Any) -> "Scored":
    """Score one architecture (`tracenas score`)."""
    from tracenas.commands.score import score as stage
    from tracenas.config import ScoreConfig, build

    return stage(build(ScoreConfig, {"model": str(model), "arch": arch, "data": str(data), **settings}))


def prune(
    model: str | Path, *, out: str | Path, arch: str | Path | None = None, method: str | None = None, **settings: Any
) -> "Pruned":
    """Write the smaller checkpoint of an architecture, or of a one-shot method (`tracenas prune`).

    Args:
        model: directory or hub id.
        out: checkpoint directory.
        arch: architecture JSON or a run's best.json; this or `method`.
        method: `"nirvana"`, `"wanda"`, …, with `params="50%"` and `data`.
        settings: as the options of the command, with underscores.
    """
    from tracenas.commands.prune.command import prune as stage
    from tracenas.config import PruneConfig, build

    chosen = {key: value for key, value in (("arch", arch), ("method", method)) if value is not None}
    if settings.get("data") is not None:
        chosen["data"] = str(settings.pop("data"))
    return stage(build(PruneConfig, {"model": str(model), "out": out, **chosen, **settings}))


def select_calibration(
    model: str | Path, *, data: str | Path, params: str, out: str | Path, **settings: Any
) -> "Selected":
    """Choose the calibration set that prunes best (`tracenas select-calibration`)."""
    from tracenas.commands.select_calibration import select_calibration as stage
    from tracenas.config import SelectCalibrationConfig, build

    values = {"model": str(model), "data": str(data), "params": params, "out": out}
    return stage(build(SelectCalibrationConfig, {**values, **settings}))


def evaluate(models: Sequence[str | Path], **settings: Any) -> "Evaluation":
    """Measure one or more models on the same data (`tracenas eval`)."""
    from tracenas.commands.evaluate import evaluate as stage
    from tracenas.config import EvalConfig, build

    return stage(build(EvalConfig, {"models": tuple(str(m) for m in models), **settings}))


def run(
    model: str | Path, *, data: str | Path, eval_text: str | Path, params: str, out: str | Path, **settings: Any
) -> "RunOutcome":
    """Search, prune, compare and report, resumable; `recover={…}`, `eval={…}`, `bench={…}` add these stages."""
    from tracenas.commands.run.command import run as stage
    from tracenas.config import RunConfig, build

    values = {"model": str(model), "data": str(data), "eval_text": str(eval_text), "params": params, "out": out}
    return stage(build(RunConfig, {**values, **settings}))


def report(run: str | Path, **settings: Any) -> "Reported":
    """Draw a run's report.html again (`tracenas report`)."""
    from tracenas.commands.report import report as stage
    from tracenas.config import ReportConfig, build

    return stage(build(ReportConfig, {"run": run, **settings}))


def recover(model: str | Path, *, method: str, data: str | Path, out: str | Path, **settings: Any) -> "Recovered":
    """Train a pruned checkpoint until it is useful again (`tracenas recover`): pretrain, lora or distill."""
    from tracenas.commands.recover.command import recover as stage
    from tracenas.config import RecoverConfig, build

    values = {"model": str(model), "method": method, "data": str(data), "out": out}
    return stage(build(RecoverConfig, {**values, **settings}))


def bench(models: Sequence[str | Path], **settings: Any) -> "Bench":
    """Latency, throughput and memory of models, interleaved in one run (`tracenas bench`)."""
    from tracenas.commands.bench import bench as stage
    from tracenas.config import BenchConfig, build

    return stage(build(BenchConfig, {"models": tuple(str(m) for m in models), **settings}))


def export(model: str | Path, *, out: str | Path, **settings: Any) -> "ExportOutcome":
    """Write a checkpoint in the form that a serving program reads (`tracenas export`)."""
    from tracenas.commands.export import export as stage
    from tracenas.config import ExportConfig, build

    return stage(build(ExportConfig, {"model": str(model), "out": out, **settings}))


def sparsify(model: str | Path, *, sparsity: str, out: str | Path, **settings: Any) -> "Sparsified":
    """Set weights to zero, unstructured or N:M (`tracenas sparsify`)."""
    from tracenas.commands.sparsify.command import sparsify as stage
    from tracenas.config import SparsifyConfig, build

    return stage(build(SparsifyConfig, {"model": str(model), "sparsity": sparsity, "out": out, **settings}))


def metric_search(
    model: str | Path, *, data: str | Path, eval_text: str | Path, out: str | Path, **settings: Any
) -> "MetricSearched":
    """Discover symbolic pruning metrics by genetic programming, resumable (`tracenas metric search`)."""
    from tracenas.commands.metric.command import search as stage
    from tracenas.config import MetricSearchConfig, build

    values = {"model": str(model), "data": str(data), "eval_text": str(eval_text), "out": out}
    return stage(build(MetricSearchConfig, {**values, **settings}))


def study(
    model: str | Path, *, data: str | Path, eval_text: str | Path, out: str | Path, **settings: Any
) -> "StudyOutcome":
    """Do proxies order architectures as their recovered quality does? Resumable (`tracenas study`)."""
    from tracenas.commands.study.command import study as stage
    from tracenas.config import StudyConfig, build

    values = {"model": str(model), "data": str(data), "eval_text": str(eval_text), "out": out}
    return stage(build(StudyConfig, {**values, **settings}))


def ablation(model: str | Path, *, data: str | Path, out: str | Path, **settings: Any) -> "Ablated":
    """How stable a proxy's ranking is with less text or rank (`tracenas study ablation`)."""
    from tracenas.commands.study.ablation import ablation as stage
    from tracenas.config import AblationConfig, build

    return stage(build(AblationConfig, {"model": str(model), "data": str(data), "out": out, **settings}))
