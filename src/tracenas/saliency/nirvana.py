"""NTK-Adam saliency (NIRVANA, arXiv:2509.14230): the first-order effect of a unit's weights under sign descent.

s_j = Σ_{w in unit j} |w · ∂f/∂w| over all projections of the sub-block (q, k, v, o slices of an attention unit; gate,
up, down slices of a channel). Under Adam a step moves every weight by about the learning rate whatever the size of
its gradient, so the neural tangent kernel of the update is the sum of |∂f/∂w|, and |w · ∂f/∂w| is what removing w
does to it.

f as published: the mean over sequences and vocabulary of the logit that is largest over the positions
(`nirvana`); or the mean next-token loss (`nirvana_loss`).
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from tracenas.families import Block
from tracenas.models.functionals.loss import next_token_nll
from tracenas.models.functionals.max_logit import max_logit
from tracenas.models.surgery.ordering import Saliencies
from tracenas.saliency.products import Functional, mean_per_weight, unit_products

__all__ = ["loss_saliency", "saliency", "sequence_loss"]


def sequence_loss(model: Any, input_ids: Tensor) -> Tensor:
    """Mean next-token loss of every sequence, [B], nats."""
    return next_token_nll(model, input_ids).mean(dim=1)


def saliency(model: Any, blocks: Sequence[Block], tokens: Tensor, micro_batch: int) -> Saliencies:
    """Σ |w · ∂f/∂w| per unit, f the published functional, and its mean per weight of every sub-block."""
    return _saliency(model, blocks, tokens, micro_batch, max_logit)


def loss_saliency(model: Any, blocks: Sequence[Block], tokens: Tensor, micro_batch: int) -> Saliencies:
    """The same with f = the mean next-token loss."""
    return _saliency(model, blocks, tokens, micro_batch, sequence_loss)


def _saliency(
    model: Any, blocks: Sequence[Block], tokens: Tensor, micro_batch: int, functional: Functional
) -> Saliencies:
    per_unit = unit_products(model, blocks, tokens, micro_batch, functional)
    return per_unit, mean_per_weight(blocks, per_unit)
