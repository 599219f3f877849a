"""Loss after a handful of recovery steps from the compensated start: the upper reference of compensated candidates."""

from tracenas.proxies.few_steps import few_steps
from tracenas.proxies.measurement import Proxy

__all__ = ["PROXY"]

PROXY = Proxy(
    "few_steps_compensated",
    few_steps,
    needs=frozenset({"compensated", "steps"}),
    reference="tracenas, docs/proxies.md",
    cost="recovery steps: forward and full backward pass each, and the optimizer",
)
