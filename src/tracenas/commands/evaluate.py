"""`tracenas eval`: perplexity and task accuracy of one or more models on the same data."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import torch

from tracenas.config import EvalConfig
from tracenas.data.tokens import default_micro_batch
from tracenas.data.windows import WindowStart
from tracenas.errors import UserError
from tracenas.evaluation.harness import Harness
from tracenas.evaluation.suites import Request, TaskResult, paper_average, requests
from tracenas.models.checkpoints.loading import LoadedModel, load
from tracenas.models.checkpoints.source import ModelSource, open_source
from tracenas.models.functionals.perplexity import Perplexity, perplexity
from tracenas.pipeline.calibration import held_out, window_start
from tracenas.pipeline.device_memory import streaming
from tracenas.pipeline.host_memory import keeping
from tracenas.pipeline.loading import loading
from tracenas.reporting.progress import phase
from tracenas.reporting.terminal import Outcome, Table, to_plain
from tracenas.rundir import check_own_json, provenance, write_json
from tracenas.threads import set_threads
from tracenas.world import World

__all__ = ["Evaluation", "evaluate"]


@dataclass(frozen=True)
class Evaluation(Outcome):
    """Perplexities and accuracies of several models.

    Args:
        models: as they were named.
        parameters: of every model.
        results: perplexities, one per model; empty if no text was given.
        tasks: per model, results by task; empty if no tasks were asked for.
        text: the held-out source, None without one.
        limit: questions per task, None for all.
        starts: how the windows of the text begin, per model.
    """

    models: tuple[str, ...]
    parameters: tuple[int, ...]
    results: tuple[Perplexity, ...] = ()
    tasks: tuple[dict[str, TaskResult], ...] = ()
    text: str | None = None
    limit: int | None = None
    starts: tuple[WindowStart, ...] = ()

    def to_json(self) -> Any:
        """One object, or a list of them for several models."""
        rows = [self._row(i) for i in range(len(self.models))]
        return rows[0] if len(rows) == 1 else rows

    def _row(self, index: int) -> dict[str, Any]:
        row: dict[str, Any] = {"model": self.models[index], "params": self.parameters[index]}
        if self.results:
            r = self.results[index]
            row |= {"perplexity": _finite(r.perplexity), "nll": _finite(r.nll), "tokens": r.tokens}
            row |= {"bos": self.starts[index].carried, "protocol": self._protocol(index)}
        if self.tasks:
            row["tasks"] = {name: result.to_json() for name, result in self.tasks[index].items()}
            row["limit"] = self.limit
            average = paper_average(self.tasks[index])
            row["average"] = None if average is None else average.to_json()
        return row

    @property
    def protocol(self) -> str:
        """How the perplexity was measured, a line for all models where it was the same; empty without a text."""
        lines = [self._protocol(i) for i in range(len(self.results))]
        if len(set(lines)) < 2:
            return "".join(lines[:1])
        return "\n".join(f"{model}: {line}" for model, line in zip(self.models, lines, strict=True))

    def _protocol(self, index: int) -> str:
        result, start = self.results[index], self.starts[index]
        count, length = result.windows
        scored = "first token of a window not scored"
        if result.tokens != count * (length - 1):
            scored = "second half of a window scored"
        elif start.carried:
            scored = "each begins with BOS, which is not scored"
        return f"{self.text}: documents joined by EOS, {count} windows of {length} tokens, {scored}"

    def tables(self) -> list[Table]:
        """A row per model with its perplexity; a row per task with a column per model."""
        tables = []
        if self.results:
            rows = [
                (m, f"{p:,}", f"{r.perplexity:.4f}", f"{r.nll:.4f}")
                for m, r, p in zip(self.models, self.results, self.parameters, strict=True)
            ]
            tables.append(Table("", ("model", "parameters", "perplexity", "nll"), rows))
        if self.tasks:
            tables.append(_task_table(self.models, self.parameters, self.tasks))
        return [*tables[:-1], replace(tables[-1], notes=self._notes())]

    def _notes(self) -> list[str]:
        notes = [self.protocol] if self.results else []
        if not self.tasks:
            return notes
        limited = ""
        if self.limit is not None:
            limited = f"; {self.limit} questions per task only: not comparable with full results"
        notes.append(f"tasks: lm-evaluation-harness, ± standard error{limited}")
        for model, results in zip(self.models, self.tasks, strict=True):
            if cut := ", ".join(f"{name} {r.truncated:,}" for name, r in results.items() if r.truncated):
                notes.append(f"{model}: prompts longer than its positions lost their beginning (answers): {cut}")
        return notes


def _finite(value: float) -> float | None:
    """The value, None for what JSON cannot say."""
    return value if math.isfinite(value) else None


def _task_table(models: Sequence[str], parameters: Sequence[int], tasks: Sequence[Mapping[str, TaskResult]]) -> Table:
    """A row per task and metric, a column per model."""
    rows: list[tuple[str, ...]] = [("parameters", "", "", *(f"{p:,}" for p in parameters))]
    for name, first in tasks[0].items():
        shown = [m for m in first.metrics if not m.partition(",")[0].endswith("_stderr")]
        for metric in shown:
            label = name if metric == shown[0] else ""
            shots = str(first.shots) if label else ""
            rows.append((label, shots, metric, *(_cell(results[name], metric) for results in tasks)))
    averages = [paper_average(results) for results in tasks]
    if all(a is not None for a in averages):
        cells = (_with_error(a.value, a.stderr) for a in averages if a is not None)
        rows.append(("the paper's average (8 tasks, no MMLU)", "", "", *cells))
    return Table("", ("task", "shots", "metric", *models), rows)


def _cell(result: TaskResult, metric: str) -> str:
    value = result.metrics.get(metric)
    plain, _, kind = metric.partition(",")
    error = result.metrics.get(f"{plain}_stderr" + (f",{kind}" if kind else ""))
    return "–" if value is None else _with_error(value, error)


def _with_error(value: float, error: float | None) -> str:
    return f"{value:.4f}" + ("" if error is None else f" ± {error:.4f}")


def evaluate(config: EvalConfig) -> Evaluation:
    """Perplexity and accuracy of every model on the same data, one model in memory at a time.

    Launched by torchrun or `accelerate launch`, every process holds the model and takes a share of the windows
    and questions.

    Raises:
        UserError: for models, text or tasks that cannot be read, before any model is loaded where possible.
    """
    wanted = _requested(config)
    sources = [open_source(name, decoder_only="eval --tasks" if wanted else "") for name in config.models]
    length = _window(config, sources)
    harness = Harness(wanted, config.task_data) if wanted else None
    set_threads(config.threads)
    world = World.from_environment()
    device = _join_processes(world, config.device)
    results, starts, tasks, parameters = [], [], [], []
    for source in sources:
        with loading(source):
            loaded = load(
                source,
                device=device,
                dtype=config.dtype,
                trust_remote_code=config.trust_remote_code,
                keep=keeping(source, config),
                streamed=streaming(source, config.model_copy(update={"device": device})),
            )
        parameters.append(sum(p.numel() for p in loaded.model.parameters()))
        if config.text is not None:
            starts.append(window_start(loaded, config.text, config.bos, setting="text"))
            results.append(_perplexity(config, loaded, length, shard=world.size > 1))
        if harness is not None:
            tokenizer = loaded.require_tokenizer("tasks are text")
            with phase("tasks", bar=False):  # lm-evaluation-harness has bars of its own
                answers = harness.run(
                    loaded.model,
                    tokenizer,
                    limit=config.limit,
                    batch_size=config.task_batch,
                    bos=config.bos,
                    shard=world.size > 1,
                )
            tasks.append(answers)
        del loaded
    evaluation = Evaluation(
        tuple(config.models),
        tuple(parameters),
        tuple(results),
        tuple(tasks),
        config.text,
        config.limit if wanted else None,
        tuple(starts),
    )
    if config.out is not None and world.is_main:
        write_json(config.out, _record(config, evaluation))
    return evaluation


def _requested(config: EvalConfig) -> tuple[Request, ...]:
    """The tasks that are asked for.

    Raises:
        UserError: if nothing is, and for an `out` that holds something else.
    """
    wanted = requests(config.tasks, config.suite, config.shots)
    if config.text is None and not wanted:
        raise UserError("nothing to measure: give text (for a perplexity), tasks or suite")
    if config.task_data is not None and not wanted:
        raise UserError("task-data without tasks: name them with tasks or suite")
    if config.out is not None:
        check_own_json(config.out, "eval", ("results", "settings", "provenance"))
    return wanted


def _join_processes(world: World, device: str) -> str:
    """Join the process group that the launcher announced, if it did; the device of this process.

    Args:
        device: as the user named it; `auto` and `cuda` become this process's own GPU.
    """
    if world.size < 2:
        return device
    from accelerate import PartialState

    on_cpu = device == "cpu" or not torch.cuda.is_available()
    state = PartialState(cpu=on_cpu)
    if device not in ("auto", "cpu", "cuda"):
        return device
    return "cpu" if on_cpu else f"cuda:{state.local_process_index}"


def _window(config: EvalConfig, sources: list[ModelSource]) -> int:
    shortest = min(s.positions for s in sources)
    if config.seq_len is not None and config.seq_len > shortest:
        raise UserError(f"seq-len {config.seq_len}: the models have {shortest} positions")
    return config.seq_len or min(4096, shortest)


def _perplexity(config: EvalConfig, loaded: LoadedModel, length: int, *, shard: bool) -> Perplexity:
    assert config.text is not None
    with phase("read text"):
        tokens = held_out(loaded, config.text, length, config.windows, config.text_field, bos=config.bos)
    batch = config.batch or default_micro_batch(tokens.shape[1])
    with phase("perplexity") as steps:
        return perplexity(loaded.model, tokens, batch, shard=shard, report=steps.report)


def _record(config: EvalConfig, evaluation: Evaluation) -> Any:
    """What `out` holds: the results and where they are from."""
    harness = version("lm-eval") if config.tasks or config.suite else None
    rows = evaluation.to_json()
    return to_plain(
        {
            "results": rows if isinstance(rows, list) else [rows],
            "settings": config.model_dump(exclude={"out"}),
            "provenance": provenance(lm_eval=harness),
        }
    )
