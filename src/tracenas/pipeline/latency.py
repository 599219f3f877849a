"""The latency table that budgets of milliseconds are counted by; one that says nothing of this job is refused."""

from collections.abc import Iterator
from pathlib import Path

from tracenas.benchmark.devices import graphics_processors, processor
from tracenas.benchmark.latency_table import LatencyTable
from tracenas.budgets import stored_as
from tracenas.config.budgets import BudgetConfig
from tracenas.dtypes import short_name
from tracenas.errors import UserError
from tracenas.pipeline.run_directory import LATENCY
from tracenas.pipeline.target import PruningTarget
from tracenas.rundir import write_json
from tracenas.strategies.score import is_number

__all__ = ["keep_latency", "latency_table"]

_GOOD = 0.10
"""The median error of whole architectures beyond which a table is not relied on."""


def latency_table(target: PruningTarget, config: BudgetConfig, run: Path | None = None) -> LatencyTable | None:
    """The table of the settings, or the copy that a run keeps; None where there is none.

    Args:
        run: whose copy is taken where there is one: what it was made of counted when the run began.

    Raises:
        UserError: for a file that is none; without `latency_anyway` for one of another model, machine or dtype, and one
            with too large an error.
    """
    if run is not None and (run / LATENCY).is_file():
        return LatencyTable.read(run / LATENCY)
    if config.latency is None:
        return None
    table = LatencyTable.read(config.latency)
    objection = None if config.latency_anyway else next(_objections(table, target, config), None)
    if objection is not None:
        raise UserError(f"latency {config.latency}: {objection}; --latency-anyway takes it all the same")
    return table


def keep_latency(config: BudgetConfig, run: Path) -> None:
    """Put a copy of the table into a run that begins; going on with it needs no other file."""
    if config.latency is not None and not (run / LATENCY).is_file():
        write_json(run / LATENCY, LatencyTable.read(config.latency).to_json())


def _objections(table: LatencyTable, target: PruningTarget, config: BudgetConfig) -> Iterator[str]:
    """Why a table should not be relied on."""
    here = (target.source.family.model_type, target.space.parameters(target.space.base))
    there = (table.model.get("family"), table.model.get("parameters"))
    if here != there:
        yield f"is of {_model(*there)}, not of {_model(*here)}"
    device, cpu = table.machine.get("device"), processor()
    graphics = () if device == cpu else graphics_processors()
    if device != cpu and device not in graphics:
        yield f"was measured on {device}, and this machine has {', '.join((cpu, *graphics))}"
    dtype, wanted = _named(str(table.machine.get("dtype"))), _wanted(target, config, on_cpu=device == cpu)
    if dtype not in wanted:
        yield f"was measured in {dtype}, not in {' or '.join(dict.fromkeys(wanted))}"
    error = table.checked.get("median_error")
    if not is_number(error):
        yield "was not checked on whole architectures"
    elif error > _GOOD:
        yield f"is off by {100 * error:.1f} % in the median over whole architectures, more than {100 * _GOOD:.0f} %"


def _model(family: object, parameters: object) -> str:
    return f"a {family} of {parameters:,} parameters" if isinstance(parameters, int) else f"a {family}"


def _wanted(target: PruningTarget, config: BudgetConfig, *, on_cpu: bool) -> tuple[str, ...]:
    """The dtypes that the model may be served in: as asked for, else what `measure` takes by itself, or as stored."""
    if config.outtype != "auto":
        return (_named(config.outtype),)
    if config.dtype != "auto":
        return (_named(config.dtype),)
    return ("fp32" if on_cpu else "bf16", _named(stored_as(target.source)))


def _named(dtype: str) -> str:
    """`f32` → `fp32`, as `bf16` and `q8_0` are called alike everywhere."""
    return {"f32": "fp32", "f16": "fp16"}.get(dtype, short_name(dtype))
