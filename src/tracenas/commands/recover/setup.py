"""The settings of a recovery, completed and compared with the run that is resumed."""

import math
from dataclasses import fields

import torch

from tracenas.commands.recover.checks import FREE, SETTINGS, keeps_zeros, parse_tokens, teacher_name
from tracenas.config import RecoverConfig
from tracenas.data.sources import is_tokens
from tracenas.data.tokens import load_tokens
from tracenas.dtypes import short_name
from tracenas.errors import UserError
from tracenas.models.checkpoints.loading import LoadedModel, pick_device, pick_dtype
from tracenas.models.checkpoints.source import ModelSource
from tracenas.pipeline.resume import KIND, LEFT_OPEN, check_same, left_open, on_gpu, stored_settings, write_settings
from tracenas.recovery.settings import TrainSettings, accumulation, batch_and_steps, largest_micro_batch
from tracenas.recovery.throughput import flops_per_token, matrix_parameters, peak_flops
from tracenas.reporting.terminal import to_plain
from tracenas.reporting.tracking.destinations import PROJECT
from tracenas.threads import set_threads
from tracenas.world import World

__all__ = [
    "as_started",
    "keep_settings",
    "resolved",
    "train_settings",
    "with_stored",
]

_TOKENS_AT_ONCE = {"cpu": 4096, "cuda": 16384}


def resolved(config: RecoverConfig, source: ModelSource, world: World) -> RecoverConfig:
    """The settings with what `auto` and defaults come to."""
    device = pick_device(config.device)
    length = config.seq_len or min(4096, source.positions)
    if config.seq_len is None and is_tokens(config.data):
        length = load_tokens(config.data).shape[1]
    if length > source.positions:
        raise UserError(f"data {config.data}: sequences of {length} tokens, the model has {source.positions} positions")
    batch, max_steps = batch_and_steps(
        length,
        world.size,
        tokens=None if config.tokens is None else parse_tokens(config.tokens),
        max_steps=config.max_steps,
        batch=config.global_batch,
        at_once=config.batch,
        lora=config.method == "lora",
    )
    resolved_settings = {
        "max_steps": max_steps,
        "global_batch": batch,
        "device": device.type,
        "dtype": short_name(str(pick_dtype(config.dtype, device))),
        "seq_len": length,
        "batch": config.batch or largest_micro_batch(batch, world.size, length, _TOKENS_AT_ONCE[device.type]),
        "learning_rate": config.learning_rate or 1e-4,
        "save_every": config.save_every or max(1, math.ceil(max_steps / 10)),
        "teacher": teacher_name(config, source) if config.method == "distill" else config.teacher,
        "weight_decay": config.weight_decay if config.weight_decay is not None else 0.1 * (config.method != "lora"),
    }
    return config.model_copy(update=resolved_settings)


def with_stored(config: RecoverConfig) -> RecoverConfig:
    """The settings, those that are left open as the run that is gone on with has them."""
    stored = stored_settings(config.out / SETTINGS, type(config))
    return config.model_copy(
        update={k: stored[k] for k, v in config.model_dump().items() if v is None and k not in FREE and k in stored}
    )


def keep_settings(config: RecoverConfig, given: RecoverConfig) -> None:
    """Keep what the run is, for `as_started`, and what was left open in the settings as they were given."""
    stored = {**config.model_dump(), "threads": torch.get_num_threads()}
    unsaid = left_open(given.model_dump(), stored)
    write_settings(config.out / SETTINGS, {KIND: "recover", **stored, LEFT_OPEN: unsaid})


def as_started(config: RecoverConfig) -> RecoverConfig:
    """The stored run's settings; others than these are refused."""
    stored = stored_settings(config.out / SETTINGS, type(config))
    for key, value in to_plain(config.model_dump()).items():
        free = key in FREE or (key == "threads" and (value is None or on_gpu(stored)))
        if not free and key in stored:
            check_same(key.replace("_", "-"), stored[key], value)
    set_threads(config.threads if config.threads and on_gpu(stored) else stored.get("threads"))
    return config


def train_settings(
    config: RecoverConfig, world: World, loaded: LoadedModel, teacher: LoadedModel | None
) -> TrainSettings:
    """What the trainer is told."""
    assert config.batch and config.learning_rate and config.save_every and config.seq_len
    assert config.global_batch and config.max_steps
    assert config.weight_decay is not None
    settings = {
        field.name: getattr(config, field.name) for field in fields(TrainSettings) if hasattr(config, field.name)
    }
    size, width = matrix_parameters(loaded.model), _attention_width(loaded)
    forward = None if teacher is None else (matrix_parameters(teacher.model), _attention_width(teacher))
    operations = flops_per_token(size, width, config.seq_len, trained=config.method != "lora", teacher=forward)
    peak = config.peak_tflops * 1e12 if config.peak_tflops else peak_flops(pick_device(config.device))
    settings |= {
        "micro_batch": config.batch,
        "accumulation": accumulation(config.global_batch, config.batch, world.size),
        "bf16": config.dtype == "bf16",
        "cpu": config.device == "cpu",
        "keep_zeros": keeps_zeros(config, loaded.source) and config.method != "lora",
        "flops_per_token": operations,
        "peak_flops": peak,
        "report_to": config.trackers,
        "run_name": config.run_name or config.out.name,
        "project": PROJECT,
    }
    return TrainSettings(**settings)


def _attention_width(loaded: LoadedModel) -> int:
    """Σ over layers of heads × head width."""
    width = 0
    for block in loaded.blocks():
        layer = loaded.model.get_submodule(block.path)
        for sub in block.sub_blocks:
            if sub.spec.unit == "heads" and sub.spec.units:
                width += int(layer.get_submodule(sub.output).weight.shape[1])
    return width
