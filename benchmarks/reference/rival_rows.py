"""What the rivals of `benchmarks/rivals/` select, in the terms of this table."""

from collections.abc import Collection, Sequence

import numpy as np
import torch
from candidates import OwnForm, Selection
from rivals import evopress, minitron, osscar, sleb, slicegpt
from rivals.evolution import Stage
from setting import AIM, Clock, Setting

from tracenas.errors import UserError
from tracenas.families import present
from tracenas.models.surgery.ordering import Ordering
from tracenas.pipeline.one_shot import allocate_budget, rank_units
from tracenas.pipeline.target import PruningTarget
from tracenas.refits.penalty import per_channel
from tracenas.refits.ridge import fit_removed

__all__ = ["by_evopress", "by_minitron", "by_osscar", "by_sleb", "by_slicegpt"]


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


EVOPRESS = {"generations": 30, "offspring": 16, "initial": 16}
"""Published: hundreds of generations of 32 offspring."""


def by_evopress(setting: Setting, target: PruningTarget) -> Selection:
    """EvoPress' sub-blocks; 4 of the offspring survive a window of 512 tokens and are compared on 8."""
    clock, space = Clock(), target.space
    keys = [key for key, _ in present(target.blocks)]
    stages = [Stage(4, 1), Stage(1, len(setting.search))]
    fitness = evopress.DropDivergence(setting.loaded.model, target.blocks, setting.search, setting.batch)
    counts, rng = _drops(target), np.random.default_rng(setting.seed)
    values: list[float] = []
    dropped = evopress.find_dropped(
        keys, counts, fitness, stages, rng, **EVOPRESS, report=lambda _, value: values.append(round(value, 4))
    )
    rows = [
        [0 if (i, s.name) in dropped else s.units for s in layer.sub_blocks] for i, layer in enumerate(space.layers)
    ]
    same = {key: torch.zeros(sub.spec.units) for key, sub in present(target.blocks)}
    facts = {"dropped": sorted(dropped), "divergence": values, **EVOPRESS}
    return Selection(Ordering.from_saliency(target.blocks, same), space.build(rows), clock.seconds, facts=facts)


def _drops(target: PruningTarget) -> dict[str, int]:
    """As many pairs of attention and MLP as the budget asks for, less the attentions that may stay then."""
    space, counts = target.space, {}
    base = space.counts(space.base)
    removed = next((n for n in range(len(base)) if _enough(target, range(n))), None)
    if removed is None:
        raise UserError(f"evopress: the budget cannot be met by dropping all but one of {len(base)} blocks")
    for count in range(removed + 1):
        rows = [[0 if i < count else row[0], 0 if i < removed else row[1]] for i, row in enumerate(base)]
        if space.cost(space.build(rows)) <= space.window[1]:
            counts = {"attention": count, "mlp": removed}
            break
    return counts


def by_minitron(setting: Setting, target: PruningTarget) -> OwnForm:
    """Minitron's widths, of the activations on the text of all statistics."""
    clock, model = Clock(), setting.loaded.model
    widths = minitron.widths_within(model, target.space.window[1])
    narrow = minitron.cut(model, minitron.activations(model, setting.statistics, setting.batch), widths)
    return OwnForm(narrow, sum(p.numel() for p in narrow.parameters()), clock.seconds)


def by_osscar(setting: Setting, target: PruningTarget) -> Selection:
    """OSSCAR at equal ratios: the layer-wise optimum of units and weights, on the dense model's statistics."""
    clock, space = Clock(), target.space
    arch = allocate_budget(target, Ordering({}, {}), {}, "uniform", None).architecture
    subs, kept = dict(present(target.blocks)), space.counts(arch)
    scores, own = {}, {}
    layers = osscar.layers(
        setting.loaded.model,
        target.blocks,
        setting.statistics,
        setting.batch,
        lambda gram: per_channel(gram, AIM.ridge),
    )
    for key, layer in layers:
        place = [sub.spec.name for sub in target.blocks[key[0]].sub_blocks].index(key[1])
        gone = layer.units - kept[key[0]][place]
        removed = osscar.exchanged(layer, osscar.greedy(layer, subs[key].spec.choices())[:gone])
        scores[key] = torch.ones(layer.units)
        scores[key][removed] = 0
        if removed:
            stays = layer.columns[scores[key] > 0].flatten()
            own[key] = fit_removed(layer.moment, layer.weight, stays, 0.0).to(setting.loaded.dtype)
    return Selection(Ordering.from_saliency(target.blocks, scores), arch, clock.seconds, own)


def by_slicegpt(setting: Setting, target: PruningTarget) -> OwnForm:
    """SliceGPT's slice, components of the text of all statistics."""
    clock, model = Clock(), setting.loaded.model
    width = slicegpt.width_within(model, target.space.window[1])
    narrow = slicegpt.sliced(model, target.blocks, setting.statistics, setting.batch, width)
    return OwnForm(narrow, sum(p.numel() for p in narrow.parameters()), clock.seconds)
