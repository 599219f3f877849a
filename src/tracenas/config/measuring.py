"""Settings of eval and bench."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from tracenas.config import fields
from tracenas.config.accepted import Accepts
from tracenas.config.shared import StageConfig, WindowsConfig
from tracenas.config.usage import Use
from tracenas.evaluation.suites import SUITES

__all__ = ["BenchConfig", "EvalConfig"]


def _without_shots(config: Any) -> bool:
    return bool(config.suite) or any(":" not in name for name in (config.tasks or "").split(","))


class EvalConfig(WindowsConfig):
    """Perplexity and task accuracy of one or more models."""

    needed = ("text", "tasks", "suite")
    wanted = ("seq_len", "windows", "shots", "limit", "out", "device")
    without = ("seed",)
    former: ClassVar[Mapping[str, str]] = {**StageConfig.former, "max_windows": "windows", "batch_size": "task_batch"}
    uses = (
        Use(("seq_len", "windows", "text_field", "batch"), "text", lambda c: c.text is not None),
        Use(("limit", "task_batch", "shots"), "tasks or suite", lambda c: bool(c.tasks or c.suite)),
        Use(("shots",), "a task that names no number itself", _without_shots),
    )

    models: Annotated[tuple[str, ...], Accepts(file=True)] = Field(
        description="One or more models: directories, .gguf files or hub ids.", min_length=1
    )
    text: fields.Text | None = Field(
        None, description="Held-out text for a perplexity: a file, the name of a data set such as wikitext2, or tokens."
    )
    seq_len: int | None = Field(
        None, ge=2, description="Tokens per window of text; default: 4096, or the smallest model's positions if fewer."
    )
    windows: int | None = Field(None, ge=1, description="Number of windows of text at most; default: all.")
    text_field: fields.TextField = None
    batch: int | None = Field(None, ge=1, description="Windows of text per forward pass; default: up to 4,096 tokens.")
    tasks: Annotated[fields.CommaList | None, Accepts(metavar="TASK", several=True)] = Field(
        None, description="Tasks of lm-eval, such as piqa,arc_challenge:25 (25 examples before each question)."
    )
    suite: Annotated[str | None, Accepts(registered=SUITES.keys)] = Field(
        None, description="A set of tasks: paper is the nine of TraceNAS, with the paper's number of examples."
    )
    task_data: Path | None = Field(
        None, description="Folder with TASK/SPLIT.jsonl; default: the tasks' data are downloaded."
    )
    shots: int | None = Field(
        None, ge=0, description="Number of examples before every question, for tasks that name none."
    )
    limit: int | None = Field(None, ge=1, description="Number of questions per task at most; default: all.")
    task_batch: int = Field(8, ge=1, description="Answers per forward pass in tasks.")
    out: Path | None = Field(None, description="JSON file to write the results to, too.")


class BenchConfig(StageConfig):
    """Latency, throughput and memory of one or more models."""

    wanted = ("prompt", "new_tokens", "batch", "trials", "out", "device")
    former: ClassVar[Mapping[str, str]] = {**StageConfig.former, "batch_size": "batch"}

    models: Annotated[tuple[str, ...], Accepts(file=True)] = Field(
        description="One or more models: directories, .gguf files or hub ids; the others are compared to the first.",
        min_length=1,
    )
    prompt: int | None = Field(
        None, ge=1, description="Tokens of the prompt; default: 4096, or what the models' positions leave room for."
    )
    new_tokens: int = Field(128, ge=2, description="Tokens generated after the prompt.")
    batch: int = Field(1, ge=1, description="Sequences generated at once.")
    trials: int = Field(20, ge=1, description="Number of trials per model; the models take turns.")
    warmup: int = Field(2, ge=0, description="Number of trials per model before those that count.")
    cache: Literal["dynamic", "static"] = Field("dynamic", description="Kind of KV cache, in transformers' words.")
    no_memory: bool = Field(
        False, description="Leave out peak memory, for which every model is run in a process of its own on the CPU."
    )
    out: Path | None = Field(None, description="JSON file to write the results to, too.")
