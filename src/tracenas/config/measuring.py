"""Settings of eval and bench."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from tracenas.config import fields
from tracenas.config.shared import StageConfig, WindowsConfig
from tracenas.config.usage import Use

__all__ = ["BenchConfig", "EvalConfig"]


def _without_shots(config: Any) -> bool:
    return bool(config.suite) or any(":" not in name for name in (config.tasks or "").split(","))


class EvalConfig(WindowsConfig):
    """Perplexity and task accuracy of one or more models."""

    without = ("seed",)
    uses = (
        Use(("seq_len", "max_windows", "text_field", "micro_batch"), "text", lambda c: c.text is not None),
        Use(("limit", "batch_size", "shots"), "tasks or suite", lambda c: bool(c.tasks or c.suite)),
        Use(("shots",), "a task that names no number itself", _without_shots),
    )

    models: tuple[str, ...] = Field(description="Model directories, .gguf files or hub ids.", min_length=1)
    text: str | None = Field(None, description="Held-out text for a perplexity: a file, wikitext2, or a token file.")
    seq_len: int | None = Field(
        None, ge=2, description="Window length; default min(4096, the smallest model's positions)."
    )
    max_windows: int | None = Field(None, ge=1, description="Use no more than this many windows.")
    text_field: fields.TextField = None
    micro_batch: int | None = Field(None, ge=1, description="Windows per forward pass; default: up to 4,096 tokens.")
    tasks: fields.CommaList | None = Field(
        None, description="Tasks of lm-eval, such as piqa,arc_challenge:25 (25 examples each)."
    )
    suite: str | None = Field(None, description="paper: the nine tasks of TraceNAS with the paper's shots.")
    task_data: Path | None = Field(
        None, description="Folder with TASK/SPLIT.jsonl, instead of fetching the tasks' data."
    )
    shots: int | None = Field(None, ge=0, description="Examples before every question, for tasks that name no number.")
    limit: int | None = Field(None, ge=1, description="Questions per task.")
    batch_size: int = Field(8, ge=1, description="Answers scored per forward pass.")
    out: Path | None = Field(None, description="File to write the results to, JSON.")


class BenchConfig(StageConfig):
    """Latency, throughput and memory of one or more models."""

    models: tuple[str, ...] = Field(
        description="Model directories, .gguf files or hub ids; the first is the base.", min_length=1
    )
    prompt: int | None = Field(None, ge=1, description="Prompt tokens; default min(4096, positions - new tokens).")
    new_tokens: int = Field(128, ge=2, description="Tokens generated after the prompt.")
    batch_size: int = Field(1, ge=1, description="Sequences at once.")
    trials: int = Field(20, ge=1, description="Trials per model, in turns.")
    warmup: int = Field(2, ge=0, description="Turns before the trials that do not count.")
    cache: Literal["dynamic", "static"] = Field("dynamic", description="KV-cache: dynamic or static.")
    no_memory: bool = Field(False, description="Leave out peak memory (on the CPU it takes a process per model).")
    out: Path | None = Field(None, description="File to write the results to, JSON.")
