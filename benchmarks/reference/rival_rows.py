"""What the rivals of `benchmarks/rivals/` select, in the terms of this table."""

from collections.abc import Collection, Sequence

from candidates import Selection
from rivals import sleb
from setting import Clock, Setting

from tracenas.errors import UserError
from tracenas.pipeline.one_shot import allocate_budget, rank_units
from tracenas.pipeline.target import PruningTarget

__all__ = ["by_sleb"]


def _enough(target: PruningTarget, gone: Collection[int]) -> bool:
    """Whether the model meets the budget without these blocks."""
    space = target.space
    rows = [[0] * len(row) if i in gone else row for i, row in enumerate(space.counts(space.base))]
    return len(gone) < len(rows) and space.cost(space.build(rows)) <= space.window[1]


def _depth(setting: Setting, target: PruningTarget, order: Sequence[int], clock: Clock) -> Selection:
    """Blocks gone in this order; the last one comes back as wide as the budget allows, as ShortGPT's row has it."""
    ordering, _ = rank_units(target, setting.loaded, "wanda", setting.statistics, setting.batch)
    places = {index: place for place, index in enumerate(order)}
    importance = {key: float(places.get(key[0], len(target.blocks))) for key in ordering.saliency}
    allocated = allocate_budget(target, ordering, importance, "depth", None)
    return Selection(ordering, allocated.architecture, clock.seconds, facts={"order": list(order)})


def by_sleb(setting: Setting, target: PruningTarget) -> Selection:
    """SLEB's blocks; losses on the text that searches measure candidates on."""
    clock = Clock()
    least = len(target.blocks) - target.space.min_depth

    def enough(gone: Collection[int]) -> bool:
        if len(gone) > least:
            raise UserError(f"sleb: the budget cannot be met by {least} of {len(target.blocks)} blocks")
        return _enough(target, gone)

    order = sleb.removal_order(setting.loaded.model, target.blocks, setting.search, setting.batch, enough)
    return _depth(setting, target, order, clock)
