"""Týr-the-Pruner's row: rounds of its two stages in the package's super-network."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from candidates import Selection
from rivals import tyr
from rivals.divergence import Divergence
from rivals.evolution import Stage, evolve
from setting import AIM, Clock, Setting

from tracenas.families import Key, SubBlock, placed, present
from tracenas.models.surgery.ordering import Ordering
from tracenas.models.surgery.supernet import Supernet
from tracenas.pipeline.one_shot import allocate_budget
from tracenas.pipeline.target import PruningTarget
from tracenas.refits.penalty import per_channel
from tracenas.refits.ridge import FittedRealisation
from tracenas.space.architecture import Architecture

__all__ = ["by_tyr"]

TYR: dict[str, Any] = {"shares": (1 / 8, 1 / 16), "reach": 2, "generations": 10, "offspring": 12}
"""Published: four rounds, the last of 1/64; hundreds of generations on up to 131,072 tokens."""


def by_tyr(setting: Setting, target: PruningTarget) -> Selection:
    """Týr's mixture of widths, with its own refits; rounds begin at equal ratios, then at what was found."""
    clock, model, subs = Clock(), setting.loaded.model, dict(present(target.blocks))
    rng = np.random.default_rng(setting.seed)
    equal = allocate_budget(target, Ordering({}, {}), {}, "uniform", None).architecture
    widths: tyr.Widths = tuple(
        ((index, sub.spec.name), kept) for index, sub, kept in placed(target.blocks, equal) if sub.spec.units
    )
    divergence = Divergence(model, setting.search, setting.batch)
    values: list[float] = []
    for share in TYR["shares"]:
        levels = {
            key: tyr.levels_around(subs[key], width, _step(subs[key], share), TYR["reach"]) for key, width in widths
        }
        found = tyr.local_stage(
            model, target.blocks, setting.statistics, setting.batch, levels, lambda gram: per_channel(gram, AIM.ridge)
        )
        ordering = Ordering.from_saliency(target.blocks, {key: one.place for key, one in found.items()})
        net = Supernet(model, target.blocks, ordering)
        widths = evolve(
            [widths],
            lambda parent, levels=levels: tyr.mutated(parent, levels, rng),
            _fitness(target, net, found, divergence),
            [Stage(3, 1), Stage(1, len(setting.search))],
            generations=TYR["generations"],
            offspring=TYR["offspring"],
            report=lambda _, value: values.append(round(value, 4)),
        )
        net.restore()
    own = {key: found[key].outputs[width] for key, width in widths}
    return Selection(ordering, _architecture(target, widths), clock.seconds, own, {"divergence": values, **TYR})


def _fitness(
    target: PruningTarget, net: Supernet, found: Mapping[Key, tyr.Levels], divergence: Divergence
) -> Callable[[tyr.Widths, int], float]:
    """The divergence of a mixture of levels."""

    def measured(candidate: tyr.Widths, sequences: int) -> float:
        own = {key: found[key].outputs[width] for key, width in candidate}
        with net.realise(_architecture(target, candidate), FittedRealisation(own)):
            return divergence.now(sequences)

    return measured


def _step(sub: SubBlock, share: float) -> int:
    """A share of a sub-block's units, in its quanta, one at least."""
    quantum = sub.spec.quantum
    return max(1, round(share * sub.spec.units / quantum)) * quantum


def _architecture(target: PruningTarget, widths: tyr.Widths) -> Architecture:
    kept = dict(widths)
    rows = [[kept.get((i, s.name), 0) for s in layer.sub_blocks] for i, layer in enumerate(target.space.layers)]
    return target.space.build(rows)
