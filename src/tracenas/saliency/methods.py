"""One-shot pruning methods: a saliency, an allocation of the budget, and what attention's units are.

A method is a line here; both of its parts are entries of `SALIENCIES` and `ALLOCATIONS`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["METHODS", "Method"]


@dataclass(frozen=True)
class Method:
    """A way to prune without search.

    Args:
        saliency: what units are ranked by.
        allocation: how the budget is shared out.
        kv_groups: whether whole KV groups are attention's units, where nothing else is asked for.
        reference: the paper.
    """

    saliency: str
    allocation: str
    reference: str
    kv_groups: bool = False


METHODS: Mapping[str, Method] = {
    "flap": Method("flap", "global_units", "FLAP, arXiv:2312.11983 (WIFV, AL-AM)"),
    "magnitude": Method("magnitude", "uniform", "L1 norm, equal ratios within layers, arXiv:1608.08710"),
    "nirvana": Method("nirvana", "adaptive", "NIRVANA, arXiv:2509.14230", kv_groups=True),
    "shortgpt": Method("block_influence", "depth", "ShortGPT, arXiv:2403.03853"),
    "taylor": Method("taylor", "uniform", "LLM-Pruner's block-wise pruning, arXiv:2305.11627"),
    "uniform": Method("wanda", "uniform", "equal ratios, units by Wanda (arXiv:2306.11695)"),
    "wanda": Method("wanda", "uniform", "Wanda, arXiv:2306.11695, equal ratios within layers"),
}
