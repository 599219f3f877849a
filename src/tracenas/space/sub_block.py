"""The prunable half of a transformer block, as numbers: how many units it has and what each one costs."""

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property, lru_cache

__all__ = ["LayerSpec", "SubBlockSpec"]


@lru_cache(maxsize=256)
def _widths(units: int, quantum: int) -> tuple[int, ...]:
    """Feasible non-zero widths, ascending; equal sub-blocks share them."""
    return (*range(quantum, units, quantum), units) if units else ()


@dataclass(frozen=True)
class SubBlockSpec:
    """One sub-block (`attention`, `mlp`, …) of one block of the base model.

    `kept` units are feasible if `kept` is 0 (bypassed), the base's own `units`, or a multiple of
    `quantum` between the two (decisions 1 and 2 of the method: equal query heads in every
    KV group make the quantum of grouped-query attention its number of KV groups).

    Costs are linear in the kept units, with a part that only goes away when the sub-block is bypassed
    (norms, output biases, K and V under grouped-query attention):

        parameters = fixed_parameters + kept · parameters_per_unit            (kept > 0; else 0)
        FLOPs/token = 2 · (fixed_weights + kept · weights_per_unit) + kept · 4 · score_width · tokens attended to
        KV cache/token = fixed_cache + kept · cache_per_unit                   (elements, both K and V)
    """

    name: str
    """Sub-block name: `attention`, `mlp` or `cross_attention`."""
    unit: str
    """Key of the count in an architecture: `heads`, `kv_heads`, `channels`, `cross_heads`."""
    units: int
    """Units in the base; 0 when the base itself has this sub-block bypassed."""
    quantum: int = 1
    parameters_per_unit: int = 0
    fixed_parameters: int = 0
    weights_per_unit: float = 0
    """Matrix entries that multiply a token, per unit: the parameters without biases, of the active experts only."""
    fixed_weights: float = 0
    score_width: int = 0
    """Width of a unit's attention scores (head_dim × heads in the unit); 0 for an MLP."""
    cache_per_unit: int = 0
    fixed_cache: int = 0
    heads_per_unit: int = 1
    """Query heads in one unit: the group size where whole KV groups are the units."""
    bidirectional: bool = False
    """Whether every token attends to all tokens (encoders, cross-attention), not only to those up to itself."""

    def feasible(self, kept: int) -> bool:
        """Whether `kept` units can be realised."""
        return kept == self.units or (0 <= kept < self.units and kept % self.quantum == 0)

    def choices(self) -> tuple[int, ...]:
        """Feasible non-zero widths, ascending; empty if the base has no such sub-block."""
        return self._choices

    @cached_property
    def _choices(self) -> tuple[int, ...]:
        return _widths(self.units, self.quantum)

    def round(self, kept: float) -> int:
        """The feasible non-zero width nearest to `kept` (the smaller one on a tie)."""
        choices = self.choices()
        if not choices:
            return 0
        at = self.position(kept)
        return choices[at + (at + 1 < len(choices) and choices[at + 1] - kept < abs(kept - choices[at]))]

    def floor(self, kept: float) -> int:
        """The largest feasible non-zero width not above `kept`, or the smallest one."""
        choices = self.choices()
        return choices[self.position(kept)] if choices else 0

    def position(self, kept: float) -> int:
        """Index among `choices()` of the largest width not above `kept`; 0 where there is none."""
        return max(0, bisect_right(self.choices(), kept) - 1)

    def parameters(self, kept: int) -> int:
        """Parameters of the sub-block at `kept` units."""
        return 0 if kept == 0 else self.fixed_parameters + kept * self.parameters_per_unit

    def flops(self, kept: int, context: int) -> float:
        """Forward FLOPs per token, averaged over a context of `context` tokens, causal unless `bidirectional`."""
        if kept == 0:
            return 0.0
        products = 2.0 * (self.fixed_weights + kept * self.weights_per_unit)
        return products + 2.0 * (2 * context if self.bidirectional else context + 1) * kept * self.score_width

    def flops_at(self, kept: int, context: int) -> float:
        """Forward FLOPs of a token that attends to `context` tokens, itself among them."""
        if kept == 0:
            return 0.0
        products = 2.0 * (self.fixed_weights + kept * self.weights_per_unit)
        return products + 4.0 * context * kept * self.score_width

    def cache(self, kept: int) -> int:
        """KV-cache elements per token."""
        return 0 if kept == 0 else self.fixed_cache + kept * self.cache_per_unit


@dataclass(frozen=True)
class LayerSpec:
    """One block of the base: its sub-blocks and the stack it stands in ('' for decoder-only models)."""

    sub_blocks: tuple[SubBlockSpec, ...]
    stack: str = ""

    def names(self) -> tuple[str, ...]:
        """Unit keys in order."""
        return tuple(s.unit for s in self.sub_blocks)
