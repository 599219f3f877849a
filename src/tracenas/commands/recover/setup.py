"""What `tracenas recover` is asked for: checked, completed and compared with the run that is resumed."""

import importlib.util
import math
import os
from dataclasses import fields
from pathlib import Path

import torch

from tracenas.commands.recover.data import check_splits
from tracenas.config import RecoverConfig
from tracenas.data.sources import is_tokens, parse_source, probe
from tracenas.data.tokens import load_tokens
from tracenas.dtypes import short_name
from tracenas.errors import UserError
from tracenas.models.checkpoints.loading import LoadedModel, pick_device, pick_dtype
from tracenas.models.checkpoints.source import ModelSource, open_source
from tracenas.pipeline.resume import check_same, write_settings
from tracenas.pipeline.run_directory import KIND
from tracenas.recovery.card import base_model
from tracenas.recovery.settings import TrainSettings, accumulation, largest_micro_batch, learning_rate_factor
from tracenas.recovery.throughput import flops_per_token, matrix_parameters, peak_flops
from tracenas.reporting.terminal import to_plain
from tracenas.rundir import require_free, sweep
from tracenas.settings import read_settings
from tracenas.threads import set_threads
from tracenas.world import World

__all__ = [
    "SETTINGS",
    "SPARSITY",
    "as_started",
    "check_input",
    "check_out",
    "keep_settings",
    "keeps_zeros",
    "resolved",
    "train_settings",
]

SETTINGS = "recover.yaml"
SPARSITY = "sparsity.json"
_FREE = ("resume", "out", "report_to", "run_name", "keep_checkpoints", "keep_last", "prefetch", "shard_size")
_TOKENS_AT_ONCE = {"cpu": 4096, "cuda": 16384}
_REPORTERS = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",), "trackio": ("trackio",)}


def check_input(config: RecoverConfig, source: ModelSource, world: World) -> None:
    """Everything that can be told without torch."""
    if config.method != "lora":
        probe(config.text_field, config.data, config.validation)
    for data in (config.data, config.validation):
        if data is not None and Path(data).exists():
            parse_source(data)
    if config.method == "lora" and is_tokens(config.data):
        raise UserError(f"data '{config.data}' holds token ids; lora needs prompts and responses")
    probe(config.text_field, config.eval_text)
    check_splits(config)
    if config.seq_len is not None and config.seq_len > source.positions:
        raise UserError(f"seq-len {config.seq_len}: the model has {source.positions} positions")
    accumulation(config.global_batch, config.micro_batch or 1, world.size)
    for name in _reporters(config):
        if name not in _REPORTERS:
            raise UserError(f"report-to '{name}': accepted: {', '.join(_REPORTERS)}")
        if not any(importlib.util.find_spec(module) for module in _REPORTERS[name]):
            raise UserError(f"report-to '{name}': not installed: pip install {_REPORTERS[name][0]}")
    if config.method == "lora" and importlib.util.find_spec("peft") is None:
        raise UserError("--method lora needs peft: pip install peft")
    if config.method == "distill":
        open_source(_teacher_name(config, source), decoder_only="recover (its teacher)")
    learning_rate_factor(TrainSettings(config.max_steps, 0, 1, 1, 1.0, config.warmup, config.decay))
    if config.asks_for("keep_zeros") and (source.path is None or not (source.path / SPARSITY).is_file()):
        raise UserError(f"keep-zeros is not used here: {config.model} has no {SPARSITY}; leave it out")
    if config.dtype == "fp16":
        raise UserError("dtype fp16: too narrow for the gradients of training; accepted: auto, fp32, bf16")
    if config.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true"):
        _check_fsdp(config, world)


def _check_fsdp(config: RecoverConfig, world: World) -> None:
    if config.device == "cpu" or not torch.cuda.is_available():
        raise UserError(
            "fsdp shards over GPUs, and none is used here: leave it out (several CPU processes train as DDP)"
        )
    if "RANK" not in os.environ and world.size < 2:
        raise UserError("fsdp needs several processes: torchrun --nproc-per-node N -m tracenas.cli recover …")


def _reporters(config: RecoverConfig) -> tuple[str, ...]:
    return tuple(name.strip() for name in config.report_to.split(",") if name.strip() and name.strip() != "none")


