"""What a training run is told: plain values, with the arithmetic of batches and of the learning rate."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from tracenas.errors import UserError

__all__ = [
    "LORA_BATCH",
    "SUSTAINED",
    "TrainSettings",
    "accumulation",
    "batch_and_steps",
    "default_batch",
    "largest_micro_batch",
    "learning_rate_factor",
]

LORA_BATCH = 16
"""Sequences per optimizer step of lora, where nothing is asked for."""
SUSTAINED = {"fp32": 0.7, "bf16": 0.5}
"""Share of the speed of such matrix products that trainings reach: 0.70 and 0.46 on a CPU (log, 2026-11-29)."""

_BATCH_TOKENS = 1 << 19
_LEAST_STEPS = 50
"""A batch of `_BATCH_TOKENS` tokens is smaller where there would be fewer steps than these."""


@dataclass(frozen=True)
class TrainSettings:
    """How the trainer trains; the counts are optimizer steps.

    Args:
        micro_batch: sequences per process and forward pass.
        accumulation: forward passes per step and process.
        learning_rate: the peak.
        warmup, decay: shares of `max_steps`; what is between them is stable.
        decay_form: of the last part, `linear` or `cosine`.
        clip: gradient norm; 0 does not clip.
        keep_last: newest checkpoints kept beside the best one.
        eval_every: 0: only when a checkpoint is saved.
        flops_per_token: of training, for the MFU; `peak_flops` per device, None where it is not known.
        report_to: names of transformers' integrations (`tensorboard`, `wandb`, `trackio`, `mlflow`), which call it
            `run_name`; `project`: trackio's, None for its own.
    """

    max_steps: int
    seed: int
    micro_batch: int
    accumulation: int
    learning_rate: float
    warmup: float = 0.05
    decay: float = 0.30
    decay_form: str = "linear"
    min_lr_ratio: float = 0.0
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    bf16: bool = False
    cpu: bool = False
    activation_checkpointing: bool = False
    fsdp: bool = False
    save_every: int = 100
    eval_every: int = 0
    log_every: int = 10
    keep_last: int = 2
    prefetch: bool = False
    keep_zeros: bool = False
    flops_per_token: float = 0.0
    peak_flops: float | None = None
    report_to: tuple[str, ...] = ()
    run_name: str | None = None
    project: str | None = None


def batch_and_steps(
    length: int,
    processes: int,
    *,
    tokens: int | None,
    max_steps: int | None,
    batch: int | None,
    at_once: int | None,
    lora: bool,
) -> tuple[int, int]:
    """Sequences per optimizer step and steps: those that were asked for, else what follows from the others.

    Args:
        length: tokens per sequence.
        tokens, max_steps: how long to train, one of them.
        batch: sequences per step, if it was asked for.
        at_once: sequences per forward pass and process, if they were asked for.
        lora: whether adapters are trained.
    """
    if batch is None:
        batch = LORA_BATCH if lora else default_batch(length, processes, tokens, at_once)
    if max_steps is None:
        assert tokens is not None  # one of the two is required
        max_steps = math.ceil(tokens / (batch * length))
    return batch, max_steps


def default_batch(seq_len: int, world: int, tokens: int | None, at_once: int | None) -> int:
    """Sequences per optimizer step where nothing is asked for: about half a million tokens, at least 50 steps.

    Args:
        world: processes; each takes as many.
        tokens: to train on in all, if that is known.
        at_once: sequences per forward pass and process, if they were asked for.
    """
    unit = world * (at_once or 1)
    wanted = _BATCH_TOKENS if tokens is None else min(_BATCH_TOKENS, tokens // _LEAST_STEPS)
    return unit * max(1, wanted // (seq_len * unit))


def largest_micro_batch(global_batch: int, world: int, seq_len: int, tokens: int) -> int:
    """The largest number of sequences up to `tokens` tokens with which the global batch can be reached.

    Raises:
        UserError: if the global batch is no multiple of the number of processes.
    """
    if global_batch % world:
        raise _unreachable(global_batch, 1, world)
    share = global_batch // world
    limit = max(1, min(share, tokens // seq_len))
    return next(size for size in range(limit, 0, -1) if share % size == 0)


def accumulation(global_batch: int, micro_batch: int, world: int) -> int:
    """Forward passes per step and process.

    Raises:
        UserError: if they cannot make up the global batch exactly.
    """
    at_once = micro_batch * world
    if global_batch % at_once:
        raise _unreachable(global_batch, micro_batch, world)
    return global_batch // at_once


def _unreachable(global_batch: int, micro_batch: int, world: int) -> UserError:
    at_once = micro_batch * world
    below, above = global_batch // at_once * at_once, -(-global_batch // at_once) * at_once
    near = f"{below} or {above}" if below else str(above)
    return UserError(
        f"global-batch {global_batch} cannot be reached: {world} process{'es' if world > 1 else ''} with batch "
        f"{micro_batch} take{'s' if world == 1 else ''} {at_once} sequences at once; accepted near it: {near}"
    )


def learning_rate_factor(settings: TrainSettings) -> Callable[[int], float]:
    """Warmup, stable, decay (Hu et al. 2024; TraceNAS Table 5: 0.05/0.65/0.30) as a factor of the peak.

    Linear warmup that ends at the peak, then constant, then down to `min_lr_ratio` just after the last step. No
    step has a rate of 0, so that short runs waste none.

    Raises:
        UserError: if warmup and decay are more than the whole.
    """
    total = settings.max_steps
    if settings.warmup + settings.decay > 1 + 1e-9:
        raise UserError(f"warmup {settings.warmup} and decay {settings.decay}: together at most 1")
    warmup, decay = round(settings.warmup * total), round(settings.decay * total)
    least = settings.min_lr_ratio

    def factor(step: int) -> float:
        if step < warmup:
            return least + (1 - least) * (step + 1) / warmup
        if step < total - decay:
            return 1.0
        rest = max(0, total - step) / (decay + 1)
        if settings.decay_form == "cosine":
            rest = 0.5 * (1 - math.cos(math.pi * rest))
        return least + (1 - least) * rest

    return factor
