"""The search space 𝒢 (TraceNAS §3.2): sampling, validation, variation and repair into the budget."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from tracenas.errors import UserError
from tracenas.space import costs
from tracenas.space.architecture import Architecture, Layer
from tracenas.space.constraints import Budget
from tracenas.space.neighbour import neighbour
from tracenas.space.repair import fill, repair, settle, spread
from tracenas.space.sub_block import LayerSpec, SubBlockSpec

__all__ = ["SearchSpace"]


@dataclass(frozen=True)
class SearchSpace:
    """All architectures of one base model that meet a budget.

    Args:
        layers: the base's blocks.
        outside: parameters that no architecture removes.
        budget: the window candidates are repaired into; None for no constraint.
        granularity: `block` (both sub-blocks go together) or `sublayer`.
        min_depth: blocks that must stay (L_min); of every stack at least one, whatever it is.
        keep_layers: blocks that may not be skipped.
        keeps: sub-blocks that are only bypassed together with their block.
    """

    layers: tuple[LayerSpec, ...]
    outside: int
    budget: Budget | None = None
    granularity: str = "block"
    min_depth: int = 1
    keep_layers: frozenset[int] = field(default_factory=frozenset)
    keeps: frozenset[str] = field(default_factory=frozenset)

    def __post_init__(self) -> None:
        depth = len(self.layers)
        if self.granularity not in ("block", "sublayer"):
            raise UserError(f"depth granularity '{self.granularity}': accepted: block, sublayer")
        if not 1 <= self.min_depth <= depth:
            raise UserError(f"min depth {self.min_depth}: the model has {depth} blocks; accepted: 1 to {depth}")
        wrong = [i for i in self.keep_layers if not 0 <= i < depth]
        if wrong:
            raise UserError(f"keep-layers {wrong[0]}: the model has {depth} blocks; accepted: {-depth} to {depth - 1}")

    # ---- what there is -------------------------------------------------------------------------------

    @cached_property
    def base(self) -> Architecture:
        """The base model itself: every unit kept."""
        return self.build([[s.units for s in layer.sub_blocks] for layer in self.layers])

    @cached_property
    def smallest(self) -> Architecture:
        """The cheapest architecture: `min_depth` blocks (the protected ones among them) at minimum width."""
        cheapest = [[s.choices()[0] if s.units else 0 for s in layer.sub_blocks] for layer in self.layers]
        cost = [sum(table[0] for table in row if table) for row in self.tables]
        order = sorted(range(len(cheapest)), key=lambda i: (i not in self.keep_layers, cost[i], i))
        first = [next(i for i in order if self.layers[i].stack == stack) for stack in self.stacks]
        order.sort(key=lambda i: i not in self.keep_layers and i not in first)
        unprotected = sum(i not in self.keep_layers for i in first)
        stay = set(order[: max(self.min_depth, len(self.keep_layers) + unprotected)])
        return self.build([c if i in stay else [0] * len(c) for i, c in enumerate(cheapest)])

    @cached_property
    def stacks(self) -> tuple[str, ...]:
        """Names of the stacks of blocks, in order; one, '', in decoder-only models."""
        return tuple(dict.fromkeys(layer.stack for layer in self.layers))

    def active(self, counts: Sequence[Sequence[int]]) -> dict[str, int]:
        """Per stack: its blocks that are not skipped."""
        found = dict.fromkeys(self.stacks, 0)
        for layer, row in zip(self.layers, counts, strict=True):
            found[layer.stack] += any(row)
        return found

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
        """`[lower, limit]`; the tolerance is widened to the smallest whole-quantum move (decision 7)."""
        if self.budget is None:
            return 0, self.cost(self.base)
        limit = self.budget.limit
        moves = [
            max(b - a for a, b in itertools.pairwise(table)) for row in self.tables for table in row if len(table) > 1
        ]
        if not moves:  # no sub-block has a choice of widths: the single moves are those in depth
            parts = [[table[-1] for table in row if table] for row in self.tables]
            moves = [sum(p) for p in parts] if self.granularity == "block" else [c for p in parts for c in p]
        return limit - max(int(limit * self.budget.tolerance), min(moves, default=0)), limit

    def check_budget(self) -> None:
        """Refuse an infeasible budget, with the range that is feasible.

        Raises:
            UserError: if no architecture of this space lies in the window.
        """
        if self.budget is None:
            return
        low, high, base = self.cost(self.smallest), self.window[1], self.cost(self.base)
        if high < low:
            raise UserError(
                f"budget of {high:,} {self.budget.unit} is below the smallest architecture of this space; "
                f"feasible: {low:,} to {base:,} ({100 * low / base:.1f}% to 100%)"
            )
        if self.uniform() is None:
            raise UserError(
                f"no uniform architecture lies in [{self.window[0]:,}, {high:,}] {self.budget.unit}; "
                "widen the tolerance"
            )

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
            row = _validated(spec_layer, layer, f"{where}: layer {index}")
            for s, kept in zip(spec_layer.sub_blocks, row, strict=True):
                if s.name in self.keeps and not kept and any(row):
                    raise UserError(f"{where}: layer {index} has no {s.name}, which this search space keeps (deploy)")
            rows.append(row)
        if gone := [stack for stack, count in self.active(rows).items() if stack and not count]:
            raise UserError(f"{where}: every block of the {gone[0]} is skipped; at least one must stay")
        return self.build(rows)

    def _stacks_in_words(self) -> str:
        depths = {s: sum(la.stack == s for la in self.layers) for s in self.stacks}
        named = [f"{n} blocks in its {s}" if s else f"{n} blocks in one list, 'layers'" for s, n in depths.items()]
        return " and ".join(named)

    # ---- where candidates come from ------------------------------------------------------------------

    def uniform(self) -> Architecture | None:
        """Equal retention ratios rounded down, the rest of the budget spread evenly (decision 7).

        Where even the minimum widths exceed the budget, blocks are dropped in an evenly spread order.
        """
        return self.profile([[1.0] * len(layer.sub_blocks) for layer in self.layers])

    def profile(
        self, ratios: Sequence[Sequence[float]], drop_order: Sequence[int] | None = None
    ) -> Architecture | None:
        """`from_ratios`, dropping blocks in `drop_order` only where the minimum widths exceed the budget.

        Here a ratio of 0 means the minimum width. Layers that `drop_order` leaves out are not dropped.
        """
        spreading = spread(len(self.layers)) if drop_order is None else drop_order
        order = [i for i in spreading if i not in self.keep_layers]
        if len(self.stacks) > 1:  # one block of every stack is never dropped: its last in this order
            last = {self.layers[i].stack: i for i in order}
            protected = {self.layers[i].stack for i in range(len(self.layers)) if i not in order}
            order = [i for i in order if self.layers[i].stack in protected or last[self.layers[i].stack] != i]
        for dropped in range(min(len(order), len(self.layers) - self.min_depth) + 1):
            gone = set(order[:dropped])
            found = self.from_ratios([[0.0 if i in gone else (r or 1e-6) for r in row] for i, row in enumerate(ratios)])
            if found is not None:
                return found
        return None

    def from_ratios(self, ratios: Sequence[Sequence[float]]) -> Architecture | None:
        """Widths proportional to `ratios` (of any scale; 0 = bypassed), as wide as the budget allows.

        The common factor is found by bisection with widths rounded down and clipped to [minimum, units]; what
        is left of the budget is filled one quantum at a time, evenly over the layers in a fixed order.
        None if the profile cannot meet the window.

        Raises:
            ValueError: if the profile is not of this model's shape, or has a negative or non-finite ratio.
        """
        if [len(row) for row in ratios] != [len(layer.sub_blocks) for layer in self.layers]:
            raise ValueError("a profile needs a ratio for every sub-block of every layer")
        if not all(math.isfinite(r) and r >= 0 for row in ratios for r in row):
            raise ValueError("the ratios of a profile must be finite and at least 0")
        lower, limit = self.window
        slots = [
            (i, j, s, ratios[i][j])
            for i, layer in enumerate(self.layers)
            for j, s in enumerate(layer.sub_blocks)
            if s.units and ratios[i][j] > 0
        ]

        def fits(scale: float) -> bool:
            positions = (s.position(min(scale * r, 1.0) * s.units) for _, _, s, r in slots)
            used = sum(self.tables[i][j][p] for (i, j, _, _), p in zip(slots, positions, strict=True))
            return self.outside + used <= limit

        low, high = 0.0, 1.0 / max(min((r for *_, r in slots), default=1.0), 1e-9)
        if fits(high):
            low = high
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        rows = [[0] * len(layer.sub_blocks) for layer in self.layers]
        for i, j, s, r in slots:
            rows[i][j] = s.floor(min(low * r, 1.0) * s.units)
        filled = fill(self, self.build(rows))
        cost = self.cost(filled)
        if cost < lower:  # only quanta larger than the window are left to grow
            rows = self.counts(filled)
            settle(self, rows, np.random.default_rng(0))
            filled = fill(self, self.build(rows))
            cost = self.cost(filled)
        return filled if lower <= cost <= limit else None

    def sample(self, rng: np.random.Generator) -> Architecture | None:
        """A random architecture of the budget: random depth, independent uniform widths, repaired."""
        skips = int(rng.integers(0, max(1, (len(self.layers) - self.min_depth) // 4 + 1)))
        free = [i for i in range(len(self.layers)) if i not in self.keep_layers]
        bits = [[(i, j) for j in range(len(self.layers[i].sub_blocks))] for i in free]
        if self.granularity == "sublayer":
            bits = [[(i, j)] for row in bits for i, j in row if self.layers[i].sub_blocks[j].name not in self.keeps]
            skips *= 2
        picks = rng.permutation(len(bits))[:skips].tolist()
        gone = {slot for pick in picks for slot in bits[pick]}
        rows = [
            [0 if (i, j) in gone or not s.units else _pick(s, rng) for j, s in enumerate(layer.sub_blocks)]
            for i, layer in enumerate(self.layers)
        ]
        return self.repair(self.build(rows), rng)

    def crossover(self, a: Architecture, b: Architecture, rng: np.random.Generator) -> Architecture:
        """Depth: one contiguous range of blocks from B, the rest from A. Width: β·A + (1-β)·B (§3.5)."""
        depth = len(self.layers)
        start = int(rng.integers(0, depth))
        stop = int(rng.integers(start, depth)) + 1
        rows = []
        for i, spec in enumerate(self.layers):
            donor = b if start <= i < stop else a
            row = []
            for s, (_, k), (_, ka), (_, kb) in zip(
                spec.sub_blocks, donor.layers[i].kept, a.layers[i].kept, b.layers[i].kept, strict=True
            ):
                beta = float(rng.uniform(0.2, 0.8))
                mixed = beta * ka + (1 - beta) * kb if ka and kb else max(ka, kb)
                row.append(s.round(mixed) if k else 0)
            rows.append(row)
        return self.build(rows)

    def mutate(
        self,
        arch: Architecture,
        rng: np.random.Generator,
        *,
        depth: float = 0.2,
        width: float = 0.2,
        sigma: float = 0.3,
    ) -> Architecture:
        """With probability `depth` flip one bit of the depth mask; with probability `width` jitter widths.

        The jitter multiplies every active width by its own draw of N(1, σ) (§3.5, decision 8).
        """
        counts = self.counts(arch)
        if rng.random() < depth:
            self._flip(counts, rng)
        if rng.random() < width:
            for row, layer in zip(counts, self.layers, strict=True):
                for j, s in enumerate(layer.sub_blocks):
                    jitter = float(rng.normal(1.0, sigma))
                    if row[j]:
                        row[j] = s.round(min(max(row[j] * jitter, 0.0), s.units))
        return self.build(counts)

    def repair(self, arch: Architecture, rng: np.random.Generator) -> Architecture | None:
        """Into the window by single-quantum moves; None if that is impossible."""
        return repair(self, arch, rng)

    def neighbour(self, arch: Architecture, rng: np.random.Generator, *, sigma: float = 0.3) -> Architecture | None:
        """A small move within the budget, which is filled; None if that is impossible."""
        return neighbour(self, arch, rng, sigma=sigma)

    def _flip(self, counts: list[list[int]], rng: np.random.Generator) -> None:
        """Flip one bit of the depth mask in place, respecting `min_depth` and `keep_layers`."""
        flippable = self.flippable(counts)
        if not flippable:
            return
        i, j = flippable[int(rng.integers(len(flippable)))]
        slots = range(len(counts[i])) if j is None else range(j, j + 1)
        alive = any(counts[i][q] for q in slots)
        for q in slots:
            s = self.layers[i].sub_blocks[q]
            counts[i][q] = 0 if alive else s.round(self._mean_ratio(counts, s.name) * s.units)

    def _mean_ratio(self, counts: Sequence[Sequence[int]], name: str) -> float:
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
                if j is not None and self.layers[i].sub_blocks[j].name in self.keeps:
                    continue
                gone = not any(row) if j is None else row[j] == 0
                last = j is None or sum(k > 0 for k in row) == 1
                spare = active > self.min_depth and in_stack[self.layers[i].stack] > 1
                if gone or (i not in self.keep_layers and (not last or spare)):
                    out.append((i, j))
        return out


def _pick(spec: SubBlockSpec, rng: np.random.Generator) -> int:
    choices = spec.choices()
    return choices[int(rng.integers(len(choices)))]


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
