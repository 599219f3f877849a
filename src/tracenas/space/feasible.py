"""The architectures of one base model that meet a budget (TraceNAS §3.2): counts, costs, window and validation."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from tracenas.errors import UserError
from tracenas.space import costs
from tracenas.space.architecture import Architecture, Layer
from tracenas.space.constraints import Budget
from tracenas.space.sub_block import LayerSpec, SubBlockSpec

__all__ = ["FeasibleSet"]


@dataclass(frozen=True)
class FeasibleSet:
    """All architectures of one base model that meet a budget.

    Args:
        layers: the base's blocks.
        outside: parameters that no architecture removes.
        budget: the window candidates are repaired into; None for no constraint.
        granularity: `block` (both sub-blocks go together) or `sublayer`.
        min_depth: blocks that must stay (L_min); of every stack at least one, whatever it is.
        keep_layers: blocks that may not be skipped.
        keeps: sub-blocks that are only bypassed together with their block.
        excluded: (block, sub-block) of those that keep all units; in `layers` they have no other width (`kept_whole`).
    """

    layers: tuple[LayerSpec, ...]
    outside: int
    budget: Budget | None = None
    granularity: str = "block"
    min_depth: int = 1
    keep_layers: frozenset[int] = field(default_factory=frozenset)
    keeps: frozenset[str] = field(default_factory=frozenset)
    excluded: frozenset[tuple[int, str]] = field(default_factory=frozenset)

    def __post_init__(self) -> None:
        depth = len(self.layers)
        if self.granularity not in ("block", "sublayer"):
            raise UserError(f"depth granularity '{self.granularity}': accepted: block, sublayer")
        if not 1 <= self.min_depth <= depth:
            raise UserError(f"min depth {self.min_depth}: the model has {depth} blocks; accepted: 1 to {depth}")
        wrong = [i for i in self.keep_layers if not 0 <= i < depth]
        if wrong:
            raise UserError(f"keep-layers {wrong[0]}: the model has {depth} blocks; accepted: {-depth} to {depth - 1}")

    @cached_property
    def protected(self) -> frozenset[int]:
        """Blocks that may not be skipped: `keep_layers` and those of excluded sub-blocks."""
        return self.keep_layers | {index for index, _ in self.excluded}

    def remains(self, index: int, spec: SubBlockSpec) -> bool:
        """Whether a sub-block is not bypassed while its block is there."""
        return spec.name in self.keeps or (index, spec.name) in self.excluded

    @cached_property
    def base(self) -> Architecture:
        """The base model itself: every unit kept."""
        return self.build([[s.units for s in layer.sub_blocks] for layer in self.layers])

    @cached_property
    def smallest(self) -> Architecture:
        """The cheapest architecture: `min_depth` blocks (the protected ones among them) at minimum width."""
        cheapest = [[s.choices()[0] if s.units else 0 for s in layer.sub_blocks] for layer in self.layers]
        cost = [sum(table[0] for table in row if table) for row in self.tables]
        order = sorted(range(len(cheapest)), key=lambda i: (i not in self.protected, cost[i], i))
        first = [next(i for i in order if self.layers[i].stack == stack) for stack in self.stacks]
        order.sort(key=lambda i: i not in self.protected and i not in first)
        unprotected = sum(i not in self.protected for i in first)
        stay = set(order[: max(self.min_depth, len(self.protected) + unprotected)])
        return self.build([c if i in stay else [0] * len(c) for i, c in enumerate(cheapest)])

    @cached_property
    def stacks(self) -> tuple[str, ...]:
        """Names of the stacks of blocks, in order; one, '', in decoder-only models."""
        return tuple(dict.fromkeys(layer.stack for layer in self.layers))

    def active(self, counts: Sequence[Sequence[int]]) -> dict[str, int]:
        """Per stack: its blocks that are not skipped."""
        counts_by_stack = dict.fromkeys(self.stacks, 0)
        for layer, row in zip(self.layers, counts, strict=True):
            counts_by_stack[layer.stack] += any(row)
        return counts_by_stack

    def build(self, counts: Sequence[Sequence[int]]) -> Architecture:
        """An architecture from counts per layer and sub-block."""
        return Architecture(
            tuple(
                Layer(tuple((s.unit, int(k)) for s, k in zip(spec.sub_blocks, row, strict=True)), spec.stack)
                for spec, row in zip(self.layers, counts, strict=True)
            )
        )

    def counts(self, arch: Architecture) -> list[list[int]]:
        """The inverse of `build`."""
        return [[k for _, k in layer.kept] for layer in arch.layers]

    def parameters(self, arch: Architecture) -> int:
        """All parameters of the materialised model."""
        return costs.parameters(self.layers, self.outside, arch)

    def cost(self, arch: Architecture) -> int:
        """What the budget counts."""
        measure = SubBlockSpec.parameters if self.budget is None else self.budget.sub_block_cost
        return self.outside + sum(measure(spec, kept) for _, spec, kept in costs.sub_blocks(self.layers, arch))

    @cached_property
    def tables(self) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """Per layer and sub-block: what each of `choices()` costs in the budget's unit."""
        measure = SubBlockSpec.parameters if self.budget is None else self.budget.sub_block_cost
        return tuple(
            tuple(tuple(measure(s, k) for k in s.choices()) for s in layer.sub_blocks) for layer in self.layers
        )

    def ratios(self, arch: Architecture) -> list[list[float]]:
        """Retention ratios κ (TraceNAS §3.2): kept units / units per layer and sub-block, 0 = bypassed."""
        return [
            [k / s.units if s.units else 0.0 for s, k in zip(layer.sub_blocks, row, strict=True)]
            for layer, row in zip(self.layers, self.counts(arch), strict=True)
        ]

    @cached_property
    def window(self) -> tuple[int, int]:
        """`[lower, limit]`; the tolerance is widened to the smallest whole-quantum move (decision 7).

        Where the small moves cannot bridge a large one, it reaches down to what coarse moves and then fine ones fill.
        """
        if self.budget is None:
            return 0, self.cost(self.base)
        limit = self.budget.limit
        moves = [
            max(b - a for a, b in itertools.pairwise(table)) for row in self.tables for table in row if len(table) > 1
        ]
        if not moves:  # no sub-block has a choice of widths: the single moves are those in depth
            parts = [[table[-1] for table in row if table] for row in self.tables]
            moves = [sum(p) for p in parts] if self.granularity == "block" else [c for p in parts for c in p]
        return min(self._filled(limit), limit - max(int(limit * self.budget.tolerance), min(moves, default=0))), limit

    def _filled(self, limit: int) -> int:
        """What `smallest` costs once all that fits has come back, blocks, then units, the largest steps first.

        `limit` where it does not even fit itself.
        """
        cost = self.cost(self.smallest)
        if cost > limit:
            return limit
        widened: list[tuple[int, ...]] = []
        away: list[list[tuple[int, ...]]] = []
        for index, (layer, counts) in enumerate(zip(self.layers, self.counts(self.smallest), strict=True)):
            row = [table for table in self.tables[index] if table]
            together = self.granularity == "block" or any(self.remains(index, spec) for spec in layer.sub_blocks)
            if any(counts):
                widened += row
            else:
                away += [row] if together else [[table] for table in row]
        for parts in sorted(away, key=lambda parts: -sum(table[0] for table in parts)):
            if cost + sum(table[0] for table in parts) <= limit:
                cost += sum(table[0] for table in parts)
                widened += parts
        for table in sorted(widened, key=lambda table: table[0] - table[min(1, len(table) - 1)]):
            cost += max(wider - table[0] for wider in table if cost + wider - table[0] <= limit)
        return cost

    def validate(self, arch: Architecture, *, where: str = "architecture") -> Architecture:
        """The architecture in this space's own form (keys in order, derived counts dropped).

        Raises:
            UserError: for a wrong number of layers, unknown counts or infeasible ones.
        """
        if len(arch.layers) != len(self.layers):
            raise UserError(f"{where}: {len(arch.layers)} layers, but the model has {len(self.layers)} blocks")
        if [la.stack for la in arch.layers] != [la.stack for la in self.layers]:
            raise UserError(f"{where}: the model has {self._stacks_in_words()}")
        rows = []
        for index, (spec_layer, layer) in enumerate(zip(self.layers, arch.layers, strict=True)):
            for s in spec_layer.sub_blocks:
                kept = dict(layer.kept).get(s.unit, s.units)
                if (index, s.name) in self.excluded and kept != s.units:
                    raise UserError(
                        f"{where}: layer {index} has {kept} {s.unit}, this search space keeps {s.units} (exclude)"
                    )
            row = _validated(spec_layer, layer, f"{where}: layer {index}")
            for s, kept in zip(spec_layer.sub_blocks, row, strict=True):
                if s.name in self.keeps and not kept and any(row):
                    raise UserError(f"{where}: layer {index} has no {s.name}, which this search space keeps (deploy)")
            rows.append(row)
        if empty := [stack for stack, count in self.active(rows).items() if stack and not count]:
            raise UserError(f"{where}: every block of the {empty[0]} is skipped; at least one must stay")
        return self.build(rows)

    def _stacks_in_words(self) -> str:
        depths = {s: sum(la.stack == s for la in self.layers) for s in self.stacks}
        named = [f"{n} blocks in its {s}" if s else f"{n} blocks in one list, 'layers'" for s, n in depths.items()]
        return " and ".join(named)

    def mean_ratio(self, counts: Sequence[Sequence[int]], name: str) -> float:
        """Mean retention ratio of the active sub-blocks called `name`; 1 if there is none."""
        active = [
            k / s.units
            for layer, row in zip(self.layers, counts, strict=True)
            for s, k in zip(layer.sub_blocks, row, strict=True)
            if k and s.name == name
        ]
        return sum(active) / len(active) if active else 1.0

    def flippable(self, counts: Sequence[Sequence[int]]) -> list[tuple[int, int | None]]:
        """`(layer, None)` of blocks, `(layer, sub-block)` under sublayer granularity, whose bit may flip."""
        in_stack = self.active(counts)
        active = sum(in_stack.values())
        out: list[tuple[int, int | None]] = []
        for i, row in enumerate(counts):
            slots: list[int | None] = [None] if self.granularity == "block" else list(range(len(row)))
            for j in slots:
                if j is not None and not self.layers[i].sub_blocks[j].units:
                    continue
                if j is not None and self.remains(i, self.layers[i].sub_blocks[j]):
                    continue
                skipped = not any(row) if j is None else row[j] == 0
                last = j is None or sum(k > 0 for k in row) == 1
                spare = active > self.min_depth and in_stack[self.layers[i].stack] > 1
                held = self.protected if j is None else self.keep_layers
                if skipped or (i not in held and (not last or spare)):
                    out.append((i, j))
        return out


def _validated(spec: LayerSpec, layer: Layer, where: str) -> list[int]:
    kept = dict(layer.kept)
    if layer.skip:
        return [0] * len(spec.sub_blocks)
    row = []
    for s in spec.sub_blocks:
        if (
            s.unit == "kv_heads"
            and "kv_heads" in kept
            and "heads" in kept
            and kept.pop("heads") != kept["kv_heads"] * s.heads_per_unit
        ):
            raise UserError(f"{where}: 'heads' must be kv_heads times {s.heads_per_unit}")
        if s.unit not in kept:
            raise UserError(f"{where}: no '{s.unit}'; this model's layers need {', '.join(spec.names())}")
        count = kept.pop(s.unit)
        if not s.feasible(count):
            choices = s.choices()
            raise UserError(
                f"{where}: {count} {s.unit} cannot be kept of {s.units}; accepted: 0, {s.units}"
                + (f", or multiples of {s.quantum} from {choices[0]} up" if len(choices) > 1 else "")
            )
        row.append(count)
    if kept:
        raise UserError(f"{where}: '{next(iter(kept))}' is no count of this model; accepted: {', '.join(spec.names())}")
    return row
