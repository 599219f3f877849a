"""What a training will come to, told before its first step."""

import torch

from tracenas.benchmark.machine import product_flops
from tracenas.config import RecoverConfig
from tracenas.formats import duration, plural
from tracenas.models.checkpoints.loading import pick_device
from tracenas.recovery.settings import SUSTAINED, TrainSettings

__all__ = ["expectation"]


def expectation(settings: TrainSettings, config: RecoverConfig, processes: int) -> str:
    """Tokens per step and in all, and an estimate of the time, from what this machine manages in matrix products."""
    assert config.global_batch and config.seq_len
    per_step = config.global_batch * config.seq_len
    dtype = torch.bfloat16 if settings.bf16 else torch.float32
    share = SUSTAINED["bf16" if settings.bf16 else "fp32"]
    rate = share * product_flops(pick_device(config.device), dtype) * processes
    step = settings.flops_per_token * per_step / rate
    return (
        f"recover: {plural(settings.max_steps, 'step')} of {per_step:,} tokens "
        f"({config.global_batch:,} × {config.seq_len:,}), {settings.max_steps * per_step:,} in all; "
        f"estimate: {duration(step)} per step, {duration(settings.max_steps * step)} in all"
    )
