"""Latency tables: sums over sub-blocks, widths that are measured, and the check on whole architectures."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toys

from tracenas.benchmark.fitted import fitted
from tracenas.benchmark.latency_table import PHASES, KindLatency, LatencyTable, Point, kinds
from tracenas.benchmark.width_latency import FIRST, MOST, TurnTimes, WidthLatencies, checked
from tracenas.errors import UserError
from tracenas.space import Architecture
from tracenas.space.costs import sub_blocks

SPACE = toys.space(0.6, quantum=4)
POINTS = (Point(1, 64, 64), Point(4, 16, 32))
OUTSIDE = {"prefill_ms": 3.0, "decode_ms": 0.5}

Cost = Callable[[str, int], float]
"""Milliseconds of a sub-block, by name and width."""


def linear(name: str, kept: int) -> float:
    return 0.0 if not kept else 0.4 + kept * (0.02 if name == "mlp" else 0.3)


def stepped(name: str, kept: int) -> float:
    """The MLP is slow beyond half of its widest."""
    return linear(name, kept) + (2.0 if name == "mlp" and kept > WIDEST // 2 else 0.0)


WIDEST = max(s.units for layer in SPACE.layers for s in layer.sub_blocks if s.name == "mlp")


class Machine:
    """Takes what `cost` says, more of it turn by turn, and counts."""

    def __init__(self, cost: Cost, noise: float = 0.0) -> None:
        self.cost, self.noise, self.count = cost, noise, 0
        self.rng = np.random.default_rng(0)

    def __call__(self, archs: Sequence[Architecture]) -> TurnTimes:
        self.count += len(archs)
        turns = [[self._latencies(a, 1 + 0.2 * t) for a in (SPACE.base, *archs)] for t in range(3)]
        return TurnTimes(tuple(t[0] for t in turns), tuple(zip(*(t[1:] for t in turns), strict=True)))

    def _latencies(self, arch: Architecture, slow: float) -> Any:
        total = sum(self.cost(spec.name, kept) for _, spec, kept in sub_blocks(SPACE.layers, arch))
        slow *= 1 + self.noise * self.rng.standard_normal()
        return tuple({p: slow * (i + 1) * (OUTSIDE[p] + total) for p in PHASES} for i in range(len(POINTS)))


def table(machine: Machine) -> tuple[LatencyTable, WidthLatencies]:
    latencies = WidthLatencies(SPACE, POINTS, machine)
    found = LatencyTable("torch", {}, {}, POINTS, *latencies.measure(), checked={}, block=latencies.block())
    return found, latencies


def architectures(count: int) -> list[Architecture]:
    rng = np.random.default_rng(1)
    found = (SPACE.sample(rng) for _ in range(count))
    return [arch for arch in found if arch is not None]


@pytest.mark.parametrize("cost", [linear, stepped])
def test_a_table_of_additive_latencies_predicts_whole_architectures(cost: Cost) -> None:
    machine = Machine(cost)
    found, latencies = table(machine)
    archs = architectures(12)
    check = checked(latencies, lambda arch, i: found.predict(SPACE.layers, arch, i), archs)
    assert check["median_error"] < 1e-9 if cost is linear else check["median_error"] < 0.05
    assert len(check["architectures"]) == len(archs) * len(POINTS) * len(PHASES)


def test_latencies_are_those_of_the_machine() -> None:
    found, _ = table(Machine(linear))
    for i in range(len(POINTS)):
        assert found.outside[i] == pytest.approx({p: 1.2 * (i + 1) * OUTSIDE[p] for p in PHASES})
        for kind in found.kinds:
            name = kind.slots[0][1]
            for width in kind.widths:
                assert kind.at(width, i, "prefill_ms") == pytest.approx(1.2 * (i + 1) * linear(name, width))


def test_widths_are_added_where_a_step_is_and_only_there() -> None:
    choices = next(s.choices() for s in SPACE.layers[0].sub_blocks if s.name == "mlp")
    smooth, edged = (
        next(k for k in table(Machine(cost))[0].kinds if k.slots[0][1] == "mlp") for cost in (linear, stepped)
    )
    assert len(smooth.widths) < len(edged.widths) <= MOST
    assert len(smooth.widths) <= 2 * FIRST - 1
    last = max(w for w in choices if w <= WIDEST // 2)
    assert last in edged.widths and choices[choices.index(last) + 1] in edged.widths


def test_noise_of_the_machine_is_told() -> None:
    quiet, loud = table(Machine(linear))[0], table(Machine(linear, noise=0.3))[0]
    assert 0 < quiet.spread[0]["prefill_ms"] < loud.spread[0]["prefill_ms"]


def test_equal_sub_blocks_are_one_kind_and_none_is_forgotten() -> None:
    slots = [slot for group in kinds(SPACE.layers).values() for slot in group]
    assert len(slots) == len(set(slots)) == sum(bool(s.units) for la in SPACE.layers for s in la.sub_blocks)


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    found, _ = table(Machine(stepped))
    path = tmp_path / "table.json"
    path.write_text(json.dumps(found.to_json()))
    again = LatencyTable.read(path)
    for arch in architectures(5):
        for i in range(len(POINTS)):
            assert again.predict(SPACE.layers, arch, i) == found.predict(SPACE.layers, arch, i)


def test_between_widths_a_latency_is_interpolated() -> None:
    kind = KindLatency(((0, "mlp"),), 30, (10, 30), ({p: (1.0, 2.0) for p in PHASES},))
    assert [kind.at(w, 0, "decode_ms") for w in (0, 10, 15, 30)] == [0.0, 1.0, 1.25, 2.0]
    alone = KindLatency(((0, "mlp"),), 30, (30,), ({p: (2.0,) for p in PHASES},))
    assert alone.at(30, 0, "decode_ms") == 2.0


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"points": []},
        {"kinds": [{"slots": [], "units": 1, "widths": [1], "latency": []}]},
        {"outside": [{"prefill_ms": "x", "decode_ms": 1}]},
        {"machine": None, "backend": None, "kinds": 3},
    ],
)
def test_another_file_is_one_line(change: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(json.dumps({**table(Machine(linear))[0].to_json(), **change}))
    with pytest.raises(UserError, match=r"table\.json: (not a latency table|format 2)") as caught:
        LatencyTable.read(path)
    assert "\n" not in caught.value.args[0]


def test_what_only_whole_blocks_save_is_shared_by_their_sub_blocks() -> None:
    """A program in which zeros stand for what is bypassed alone: they cost something until the block is gone."""

    class Stubs(Machine):
        def _latencies(self, arch: Architecture, slow: float) -> Any:
            stubs = sum(not layer.skip and any(not kept for _, kept in layer.kept) for layer in arch.layers)
            whole = super()._latencies(arch, slow)
            return tuple({p: whole[i][p] + slow * (i + 1) * 0.2 * stubs for p in PHASES} for i in range(len(POINTS)))

    found, latencies = table(Stubs(linear))
    archs = [
        arch for arch in architectures(60) if all(la.skip or all(kept for _, kept in la.kept) for la in arch.layers)
    ]
    assert any(la.skip for arch in archs for la in arch.layers)
    check = checked(latencies, lambda arch, i: found.predict(SPACE.layers, arch, i), archs)
    assert check["median_error"] < 1e-9
    assert latencies.block()[0]["decode_ms"] == pytest.approx(1.2 * 0.4)


def test_architectures_take_turns_a_few_at_a_time() -> None:
    machine, sizes = Machine(linear), list[int]()

    def turns(archs: Sequence[Architecture]) -> TurnTimes:
        sizes.append(len(archs))
        return machine(archs)

    WidthLatencies(SPACE, POINTS, turns, at_once=2).measure()
    assert max(sizes) == 2 and sum(sizes) == machine.count


@pytest.mark.parametrize("bend", [-0.3, 0.3])
def test_a_table_is_brought_to_the_scale_of_whole_architectures(bend: float) -> None:
    """Smaller models are slower, or faster, than the sum of what single kinds save."""

    class Bent(Machine):
        def _latencies(self, arch: Architecture, slow: float) -> Any:
            gone = 1 - SPACE.parameters(arch) / SPACE.parameters(SPACE.base)
            return super()._latencies(arch, slow * (1 + bend * max(0.0, gone - 0.15)))

    plain, latencies = table(Bent(linear))
    archs = architectures(18)
    ones = [SPACE.base, *archs[:6]]
    scaled = fitted(plain, SPACE.layers, ones, latencies.measured(ones))
    before, after = (
        checked(latencies, lambda arch, i, t=one: t.predict(SPACE.layers, arch, i), archs[6:])["median_error"]
        for one in (plain, scaled)
    )
    assert after < before / 3


def test_a_table_that_adds_up_is_left_as_it_is() -> None:
    plain, latencies = table(Machine(linear))
    archs = architectures(6)
    again = fitted(plain, SPACE.layers, archs, latencies.measured(archs))
    for arch in architectures(9):
        for i in range(len(POINTS)):
            assert again.predict(SPACE.layers, arch, i) == pytest.approx(plain.predict(SPACE.layers, arch, i))


def test_noise_does_not_turn_a_table_over() -> None:
    """Where larger architectures came out faster, the sum still grows with widths and is never negative."""
    plain, latencies = table(Machine(linear))
    archs = sorted(architectures(6), key=lambda arch: plain.predict(SPACE.layers, arch)["decode_ms"])
    again = fitted(plain, SPACE.layers, archs, latencies.measured(archs)[::-1])
    for kind in again.kinds:
        assert kind.at(kind.widths[-1], 0, "decode_ms") > kind.at(kind.widths[0], 0, "decode_ms") > 0
    assert all(at[p] >= 0 for at in again.outside for p in PHASES)
