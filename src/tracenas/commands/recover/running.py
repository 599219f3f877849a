"""A recovery from its settings to the written checkpoint."""

import gc
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from tracenas.commands.recover.checks import SETTINGS, check_out
from tracenas.commands.recover.data import recovery_data
from tracenas.commands.recover.expectation import expectation
from tracenas.commands.recover.result import Recovered
from tracenas.commands.recover.setup import as_started, keep_settings, resolved, train_settings, with_stored
from tracenas.config import RecoverConfig
from tracenas.errors import UserError
from tracenas.models.checkpoints.loading import LoadedModel, load
from tracenas.models.checkpoints.source import ModelSource, open_source
from tracenas.paging import Keep, in_memory, on_disk, paged
from tracenas.pipeline.loading import loading
from tracenas.reporting.progress import START, phase
from tracenas.resident import give_back, host_memory
from tracenas.threads import set_threads
from tracenas.world import World

__all__ = ["run"]

_log = logging.getLogger("tracenas")
_TRAINING = 16
"""Bytes per trained parameter: weights, gradients and two moments of AdamW in float32."""
_SHARE = 0.8
"""Of this machine's memory."""


def run(
    config: RecoverConfig, source: ModelSource, world: World, on_step: Callable[[int, int], None] | None = None
) -> Recovered:
    """Start or resume the training in `config.out` and write its result.

    Raises:
        UserError: as `recover`.
    """
    begun = check_out(config) if world.is_main else (config.out / SETTINGS).is_file()
    given = config
    config = resolved(with_stored(config) if begun else config, source, world)
    set_threads(config.threads)
    if begun:
        config = as_started(config)
    trained_dtype = config.dtype if config.method == "lora" else "fp32"
    with loading(source):
        loaded = load(source, device="cpu", dtype=trained_dtype, trust_remote_code=config.trust_remote_code)
    with phase("read text"):
        data = recovery_data(config, loaded)
    teacher = _load_teacher(config, source)
    if world.is_main:
        config.out.mkdir(parents=True, exist_ok=True)
        if not begun:
            keep_settings(config, given)
    settings = train_settings(config, world, loaded, teacher)
    if world.is_main:
        _log.info("%s", expectation(settings, config, world.size))
    source = loaded.source  # of a GGUF file: the whole configuration, which its header does not have
    with phase(START):
        from tracenas.commands.recover.training import finish, train  # transformers' Trainer takes seconds to import

    train(config, settings, loaded, data, teacher, on_step)
    del loaded, teacher  # before what is written is loaded
    gc.collect()
    give_back()
    return finish(config, source, world, data)


def _load_teacher(config: RecoverConfig, source: ModelSource) -> LoadedModel | None:
    if config.method != "distill":
        return None
    assert config.teacher is not None
    teacher = open_source(config.teacher, decoder_only="recover (its teacher)")
    vocabulary, other = int(source.config["vocab_size"]), int(teacher.config["vocab_size"])
    if vocabulary != other:
        raise UserError(f"teacher {config.teacher}: its vocabulary has {other} tokens, the model's {vocabulary}")
    if config.top_k >= vocabulary:
        raise UserError(f"top-k {config.top_k}: the vocabulary has {vocabulary} tokens")
    if (config.seq_len or 0) > teacher.positions:
        raise UserError(f"seq-len {config.seq_len}: the teacher has {teacher.positions} positions")
    with loading(teacher):
        remote = config.trust_remote_code
        return load(teacher, device="cpu", dtype=config.dtype, trust_remote_code=remote, keep=_keeping(source, teacher))


def _keeping(source: ModelSource, teacher: ModelSource) -> Keep:
    """Where a teacher's weights lie: in mapped files where there is no room for them beside the training."""
    machine, each = host_memory(), 2 if torch.cuda.is_available() else 4
    needed = sum(count * size for count, size in ((_parameters(source), _TRAINING), (_parameters(teacher), each)))
    if machine is None or needed <= _SHARE * machine or not on_disk(Path(tempfile.gettempdir())):
        return in_memory
    _log.info("the teacher's weights wait in temporary files: there is no room for them beside the training")
    return paged


def _parameters(source: ModelSource) -> int:
    space = source.space()
    return space.parameters(space.base)
