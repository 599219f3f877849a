"""The commands: a file or a folder of each, and their table; what a command needs is imported when it is called."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from tracenas.errors import catchable, disk_failures
from tracenas.hub.commits import pinning

__all__ = ["COMMANDS", "Command", "call"]


@dataclass(frozen=True)
class Command:
    """A command of the command line.

    Args:
        stage: its function, `module:function` below this package.
        config: the class of its settings in `tracenas.config`.
        help: a line.
        parallel: whether torchrun may start it in several processes.
        file: whether `out` is a file.
    """

    stage: str
    config: str
    help: str
    parallel: bool = False
    file: bool = False

    @property
    def kind(self) -> Any:
        """The class of its settings."""
        from tracenas import config as configs

        return getattr(configs, self.config)

    def __call__(self, settings: Any, **callbacks: Callable[..., None]) -> Any:
        """What the command's function returns.

        Args:
            callbacks: what it tells while it works, by the names of its parameters.

        Raises:
            UserError: for an `out` that cannot be written, before any work; what the disk refuses; and as the function.
        """
        from tracenas.pipeline.resume import recorded_commits
        from tracenas.reporting.progress import START, phase  # rich is not needed for --help
        from tracenas.rundir import check_file

        module, _, function = self.stage.partition(":")
        with disk_failures(), catchable():
            if self.file and settings.out is not None:
                check_file(settings.out)
            known = {name: commit for run in _runs(settings) for name, commit in recorded_commits(run).items()}
            with phase(START):
                stage = getattr(import_module(f"tracenas.commands.{module}"), function)
            with pinning(known):
                return stage(settings, **callbacks)


def _runs(settings: Any) -> list[Path]:
    """The run directories that a command reads: one that it resumes or asks, one whose architecture it takes."""
    from tracenas.pipeline.run_directory import named_run

    runs = []
    if getattr(settings, "resume", False):
        out: Path = settings.out
        runs += [out, getattr(settings, "run", None) or out.with_name(f"{out.name}.search")]  # the latter of sparsify
    elif isinstance(run := getattr(settings, "run", None), Path):
        runs.append(run)
    if (arch := getattr(settings, "arch", None)) is not None:
        runs += [Path(arch).parent, *filter(None, [named_run(Path(arch))])]
    return runs


COMMANDS: dict[str, Command] = {
    "demo": Command(
        "demo.command:demo", "DemoConfig", "The main job on the model that ships with the package, or on SmolLM2."
    ),
    "run": Command("run.command:run", "RunConfig", "Search, prune, compare, recover, bench and report, resumable."),
    "plan": Command(
        "plan.command:plan", "PlanConfig", "Feasible budgets, evaluations, memory and time, before any work."
    ),
    "search": Command("search.command:search", "SearchConfig", "Find a sub-network under a budget."),
    "best": Command(
        "best.command:best", "BestConfig", "The best measured candidate of a search under any budgets.", file=True
    ),
    "score": Command("score:score", "ScoreConfig", "Score one architecture."),
    "select-calibration": Command(
        "select_calibration.command:select_calibration",
        "SelectCalibrationConfig",
        "Choose the calibration set that prunes best.",
        file=True,
    ),
    "sensitivity": Command(
        "sensitivity:sensitivity",
        "SensitivityConfig",
        "The predicted cost of every width of every sub-block.",
        file=True,
    ),
    "prune": Command("prune.command:prune", "PruneConfig", "Write the smaller checkpoint."),
    "recover": Command(
        "recover.command:recover", "RecoverConfig", "Train a pruned checkpoint to recover.", parallel=True
    ),
    "eval": Command(
        "evaluate:evaluate", "EvalConfig", "Perplexity and task accuracy of models.", parallel=True, file=True
    ),
    "sparsify": Command("sparsify.command:sparsify", "SparsifyConfig", "Set weights to zero: unstructured or N:M."),
    "metric search": Command(
        "metric.command:search", "MetricSearchConfig", "Discover pruning metrics by genetic programming."
    ),
    "metric show": Command("metric.show:show", "MetricShowConfig", "Parse and simplify a metric's expression."),
    "bench": Command("bench.command:bench", "BenchConfig", "Latency, throughput and memory of models.", file=True),
    "measure": Command(
        "measure.command:measure",
        "MeasureConfig",
        "Latencies of sub-blocks by width, where the model is served.",
        file=True,
    ),
    "export": Command("export:export", "ExportConfig", "Write a checkpoint for llama.cpp (GGUF).", file=True),
    "push": Command("push:push", "PushConfig", "Put a checkpoint on the Hugging Face hub, after a check."),
    "recipes": Command("recipes:show", "RecipesConfig", "Settings files that come with the package."),
    "report": Command("report:report", "ReportConfig", "Draw a run's report.html again.", file=True),
    "resume": Command(
        "resume:resume", "ResumeConfig", "Go on with an interrupted run, or complete a finished one.", parallel=True
    ),
    "runs": Command("runs:runs", "RunsConfig", "The runs in a directory, and their state."),
    "watch": Command("watch:watch", "WatchConfig", "A run's page in a browser, current while the run goes on."),
    "study": Command("study.command:study", "StudyConfig", "Which proxies order architectures as recovery does."),
    "study ablation": Command("study.ablation:ablation", "AblationConfig", "A proxy's ranking from less text or rank."),
}


def call(name: str, values: Mapping[str, Any], **callbacks: Callable[..., None] | None) -> Any:
    """What a command returns for these settings.

    Args:
        callbacks: of its function; None: none.

    Raises:
        UserError: for settings that it does not have, lacks or would not use.
    """
    from tracenas import config as configs

    command = COMMANDS[name]
    settings = configs.build(command.kind, dict(values))
    return command(settings, **{key: one for key, one in callbacks.items() if one is not None})
