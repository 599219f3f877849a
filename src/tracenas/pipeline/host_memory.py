"""Where weights lie, and what is as large: in memory where all of it fits, else in mapped files (`--host-memory`)."""

import logging
from typing import Any

from tracenas.config import StageConfig
from tracenas.errors import UserError
from tracenas.formats import data_size, parse_bytes
from tracenas.models.checkpoints.loading import pick_device, pick_dtype
from tracenas.models.checkpoints.source import ModelSource
from tracenas.paging import Keep, in_memory, paged
from tracenas.pipeline.refit import STATISTICS_TOKENS
from tracenas.pipeline.workers import local_workers
from tracenas.refits.costs import LIBRARIES, least_memory, refit_memory
from tracenas.resident import host_memory
from tracenas.shared_tensors import in_files

__all__ = ["FEWER_TOKENS", "keeping"]

_log = logging.getLogger("tracenas")

FEWER_TOKENS = 512
"""Of a forward pass, where memory is short."""
_SHARE = 0.8
"""Of this machine's memory, that `auto` takes."""


def keeping(source: ModelSource, config: StageConfig) -> Keep:
    """Where a command keeps the weights of a model and the factors of its refits.

    Args:
        config: of a command that takes `host_memory`.

    Raises:
        UserError: for a limit that is too small, whatever waits in files; where weights wait there, and several
            workers are to share them.
    """
    limited: Any = config
    given = parse_bytes(limit := limited.host_memory)
    if given is not None and given < (least := least_memory(source.blocks(), STATISTICS_TOKENS)):
        raise UserError(f"host-memory {limit}: too little for {source.name}; accepted: {data_size(least)} or more")
    machine, needed = host_memory(), _needed(source, config)
    if needed <= (given or (needed if machine is None else _SHARE * machine)):
        return in_memory
    if hasattr(config, "workers") and (workers := local_workers(config)) > 1:
        raise in_files(workers)
    _log.info("weights and factors of refits wait in temporary files: %s in all", data_size(needed))
    return paged


def _needed(source: ModelSource, config: StageConfig) -> int:
    """Bytes if nothing waits in files."""
    where = pick_device(config.device)
    element = pick_dtype(config.dtype, where).itemsize
    blocks, space = source.blocks(), source.space()
    weights = space.parameters(space.base) * element if where.type == "cpu" else 0
    return LIBRARIES + weights + refit_memory(blocks, STATISTICS_TOKENS, element)
