"""Floating-point operations of one token that attends to `--context` tokens.

Counted as torch.utils.flop_counter does: 2 per multiply-add of matrix products and attention, the head's among them;
norms, activations and the softmax are left out. A prefill of so many tokens costs as much per token by that counter,
which counts what the causal mask hides, too.
"""

from functools import partial

from tracenas.budgets.kind import Counted, Kind
from tracenas.space.costs import Cost
from tracenas.space.sub_block import SubBlockSpec

__all__ = ["FLOPS"]


def _flops(model: Counted) -> Cost:
    head = 2 * model.source.family.head_weights(model.source.config)
    return Cost("flops", "FLOPs per token", head, partial(_flops_of, context=model.serving.context))


def _flops_of(spec: SubBlockSpec, kept: int, *, context: int) -> int:
    return round(spec.flops_at(kept, context))


FLOPS = Kind(_flops, "FLOPs of a token", reads=("context",))
