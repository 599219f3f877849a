"""Milliseconds of a prefill and of decoding a token, by a table of `tracenas measure`.

Counted in whole nanoseconds. Where a measured latency is below that of a smaller width the larger of the two counts, as
what a budget counts never falls with the width: costs are those of the table, or noise above them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from itertools import accumulate

from tracenas.benchmark.latency_table import KindLatency, LatencyTable, Point
from tracenas.budgets.kind import Counted, Kind, Serving
from tracenas.errors import UserError
from tracenas.space.costs import Cost
from tracenas.space.sub_block import SubBlockSpec

__all__ = ["DECODE", "NANOSECONDS", "PREFILL"]

NANOSECONDS = 10**6
"""Of a millisecond."""

Widths = Mapping[SubBlockSpec, tuple[int, ...]]
"""Nanoseconds at every width from 0 on."""


def _cost(model: Counted, *, phase: str, unit: str) -> Cost:
    """What the table says of the model at the point that it is served at.

    Raises:
        UserError: without a table, for one that has no such point, and one of other sub-blocks.
    """
    if model.latency is None:
        raise UserError(f"budget {phase} needs --latency: a table that `tracenas measure` wrote")
    point = _place(model.latency, model.serving, phase)
    outside = round(NANOSECONDS * model.latency.outside[point][phase])
    kinds = _kinds(model, model.latency)
    widths = {spec: tuple(accumulate(_nanoseconds(kind, point, phase), max)) for spec, kind in kinds.items()}
    return Cost(phase, unit, outside, partial(_taken, widths=widths), NANOSECONDS)


def _taken(spec: SubBlockSpec, kept: int, *, widths: Widths) -> int:
    return widths[replace(spec, quantum=1)][kept]


def _place(table: LatencyTable, serving: Serving, phase: str) -> int:
    """Of the point among the table's."""
    if serving.prompt is not None:
        point = Point(serving.batch, serving.prompt, serving.context)
        if point in table.points:
            return table.points.index(point)
    asked = f"--serve-batch {serving.batch}, --context {serving.context}"
    asked += "" if serving.prompt is None else f", --prompt {serving.prompt}"
    there = ", ".join(f"{p.batch}:{p.prompt}:{p.context}" for p in table.points)
    raise UserError(
        f"budget {phase}: {asked} is no point of the latency table; there (sequences:prompt:context): {there}"
    )


def _kinds(model: Counted, table: LatencyTable) -> dict[SubBlockSpec, KindLatency]:
    """The table's kinds by what a search space knows of their sub-blocks, whatever their quanta."""
    slots = {slot: kind for kind in table.kinds for slot in kind.slots}
    found: dict[SubBlockSpec, KindLatency] = {}
    for index, block in enumerate(model.blocks):
        for spec in (sub.spec for sub in block.sub_blocks if sub.spec.units):
            kind = slots.get((index, spec.name))
            if kind is None:
                raise UserError(f"latency table: nothing on the {spec.name} of block {index}: it is of another model")
            if kind.units != spec.units:
                raise UserError(
                    f"latency table: {spec.name} of block {index} has {kind.units:,} units there and {spec.units:,} "
                    f"{spec.unit} here{_by_groups(spec)}"
                )
            if found.setdefault(replace(spec, quantum=1), kind) != kind:
                raise UserError(f"latency table: sub-blocks like the {spec.name} of block {index} differ in latency")
    return found


def _by_groups(spec: SubBlockSpec) -> str:
    if spec.name != "attention":
        return ""
    others = "without" if spec.unit == "kv_heads" else "with"
    return f"; if it was measured {others} --kv-groups, measure it or ask here likewise"


def _nanoseconds(kind: KindLatency, point: int, phase: str) -> Iterable[int]:
    """At every width from 0 on; below the smallest that was measured not more than there."""
    least = kind.latency[point][phase][0]
    yield 0
    for kept in range(1, kind.units + 1):
        taken = kind.at(kept, point, phase)
        yield round(NANOSECONDS * max(0.0, min(taken, least) if kept < kind.widths[0] else taken))


_READS = ("latency", "latency_anyway", "prompt", "context", "serve_batch", "outtype")

PREFILL = Kind(
    partial(_cost, phase="prefill_ms", unit="ms of prefill"),
    "time of a pass over the prompt",
    milliseconds=True,
    reads=_READS,
)
DECODE = Kind(
    partial(_cost, phase="decode_ms", unit="ms of decoding a token"),
    "time of decoding a token",
    milliseconds=True,
    reads=_READS,
)
