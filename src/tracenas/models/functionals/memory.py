"""Passes that may run out of memory: what a failed one held is free before anything else is tried."""

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

from tracenas.error_log import log_failure
from tracenas.errors import UserError, first_line
from tracenas.resident import available_memory

__all__ = ["FAILURES", "attempt", "failure", "free_memory", "within_memory"]

FAILURES = (RuntimeError, ValueError, IndexError)
"""What costs a candidate, not the run: out of memory and shape errors of torch, and undefined proxies."""

T = TypeVar("T")


def free_memory(device: torch.device) -> int | None:
    """Bytes that a process could take on a device; None where the system does not say."""
    if device.type != "cuda":
        return available_memory()
    free, whole = torch.cuda.mem_get_info(device)
    allowed = int(torch.cuda.get_per_process_memory_fraction(device) * whole)  # what `--device-memory` leaves
    return max(0, min(free, allowed - torch.cuda.memory_allocated(device)))


def failure(error: BaseException) -> str:
    """One line on what went wrong; the traceback is kept where a log is."""
    line = first_line(error)[:200]
    if type(error).__name__ == "Undefined":
        return line
    log_failure(error)
    return f"{type(error).__name__}: {line}"


def attempt(work: Callable[[], T], device: torch.device) -> tuple[T | None, str | None]:
    """What `work` returns, or None and one line on why it failed.

    An exception holds the frames of the failed pass, and they its activations: memory is cleared once it is gone.
    """
    try:
        return work(), None
    except FAILURES as error:
        reason = failure(error)
    _clear_memory(device)
    return None, reason


def within_memory(
    work: Callable[[], T], probe: Callable[[int], object], *, what: str, micro_batch: int, device: torch.device
) -> T:
    """What `work` returns.

    Args:
        work: a pass with `micro_batch` sequences at a time.
        probe: runs one pass of so many sequences.
        what: names the pass in the message.

    Raises:
        UserError: if it runs out of memory; it says how many sequences per pass fit, tried by halving.
    """
    try:
        return work()
    except RuntimeError as error:
        if not _out_of_memory(error):
            raise
    _clear_memory(device)
    trouble, smaller = f"{what} needs more memory than {device} has with batches of {micro_batch}", micro_batch // 2
    while smaller:
        if attempt(lambda count=smaller: (probe(count),), device)[0] is not None:  # type: ignore[misc]
            raise UserError(f"{trouble}: --batch {smaller} fits")
        smaller //= 2
    raise UserError(f"{trouble}, nor do smaller ones fit: take a shorter --seq-len, or --dtype bf16")


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _clear_memory(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
