"""First-order Taylor saliency (LLM-Pruner, arXiv:2305.11627, §3.2; Molchanov et al., arXiv:1611.06440).

I_j = |Σ_{w in unit j} w · ∂L/∂w|, L the mean next-token loss: the first-order change of the loss when the whole unit is
set to zero. This is LLM-Pruner's vector-wise importance with the coupled structure as the vector, so what its
matrices do to the loss may cancel; its element-wise importance takes the absolute value of every product, which is
`nirvana_loss`.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from tracenas.families import Block
from tracenas.models.surgery.ordering import Saliencies
from tracenas.saliency.nirvana import sequence_loss
from tracenas.saliency.products import mean_per_weight, unit_products

__all__ = ["saliency"]


def saliency(model: Any, blocks: Sequence[Block], tokens: Tensor, micro_batch: int) -> Saliencies:
    """|Σ w · ∂L/∂w| per unit, and its mean per weight of every sub-block."""
    signed = unit_products(model, blocks, tokens, micro_batch, sequence_loss, absolute=False)
    per_unit = {key: value.abs() for key, value in signed.items()}
    return per_unit, mean_per_weight(blocks, per_unit)
