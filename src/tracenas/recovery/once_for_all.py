"""Once-for-all tuning: one shared LoRA, trained so that every candidate of a super-network gains (TraceNAS §4.2).

Each step sums the gradients of the largest, of the smallest and of some random candidates on the same batch (the
sandwich rule), divided by their number, and updates the shared adapters once.
"""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from tracenas.models.functionals.loss import gradient_scale
from tracenas.models.surgery.shared_lora import SharedLora
from tracenas.models.surgery.supernet import Supernet
from tracenas.recovery.short import ShortSettings, next_token_loss, warmed_batches
from tracenas.space.architecture import Architecture

__all__ = ["tune_once_for_all"]


def tune_once_for_all(
    net: Supernet,
    lora: SharedLora,
    batches: Iterable[Tensor],
    steps: int,
    draw: Callable[[], Sequence[Architecture]],
    settings: ShortSettings,
    advance: Callable[[], None] = lambda: None,
) -> None:
    """Train the adapters in place; the super-network's own weights have no gradient.

    Args:
        batches: one [B, L] of token ids per step.
        draw: the candidates of a step.

    Raises:
        ValueError: if there are fewer batches than steps, or a loss is not finite.
    """
    parameters = lora.parameters
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, betas=settings.betas, weight_decay=0.0)
    for step, batch in warmed_batches(batches, steps, optimizer, settings, warmup=steps):
        candidates, scale = draw(), gradient_scale(net.model, batch.numel())
        for arch in candidates:
            for part in batch.split(settings.micro_batch):
                with net.realise(arch) as model, torch.enable_grad(), lora.attached(arch):
                    loss = next_token_loss(model, part) * (len(part) / len(batch) / len(candidates))
                    if not math.isfinite(float(loss.detach())):
                        raise ValueError(f"loss is not finite at step {step} of the once-for-all tuning")
                    (loss * scale).backward()
        for parameter in parameters if scale != 1 else ():
            if parameter.grad is not None:
                parameter.grad.div_(scale)
        if settings.clip:
            nn.utils.clip_grad_norm_(parameters, settings.clip)
        optimizer.step()
        advance()
