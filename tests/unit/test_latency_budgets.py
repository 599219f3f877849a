"""Milliseconds that architectures cost by a latency table, and the spaces that such budgets bound."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from latency_tables import POINTS, made_table

from tracenas.benchmark.latency_table import PHASES, KindLatency, LatencyTable
from tracenas.budgets import BUDGETS, Counted, Serving
from tracenas.demo import model_path
from tracenas.errors import UserError
from tracenas.families import Options
from tracenas.models.checkpoints.source import open_source
from tracenas.pipeline.budgets import Costs
from tracenas.space import Architecture, SearchSpace

SOURCE = open_source(str(model_path()))
NANOSECONDS = 10**6


def costs(table: LatencyTable, point: int = 0, **options: Any) -> Costs:
    served = POINTS[point]
    serving = Serving(served.context, served.batch, "f32", served.prompt)
    units = Options(**options)
    return Costs(SOURCE.space(units), Counted(SOURCE, SOURCE.blocks(units), serving, table))


def architectures(space: SearchSpace, count: int = 20) -> list[Architecture]:
    rng = np.random.default_rng(3)
    found = [space.sample(rng) for _ in range(count)]
    return [arch for arch in found if arch is not None]


def changed(table: LatencyTable, phase: str, values: Mapping[int, float]) -> LatencyTable:
    """The table with other latencies of its last kind, by place among its widths, at its first point."""
    *kinds, last = table.kinds
    latency = [dict(one) for one in last.latency]
    latency[0][phase] = tuple(values.get(i, v) for i, v in enumerate(latency[0][phase]))
    return replace(table, kinds=(*kinds, replace(last, latency=tuple(latency))))


def by_hand(table: LatencyTable, kind: KindLatency, kept: int, phase: str) -> float:
    """Milliseconds of a sub-block on the lines between the measured widths of the first point."""
    return float(np.interp(kept, kind.widths, kind.latency[0][phase]))


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("point", range(len(POINTS)))
def test_an_architecture_costs_what_the_table_sums_up_to(phase: str, point: int) -> None:
    table = made_table(model_path())
    model = costs(table, point)
    measure, layers = model.measure(phase), model.space.layers
    for arch in [model.space.base, *architectures(model.space)]:
        expected = table.predict(layers, arch, point)[phase]
        assert measure.plain(measure.total(layers, arch)) == pytest.approx(expected, abs=2 * len(layers) / NANOSECONDS)
        if not point:
            hand = table.outside[0][phase]
            for index, (layer, base) in enumerate(zip(arch.layers, layers, strict=True)):
                for spec in base.sub_blocks:
                    kept = dict(layer.kept)[spec.unit]
                    kind = next(k for k in table.kinds if (index, spec.name) in k.slots)
                    hand += by_hand(table, kind, kept, phase) if kept else 0.0
            assert hand == pytest.approx(expected)


def test_quanta_of_a_space_need_not_be_those_of_the_table() -> None:
    table = made_table(model_path())
    fine, coarse = costs(table, channel_quantum=1), costs(table)
    whole = [model.measure("decode_ms").total(model.space.layers, model.space.base) for model in (fine, coarse)]
    assert whole[0] == whole[1]
    spec = fine.space.layers[0].sub_blocks[1]
    of = fine.measure("decode_ms").of
    line = [of(spec, kept) for kept in range(spec.units + 1)]
    assert line[0] == 0 and line == sorted(line) and min(line) >= 0


@pytest.mark.parametrize("values", [{1: 0.001}, {0: 50.0}, {0: 0.0, 1: 0.0}])
def test_costs_never_fall_with_the_width_and_lie_at_or_above_the_table(values: Mapping[int, float]) -> None:
    """The middle width is measured as faster than the narrow one, or the narrow one slower than all, or nothing."""
    table = changed(made_table(model_path()), "decode_ms", values)
    kind = table.kinds[-1]
    model = costs(table, channel_quantum=1, kv_groups=False)
    index, name = kind.slots[0]
    spec = next(s for s in model.space.layers[index].sub_blocks if s.name == name)
    of = model.measure("decode_ms").of
    line = [of(spec, kept) for kept in range(spec.units + 1)]
    assert all(a <= b for a, b in pairwise(line)) and line[0] == 0
    highest = 0.0
    for kept in range(kind.widths[0], spec.units + 1):
        highest = max(highest, by_hand(table, kind, kept, "decode_ms"))
        assert line[kept] == pytest.approx(NANOSECONDS * highest, abs=1)


@pytest.mark.parametrize("limits", [{"decode_ms": "60%"}, {"prefill_ms": "70%", "params": "75%"}])
def test_candidates_of_such_budgets_meet_them(limits: dict[str, str]) -> None:
    model = costs(made_table(model_path()))
    space = model.limited(limits, 0.02)
    rng = np.random.default_rng(0)
    found = [arch for arch in (space.sample(rng) for _ in range(12)) if arch is not None]
    uniform = space.uniform()
    assert uniform is not None and len(found) > 6
    found += [arch for one in found[:6] if (arch := space.neighbour(one, rng)) is not None]
    found += [arch for one in found[:6] if (arch := space.trade(one, rng)) is not None]
    base = model.all(space.base, limits)
    for arch in (uniform, *found):
        assert not space.place(space.counts(arch))
        spent = model.all(arch, limits)
        shares = [spent[name] / base[name] - float(limit[:-1]) / 100 for name, limit in limits.items()]
        assert max(shares) <= 1e-9 and max(shares) > -0.05  # what binds is filled


def test_all_costs_of_an_architecture_are_said_in_milliseconds() -> None:
    table = made_table(model_path())
    model = costs(table)
    said = model.all(model.space.base)
    expected = table.predict(model.space.layers, model.space.base)
    assert {name: said[name] for name in PHASES} == pytest.approx(expected, abs=1e-4)
    without = Costs(model.space, replace(model.model, latency=None)).all(model.space.base)
    assert set(said) - set(without) == set(PHASES)


def test_what_a_table_says_nothing_of_is_refused() -> None:
    table = made_table(model_path())
    for broken, message in [
        (replace(table, kinds=table.kinds[:1]), "nothing on the"),
        (replace(table, kinds=tuple(replace(k, units=k.units + 1) for k in table.kinds)), "units there and"),
    ]:
        with pytest.raises(UserError, match=message):
            costs(broken).measure("decode_ms")
    with pytest.raises(UserError, match="is no point of the latency table"):
        BUDGETS.get("decode_ms").cost(Counted(SOURCE, SOURCE.blocks(), Serving(17, 1, "f32", 16), table))