def _teacher_name(config: RecoverConfig, source: ModelSource) -> str:
    if config.teacher is not None:
        return config.teacher
    base = base_model(source.path) if source.path is not None else None
    if base is None:
        raise UserError(f"'teacher' is required: {config.model} does not say in its README.md what it was pruned from")
    if "/" in base.strip("/") or Path(base).is_dir():
        return base
    if source.path is not None and (beside := source.path.parent / base).is_dir():
        return str(beside)
    raise UserError(f"'teacher' is required: the base that {config.model} names, {base}, is not here or beside it")


def check_out(config: RecoverConfig) -> bool:
    """Whether `out` holds a run to go on with."""
    if config.resume:
        sweep(config.out)
    if (config.out / SETTINGS).is_file():
        if not config.resume:
            raise UserError(f"output directory {config.out} holds a run; go on with --resume, or choose another")
        return True
    require_free(config.out)
    return False


def resolved(config: RecoverConfig, source: ModelSource, world: World) -> RecoverConfig:
    """The settings with what `auto` and defaults come to."""
    device = pick_device(config.device)
    length = config.seq_len or min(4096, source.positions)
    if config.seq_len is None and is_tokens(config.data):
        length = load_tokens(config.data).shape[1]
    if length > source.positions:
        raise UserError(f"data {config.data}: sequences of {length} tokens, the model has {source.positions} positions")
    resolved_settings = {
        "device": device.type,
        "dtype": short_name(str(pick_dtype(config.dtype, device))),
        "seq_len": length,
        "micro_batch": config.micro_batch
        or largest_micro_batch(config.global_batch, world.size, length, _TOKENS_AT_ONCE[device.type]),
        "learning_rate": config.learning_rate or 1e-4,
        "save_every": config.save_every or max(1, math.ceil(config.max_steps / 10)),
        "teacher": _teacher_name(config, source) if config.method == "distill" else config.teacher,
        "weight_decay": config.weight_decay if config.weight_decay is not None else 0.1 * (config.method != "lora"),
    }
    return config.model_copy(update=resolved_settings)


def keep_settings(config: RecoverConfig) -> None:
    """Keep what the run is, for `as_started`."""
    stored = {KIND: "recover", **config.model_dump(), "threads": torch.get_num_threads()}
    write_settings(config.out / SETTINGS, stored)


def as_started(config: RecoverConfig) -> RecoverConfig:
    """The stored run's settings; others than these are refused."""
    stored = read_settings(config.out / SETTINGS)
    for key, value in to_plain(config.model_dump()).items():
        if key not in _FREE and key in stored and (key != "threads" or value is not None):
            check_same(key.replace("_", "-"), stored[key], value)
    set_threads(stored.get("threads"))
    return config


def train_settings(
    config: RecoverConfig, world: World, loaded: LoadedModel, teacher: LoadedModel | None
) -> TrainSettings:
    """What the trainer is told."""
    assert config.micro_batch and config.learning_rate and config.save_every and config.seq_len
    assert config.weight_decay is not None
    settings = {
        field.name: getattr(config, field.name) for field in fields(TrainSettings) if hasattr(config, field.name)
    }
    size, width = matrix_parameters(loaded.model), _attention_width(loaded)
    forward = None if teacher is None else (matrix_parameters(teacher.model), _attention_width(teacher))
    operations = flops_per_token(size, width, config.seq_len, trained=config.method != "lora", teacher=forward)
    peak = config.peak_tflops * 1e12 if config.peak_tflops else peak_flops(pick_device(config.device))
    settings |= {
        "accumulation": accumulation(config.global_batch, config.micro_batch, world.size),
        "bf16": config.dtype == "bf16",
        "cpu": config.device == "cpu",
        "keep_zeros": keeps_zeros(config, loaded.source) and config.method != "lora",
        "flops_per_token": operations,
        "peak_flops": peak,
        "report_to": _reporters(config),
    }
    return TrainSettings(**settings)


def keeps_zeros(config: RecoverConfig, source: ModelSource) -> bool:
    """Whether this is a sparse checkpoint whose zeros are to stay."""
    return config.keep_zeros and source.path is not None and (source.path / SPARSITY).is_file()


def _attention_width(loaded: LoadedModel) -> int:
    """Σ over layers of heads × head width."""
    width = 0
    for block in loaded.blocks():
        layer = loaded.model.get_submodule(block.path)
        for sub in block.sub_blocks:
            if sub.spec.unit == "heads" and sub.spec.units:
                width += int(layer.get_submodule(sub.output).weight.shape[1])
    return width
