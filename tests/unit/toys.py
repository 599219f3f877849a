"""Small spaces and objectives without torch, for the tests of space and search."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tracenas.space import Architecture, Budget, LayerSpec, SearchSpace, SubBlockSpec
from tracenas.space.exclusion import kept_whole
from tracenas.strategies import Score


def layer(*, heads: int = 8, groups: int = 1, channels: int = 256, hidden: int = 64, quantum: int = 32) -> LayerSpec:
    """A Llama-like block: 8-wide heads in `groups` KV groups (1: MHA), a gated MLP, two norms."""
    dim = 8
    grouped = groups > 1
    attention = SubBlockSpec(
        "attention",
        "heads",
        heads,
        quantum=groups,
        parameters_per_unit=(2 if grouped else 4) * hidden * dim,
        fixed_parameters=hidden + (2 * hidden * groups * dim if grouped else 0),
    )
    mlp = SubBlockSpec(
        "mlp",
        "channels",
        channels,
        quantum=quantum,
        parameters_per_unit=3 * hidden,
        fixed_parameters=hidden,
    )
    return LayerSpec((attention, mlp))


def space(share: float | None = 0.6, *, layers: int = 8, outside: int = 5_000, **options: Any) -> SearchSpace:
    """A space of equal blocks with a budget of `share` of the base's parameters (None: no budget)."""
    names = ("heads", "groups", "channels", "hidden", "quantum")
    shape = {k: options.pop(k) for k in names if k in options}
    free = SearchSpace(tuple(layer(**shape) for _ in range(layers)), outside, **options)
    if share is None:
        return free
    return replace(free, budget=Budget(int(share * free.parameters(free.base))))


@st.composite
def spaces(draw: st.DrawFn) -> SearchSpace:
    """Random bases (MHA, GQA, widths that are no multiple) under random constraints and feasible budgets."""
    depth = draw(st.integers(1, 7))
    groups = draw(st.sampled_from([1, 2, 4]))
    one = layer(
        heads=groups * draw(st.integers(1, 8)),
        groups=groups,
        channels=draw(st.integers(20, 300)),
        hidden=draw(st.sampled_from([16, 64])),
        quantum=draw(st.sampled_from([1, 8, 32])),
    )
    sub_blocks = st.tuples(st.integers(0, depth - 1), st.sampled_from(["attention", "mlp"]))
    excluded = frozenset(draw(st.sets(sub_blocks, max_size=2)))
    free = SearchSpace(
        kept_whole((one,) * depth, excluded),
        draw(st.integers(0, 20_000)),
        granularity=draw(st.sampled_from(["block", "sublayer"])),
        min_depth=draw(st.integers(1, depth)),
        keep_layers=frozenset(draw(st.sets(st.integers(0, depth - 1), max_size=2))),
        excluded=excluded,
    )
    low, high = free.cost(free.smallest), free.cost(free.base)
    return replace(free, budget=Budget(draw(st.integers(low, high))))


def assert_meets(space: SearchSpace, arch: Architecture) -> None:
    """The architecture is realisable and keeps every constraint of the space."""
    assert space.validate(arch) == arch
    lower, limit = space.window
    assert lower <= space.cost(arch) <= limit
    active = [not entry.skip for entry in arch.layers]
    assert sum(active) >= space.min_depth
    assert all(active[i] for i in space.keep_layers)
    assert all(arch.layers[i][name] == space.base.layers[i][name] for i, name in excluded_counts(space))
    if space.granularity == "block":
        assert all(entry.skip or all(k for _, k in entry.kept) for entry in arch.layers)


def excluded_counts(space: SearchSpace) -> list[tuple[int, str]]:
    """(block, count) of what the space keeps whole."""
    return [(i, s.unit) for i, la in enumerate(space.layers) for s in la.sub_blocks if (i, s.name) in space.excluded]


class Toy:
    """Separable and concave: Σ_l w_l · √r_l over all sub-blocks. Counts how often each id is evaluated."""

    def __init__(self, space: SearchSpace, seed: int = 5) -> None:
        self.space = space
        width = sum(len(entry.sub_blocks) for entry in space.layers)
        self.weights = np.random.default_rng(seed).uniform(0.0, 1.0, width)
        self.calls: dict[str, int] = {}

    def value(self, arch: Architecture) -> float:
        ratios = np.array([r for row in self.space.ratios(arch) for r in row])
        return float(self.weights @ np.sqrt(ratios))

    def __call__(self, candidates: list[Architecture]) -> Iterator[Score]:
        for arch in candidates:
            self.calls[arch.id] = self.calls.get(arch.id, 0) + 1
            yield Score(self.value(arch), loss=1.0, extra={"rho": [0.5, None]})


class Memory:
    """A journal in memory."""

    def __init__(self, records: Sequence[dict[str, Any]] = ()) -> None:
        self.path = Path("journal.jsonl")
        self.records = list(records)

    def read(self) -> list[dict[str, Any]]:
        return list(self.records)

    def append(self, record: Any) -> None:
        self.records.append(dict(record))
