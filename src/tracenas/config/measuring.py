"""Settings of eval and bench."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from tracenas.config import fields
from tracenas.config.accepted import Accepts
from tracenas.config.shared import StageConfig, WindowsConfig
from tracenas.config.usage import Use
from tracenas.errors import UserError
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
    host_memory: fields.HostMemory = "auto"
    device_memory: fields.DeviceMemory = "auto"


class BenchConfig(StageConfig):
    """Latency, throughput and memory of one or more models."""

    wanted = ("backend", "prompt", "new_tokens", "batch", "trials", "out", "device")
    uses = (
        Use(("outtype", "llama_python"), "backend llama.cpp", lambda c: c.backend == "llama.cpp"),
        Use(("dtype", "trust_remote_code"), "backend torch, torch-compile or vllm", lambda c: c.backend != "llama.cpp"),
        Use(("vllm_python", "enforce_eager"), "backend vllm", lambda c: c.backend == "vllm"),
        Use(("no_memory",), "another backend than vllm, of which it is not measured", lambda c: c.backend != "vllm"),
        Use(("cache",), "backend torch (compiled blocks have a static one)", lambda c: c.backend == "torch"),
    )
    former: ClassVar[Mapping[str, str]] = {**StageConfig.former, "batch_size": "batch"}

    models: Annotated[tuple[str, ...], Accepts(file=True)] = Field(
        description="One or more models: directories, .gguf files or hub ids; the others are compared to the first.",
        min_length=1,
    )
    backend: Literal["torch", "torch-compile", "llama.cpp", "vllm"] = Field(
        "torch", description="What runs the models; llama.cpp through llama-cpp-python."
    )
    outtype: Literal["auto", "f32", "f16", "bf16", "q8_0"] = Field(
        "auto",
        description="What matrices are stored in for llama.cpp, as in `tracenas export`; auto: as the model's own.",
    )
    llama_python: fields.LlamaPython = None
    vllm_python: fields.VllmPython = None
    enforce_eager: fields.EnforceEager = False
    prompt: int | None = Field(
        None, ge=1, description="Tokens of the prompt; default: 4096, or what the models' positions leave room for."
    )
    new_tokens: int = Field(128, ge=2, description="Tokens generated after the prompt.")
    batch: Annotated[fields.CommaList, Accepts(metavar="N", several=True)] = Field(
        "1",
        description="Sequences generated at once; several numbers, such as 1,8,32, are measured one after the other.",
    )
    trials: int = Field(20, ge=1, description="Number of trials per model; the models take turns.")
    warmup: int = Field(2, ge=0, description="Number of trials per model before those that count.")
    cache: Literal["dynamic", "static"] = Field("dynamic", description="Kind of KV cache, in transformers' words.")
    no_memory: bool = Field(
        False, description="Leave out peak memory, for which every model is run in a process of its own on the CPU."
    )
    out: Path | None = Field(None, description="JSON file to write the results to, too.")

    @model_validator(mode="after")
    def _check_warmup(self) -> "BenchConfig":
        if self.backend == "torch-compile" and not self.warmup:
            raise UserError(
                "warmup 0: torch-compile compiles in the first turn, which must not count; expected 1 or more"
            )
        return self

    @field_validator("batch")
    @classmethod
    def _check_batch(cls, text: str) -> str:
        for part in text.split(","):
            if not part.strip().isdigit() or int(part) < 1:
                raise UserError(
                    f"batch '{part.strip()}': expected numbers from 1 up, separated by commas, such as 1,8,32"
                )
        return text

    @property
    def batches(self) -> tuple[int, ...]:
        """`batch` as numbers."""
        return tuple(dict.fromkeys(int(part) for part in self.batch.split(",")))

    @property
    def kv_cache(self) -> Literal["dynamic", "static"]:
        """The kind of KV cache in PyTorch."""
        return "static" if self.backend == "torch-compile" else self.cache
