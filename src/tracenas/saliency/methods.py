"""One-shot pruning methods: a saliency, an allocation of the budget, and what attention's units are.

A method is a line here; both of its parts are entries of `SALIENCIES` and `ALLOCATIONS`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

__all__ = ["LONGEST", "METHODS", "SHORT", "Method"]

LONGEST, SHORT = 4096, 512
"""Tokens of a window by default: the paper's, and what statistics of the closed form are measured on."""


@dataclass(frozen=True)
class Method:
    """A way to prune without search.

    Args:
        saliency: what units are ranked by.
        allocation: how the budget is shared out.
        kv_groups: whether whole KV groups are attention's units, where nothing else is asked for.
        channel_quantum: MLP widths are multiples of it, where nothing else is asked for; None: the usual one.
        ridge_scale: what the refit's ridge is relative to, where nothing else is asked for.
        longest: tokens of a window of text, where nothing else is asked for and the model has as many positions.
        reference: the paper.
    """

    saliency: str
    allocation: str
    reference: str
    kv_groups: bool = False
    channel_quantum: int | None = None
    ridge_scale: Literal["mean", "channel"] = "mean"
    longest: int = LONGEST


METHODS: Mapping[str, Method] = {
    "fisher": Method(
        "fisher",
        "solver",
        "costs of all widths from one pass, solved (docs/closed-form.md)",
        ridge_scale="channel",
        longest=SHORT,
    ),
    "flap": Method("flap", "global_units", "FLAP, arXiv:2312.11983 (WIFV, AL-AM)"),
    "magnitude": Method("magnitude", "uniform", "L1 norm, equal ratios within layers, arXiv:1608.08710"),
    "mlp": Method(
        "fisher",
        "mlp",
        "attention untouched, one width for all MLPs (docs/closed-form.md)",
        channel_quantum=8,
        ridge_scale="channel",
        longest=SHORT,
    ),
    "nirvana": Method("nirvana", "adaptive", "NIRVANA, arXiv:2509.14230", kv_groups=True),
    "shortgpt": Method("block_influence", "depth", "ShortGPT, arXiv:2403.03853"),
    "taylor": Method("taylor", "uniform", "LLM-Pruner's block-wise pruning, arXiv:2305.11627"),
    "uniform": Method("wanda", "uniform", "equal ratios, units by Wanda (arXiv:2306.11695)"),
    "wanda": Method("wanda", "uniform", "Wanda, arXiv:2306.11695, equal ratios within layers"),
}
