"""What a GPU holds: the model as a whole where that fits, else its blocks one after the other (`--device-memory`)."""

import logging
from math import ceil
from typing import Any

import torch

from tracenas.config import SensitivityConfig, StageConfig
from tracenas.config.usage import needs, reads_widths, refits
from tracenas.errors import UserError
from tracenas.formats import data_size, parse_bytes
from tracenas.models.checkpoints.loading import pick_device, pick_dtype
from tracenas.models.checkpoints.source import ModelSource
from tracenas.saliency import PREDICTED_RISES
from tracenas.scoring.device_peaks import peaks
from tracenas.scoring.workload import Shape, default_micro_batch

__all__ = ["device_needs", "room_of", "streaming"]

_log = logging.getLogger("tracenas")

_SHARE = 0.9
"""Of what is free on a device, that `auto` takes."""


def streaming(source: ModelSource, config: StageConfig) -> bool:
    """Whether a command streams the blocks of a model through its device.

    Args:
        config: of a command that takes `device_memory`.

    Raises:
        UserError: for a limit on a CPU, or one below what the largest block needs.
    """
    limited: Any = config
    limit = limited.device_memory
    device, given = pick_device(config.device), parse_bytes(limit)
    there = room_of(device)
    if there is None:
        if given is not None:
            raise UserError(
                f"device-memory {limit}: of a GPU, and the device is {device}, whose memory is --host-memory's"
            )
        return False
    allowed = int(_SHARE * there[0]) if given is None else given
    whole, least = device_needs(source, config, device)
    if given is not None and allowed < least:
        accepted = f"{ceil(least / 2**20)}MiB"
        raise UserError(f"device-memory {limit}: too little for {source.name}; accepted: {accepted} or more")
    if given is not None and device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(min(1.0, given / there[1]), device)
    if whole <= allowed or source.is_encoder_decoder:
        return False
    _log.info(
        "blocks wait in host memory and are copied to %s one after the other: all at once take %s, of %s",
        device,
        data_size(whole),
        data_size(allowed),
    )
    return True


def room_of(device: torch.device) -> tuple[int, int] | None:
    """Bytes that are free on a device, and all that it has; None for the CPU."""
    return torch.cuda.mem_get_info(device) if device.type == "cuda" else None


def device_needs(source: ModelSource, config: StageConfig, device: torch.device) -> tuple[int, int]:
    """Bytes on the device at the peak: with the whole model there, and with its blocks streamed.

    Encoder–decoder models are not streamed: both are the same.
    """
    asked: Any = config
    blocks, space = source.blocks(), source.space()
    element, hidden = pick_dtype(config.dtype, device).itemsize, int(source.config["hidden_size"])
    length = getattr(config, "seq_len", None) or min(4096, source.positions)
    batch = getattr(config, "batch", None) or default_micro_batch(blocks, space.base, hidden, length, element, "cuda")
    cuts = hasattr(config, "saliency")
    traced = cuts and needs(getattr(config, "proxy", "loss"), "trace") and asked.proxy != "auto"
    shape = Shape(1, length, batch, asked.trace_rank if traced else None, element, "cuda")
    vocabulary = int(source.config["vocab_size"])
    whole, least = peaks(blocks, space, vocabulary, hidden, shape, cuts=cuts, measured=cuts and _measured(config))
    return (whole, whole) if source.is_encoder_decoder else (whole, least)


def _measured(config: StageConfig) -> bool:
    """Whether statistics of the output projections' inputs are made."""
    settings: Any = config
    return (
        isinstance(config, SensitivityConfig)
        or refits(config)
        or reads_widths(config)
        or settings.saliency in PREDICTED_RISES
    )
