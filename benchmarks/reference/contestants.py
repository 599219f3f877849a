"""The rows of the table: what each of them selects under a budget, and in which forms it is measured."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from candidates import Candidate, KeptUnits, OwnForm, Selection
from rival_rows import by_evopress, by_minitron, by_osscar, by_sleb, by_slicegpt
from rivals.plain_decoders import check_plain
from setting import SAMPLES, SEQ_LEN, Clock, Setting
from tyr_row import by_tyr

import tracenas
from tracenas.errors import UserError
from tracenas.families import Options
from tracenas.models.checkpoints.source import ModelSource
from tracenas.models.surgery.ordering import Ordering
from tracenas.pipeline.one_shot import allocate_budget, rank_units
from tracenas.pipeline.opening import stored_ordering
from tracenas.pipeline.run_directory import ORDERING
from tracenas.pipeline.target import PruningTarget
from tracenas.rundir import read_json
from tracenas.saliency.methods import METHODS
from tracenas.space.architecture import Architecture

__all__ = ["CONTESTANTS", "OURS", "Contestant"]

OURS = "ours"
"""The row that the others are compared with."""

UNITS = ("refitted", "plain")


@dataclass(frozen=True)
class Contestant:
    """A row of the table.

    Args:
        make: (setting, budget, place of its files) → what it makes of the budget.
        paper: where the method is described.
        forms: of `FORMS`, in the order in which they are measured.
        check: refuses a model that the method cannot treat (UserError), before anything is measured.
    """

    make: Callable[[Setting, str, Path], Candidate]
    paper: str
    forms: tuple[str, ...] = UNITS
    check: Callable[[ModelSource], None] = lambda source: None


def stored(
    setting: Setting, target: PruningTarget, path: Path, select: Callable[[Setting, PruningTarget], Selection]
) -> KeptUnits:
    """A candidate of kept units, selected once."""
    if not path.is_file():
        select(setting, target).save(path)
    return KeptUnits(setting, target, Selection.load(path, target), path)


def one_shot(method: str, saliency: str | None = None) -> Callable[[Setting, str, Path], Candidate]:
    """A one-shot method of the package, ranked on the statistics' text by its own saliency or another one."""

    def select(setting: Setting, target: PruningTarget) -> Selection:
        clock, known = Clock(), METHODS[method]
        rank = saliency or known.saliency
        ordering, importance = rank_units(target, setting.loaded, rank, setting.statistics, setting.batch)
        allocated = allocate_budget(target, ordering, importance, known.allocation, None)
        return Selection(ordering, allocated.architecture, clock.seconds, facts=allocated.facts)

    return lambda setting, budget, path: stored(setting, setting.target(method, budget), path, select)


def selected(
    select: Callable[[Setting, PruningTarget], Selection], method: str = "uniform"
) -> Callable[[Setting, str, Path], Candidate]:
    """What a rival selects, in the units of a method of the package."""
    return lambda setting, budget, path: stored(setting, setting.target(method, budget), path, select)


def own(make: Callable[[Setting, PruningTarget], OwnForm]) -> Callable[[Setting, str, Path], Candidate]:
    """A rival whose result is no set of kept units."""
    return lambda setting, budget, path: make(setting, setting.target("uniform", budget))


def plain_decoder(rival: str) -> Callable[[ModelSource], None]:
    """Refuses models whose residual stream a rival cannot cut."""
    return lambda source: check_plain(rival, source.name, source.config)


def without_experts(rival: str) -> Callable[[ModelSource], None]:
    """Refuses models of fused experts, whose output projections have no Gram matrix."""

    def check(source: ModelSource) -> None:
        if any(sub.stacked for block in source.blocks(Options()) for sub in block.sub_blocks):
            raise UserError(f"rival {rival}: {source.name} has fused experts, whose output projections it cannot refit")

    return check


def searched(**how: Any) -> Callable[[Setting, str, Path], Candidate]:
    """What a search finds; its run directory is beside the selection, and an interrupted search goes on."""

    def make(setting: Setting, budget: str, path: Path) -> Candidate:
        def select(setting: Setting, target: PruningTarget) -> Selection:
            clock, run = Clock(), path.with_suffix("")
            resumed = run.is_dir()
            tracenas.search(
                setting.model,
                data=setting.data,
                params=budget,
                out=run,
                samples=SAMPLES,
                seq_len=SEQ_LEN,
                seed=setting.seed,
                dtype=setting.dtype,
                threads=setting.threads,
                resume=True,
                **how,
            )
            found = read_json(run / "best.json")
            ordering: Ordering = stored_ordering(run / ORDERING, target.blocks)[0]
            arch = Architecture.from_json(found, where=str(run / "best.json"))
            seconds = None if resumed else clock.seconds
            return Selection(ordering, target.space.validate(arch), seconds, facts={"search": how})

        return stored(setting, setting.target("uniform", budget), path, select)

    return make


CONTESTANTS: dict[str, Contestant] = {
    "uniform": Contestant(one_shot("uniform"), "units by Wanda, arXiv:2306.11695"),
    "uniform, obs": Contestant(one_shot("uniform", "obs"), "units by structured OBS, arXiv:2302.04089"),
    "mlp": Contestant(one_shot("mlp"), "attention untouched, equal MLPs"),
    "fisher": Contestant(one_shot("fisher"), "closed form, docs/closed-form.md"),
    "flap": Contestant(one_shot("flap"), "FLAP, arXiv:2312.11983"),
    "nirvana": Contestant(one_shot("nirvana"), "NIRVANA, arXiv:2509.14230"),
    "shortgpt": Contestant(one_shot("shortgpt"), "ShortGPT, arXiv:2403.03853"),
    "sleb": Contestant(selected(by_sleb, "shortgpt"), "SLEB, arXiv:2402.09025"),
    "evopress depth": Contestant(selected(by_evopress), "EvoPress, arXiv:2410.14649"),
    "minitron width": Contestant(
        own(by_minitron), "Minitron, arXiv:2407.14679", ("own",), plain_decoder("minitron width")
    ),
    "osscar": Contestant(selected(by_osscar), "OSSCAR, arXiv:2403.12983", ("own", *UNITS), without_experts("osscar")),
    "tyr": Contestant(selected(by_tyr), "Týr-the-Pruner, arXiv:2503.09657", ("own", *UNITS), without_experts("tyr")),
    "slicegpt": Contestant(own(by_slicegpt), "SliceGPT, arXiv:2401.15024", ("own",), plain_decoder("slicegpt")),
    OURS: Contestant(searched(), "guided search over the closed form, docs/search.md"),
    "phi": Contestant(searched(proxy="phi", evaluations=174), "TraceNAS as published: evolution of Φ"),
}
