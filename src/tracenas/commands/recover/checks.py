"""What `tracenas recover` is asked for, checked without torch, so that wrong input is told at once."""

import importlib.util
import logging
import os
from pathlib import Path
from typing import Literal

from tracenas.config import RecoverConfig
from tracenas.data import hub
from tracenas.data.sources import is_tokens, parse_source, probe
from tracenas.errors import UserError
from tracenas.models.checkpoints.source import ModelSource, open_source
from tracenas.pipeline.resume import RECOVERY_CONFIG, check_same, stored_settings
from tracenas.recovery.card import base_model
from tracenas.recovery.settings import TrainSettings, accumulation, learning_rate_factor
from tracenas.reporting.terminal import to_plain
from tracenas.rundir import require_free, sweep
from tracenas.space.constraints import parse_count
from tracenas.world import World

__all__ = [
    "FREE",
    "SETTINGS",
    "check_finished",
    "check_input",
    "check_out",
    "keeps_zeros",
    "parse_tokens",
    "split_name",
    "teacher_name",
]

_log = logging.getLogger("tracenas")
SETTINGS = RECOVERY_CONFIG
SPARSITY = "sparsity.json"
FREE = ("resume", "out", "report_to", "run_name", "keep_checkpoints", "keep_last", "prefetch", "shard_size")
"""Settings that may differ when a run is gone on with: its result does not depend on them."""


def check_input(config: RecoverConfig, source: ModelSource, world: World) -> None:
    """Everything that can be told without torch."""
    if config.method != "lora":
        probe(config.text_field, config.data, config.validation)
    for data in (config.data, config.validation):
        if data is not None and Path(data).exists():
            parse_source(data)
    if config.method == "lora" and is_tokens(config.data):
        raise UserError(f"data '{config.data}' holds token ids; lora needs prompts and responses")
    probe(config.text_field, config.text)
    _check_splits(config)
    _say_if_trained_on(config)
    if config.seq_len is not None and config.seq_len > source.positions:
        raise UserError(f"seq-len {config.seq_len}: the model has {source.positions} positions")
    if config.global_batch is not None:
        accumulation(config.global_batch, config.batch or 1, world.size)
    if config.tokens is not None:
        parse_tokens(config.tokens)
    _ = config.trackers  # those that are unknown or not installed are refused
    if config.method == "lora" and importlib.util.find_spec("peft") is None:
        raise UserError("--method lora needs peft: pip install peft")
    if config.method == "distill":
        open_source(teacher_name(config, source), decoder_only="recover (its teacher)")
    learning_rate_factor(TrainSettings(config.max_steps or 1, 0, 1, 1, 1.0, config.warmup, config.decay))
    if config.asks_for("keep_zeros") and not (source.path / SPARSITY).is_file():
        raise UserError(f"keep-zeros is not used here: {config.model} has no {SPARSITY}; leave it out")
    if config.dtype == "fp16":
        raise UserError("dtype fp16: too narrow for the gradients of training; accepted: auto, fp32, bf16")
    if config.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true"):
        _check_fsdp(config, world)


def _check_fsdp(config: RecoverConfig, world: World) -> None:
    import torch

    if config.device == "cpu" or not torch.cuda.is_available():
        raise UserError(
            "fsdp shards over GPUs, and none is used here: leave it out (several CPU processes train as DDP)"
        )
    if "RANK" not in os.environ and world.size < 2:
        raise UserError("fsdp needs several processes: torchrun --nproc-per-node N -m tracenas recover …")


def teacher_name(config: RecoverConfig, source: ModelSource) -> str:
    """The teacher that is named, else the base that the checkpoint's README.md names.

    Raises:
        UserError: if there is none, or it is not here.
    """
    if config.teacher is not None:
        return config.teacher
    base = base_model(source.path)
    if base is None:
        raise UserError(f"'teacher' is required: {config.model} does not say in its README.md what it was pruned from")
    if "/" in base.strip("/") or Path(base).is_dir():
        return base
    if (beside := source.path.parent / base).is_dir():
        return str(beside)
    raise UserError(f"'teacher' is required: the base that {config.model} names, {base}, is not here or beside it")


def parse_tokens(text: str) -> int:
    """A number of tokens: `50M`, `1.5B`, `200k` or a plain count.

    Raises:
        UserError: if it is none of these.
    """
    count = parse_count(text)
    if count is None or count < 1:
        raise UserError(f"tokens '{text}': expected a count such as 50M, 1.5B or 200k")
    return count


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


def check_finished(config: RecoverConfig) -> None:
    """Refuse to call a run finished that has other settings than are asked for now; when it saved does not matter.

    Raises:
        UserError: naming the first that differs.
    """
    stored = stored_settings(config.out / SETTINGS, type(config))
    for key, value in to_plain(config.model_dump()).items():
        if key in stored and key not in (*FREE, "threads", "save_every") and value not in (None, "auto"):
            check_same(key.replace("_", "-"), stored[key], value)


def split_name(source: str, use: Literal["validation", "held_out"]) -> str:
    """A file as it is given, a data set with the split that is read."""
    return source if Path(source).exists() else str(hub.parse(source, use=use))


def _check_splits(config: RecoverConfig) -> None:
    """Refuse to report what the checkpoint is chosen by.

    Raises:
        UserError: if both are the same file, or the same split of a data set.
    """
    chooser, reported = config.validation, config.text
    if chooser is None or reported is None:
        return
    names = split_name(chooser, "validation"), split_name(reported, "held_out")
    files = Path(chooser), Path(reported)
    if names[0] == names[1] or (all(f.exists() for f in files) and files[0].samefile(files[1])):
        raise UserError(
            f"validation and text are both {names[1]}: what chooses the checkpoint must not be what is reported; "
            "leave validation out to have it split off the data"
        )


def _say_if_trained_on(config: RecoverConfig) -> None:
    """Warn of a file that is trained on and measured on."""
    data = Path(config.data)
    for name, measured in (("validation", config.validation), ("text", config.text)):
        if measured is not None and data.exists() and Path(measured).exists() and data.samefile(measured):
            _log.warning("%s %s is what is trained on: its losses say nothing of other text", name, measured)


def keeps_zeros(config: RecoverConfig, source: ModelSource) -> bool:
    """Whether this is a sparse checkpoint whose zeros are to stay."""
    return config.keep_zeros and (source.path / SPARSITY).is_file()
