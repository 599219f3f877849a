"""Sub-blocks that keep their full width: how they are named, and that nothing gives any of it away."""

from dataclasses import replace

import numpy as np
import pytest
import toys
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tracenas.config import PlanConfig
from tracenas.demo import model_path
from tracenas.errors import UserError
from tracenas.models.checkpoints.source import open_source
from tracenas.pipeline.target import resolve_target
from tracenas.space import Architecture, Budget, LayerSpec, SearchSpace
from tracenas.space.exclusion import kept_whole, parse_exclude
from tracenas.strategies import STRATEGIES, Prior, SearchSettings

DECODER = (toys.layer(),) * 4
PRUNED = (*DECODER[:3], LayerSpec((replace(DECODER[0].sub_blocks[0], units=0), DECODER[0].sub_blocks[1])))
KEPT = frozenset({(0, "attention"), (3, "mlp"), (4, "attention"), (4, "mlp")})


@pytest.mark.parametrize(
    ("text", "layers", "named"),
    [
        ("", DECODER, set()),
        ("0.attention", DECODER, {(0, "attention")}),
        (" 0.attention, 3.mlp,", DECODER, {(0, "attention"), (3, "mlp")}),
        ("2", DECODER, {(2, "attention"), (2, "mlp")}),
        ("-1.mlp,-4.mlp", DECODER, {(3, "mlp"), (0, "mlp")}),
        ("1-2.mlp,1.mlp", DECODER, {(1, "mlp"), (2, "mlp")}),
        ("*.attention", DECODER, {(i, "attention") for i in range(4)}),
        ("*.attention", PRUNED, {(i, "attention") for i in range(3)}),
        ("3", PRUNED, {(3, "mlp")}),
    ],
)
def test_names(text: str, layers: tuple[LayerSpec, ...], named: set[tuple[int, str]]) -> None:
    assert parse_exclude(text, layers) == named


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("attention", r"exclude 'attention': expected BLOCKS or BLOCKS.NAME, such as 3, 0-3, -1.mlp or \*.attention$"),
        ("0.", r"exclude '0.': expected BLOCKS"),
        ("1.mlp,4.mlp", r"exclude '4.mlp': the model has 4 blocks; accepted: -4 to 3$"),
        ("-5", r"exclude '-5': the model has 4 blocks; accepted: -4 to 3$"),
        ("2-1", r"exclude '2-1': the model has 4 blocks"),
        ("0.mpl", r"exclude '0.mpl': there is attention, mlp$"),
        ("3.attention", r"exclude '3.attention': there is mlp$"),
    ],
)
def test_names_of_nothing_are_refused(text: str, line: str) -> None:
    with pytest.raises(UserError, match=line):
        parse_exclude(text, PRUNED)


def test_what_cannot_be_met_is_refused_with_what_can() -> None:
    source = open_source(str(model_path()))
    free, held = (
        resolve_target(source, PlanConfig(model="-", exclude=text)).space for text in (None, "*.attention,7.mlp")
    )
    assert free.cost(free.smallest) < held.cost(held.smallest)
    with pytest.raises(UserError, match=rf"feasible: {held.cost(held.smallest):,} to {held.cost(held.base):,} "):
        resolve_target(source, PlanConfig(model="-", exclude="*.attention,7.mlp"), params="40%")
    exactly = str(held.cost(held.smallest))
    assert (
        resolve_target(source, PlanConfig(model="-", exclude="*.attention,7.mlp"), params=exactly).space.uniform()
        == held.smallest
    )


@given(toys.spaces(), st.integers(0, 2**32 - 1))
@settings(max_examples=80, deadline=None)
def test_architectures_from_elsewhere_are_repaired_to_full_width(space: SearchSpace, seed: int) -> None:
    rng = np.random.default_rng(seed)
    elsewhere = [[int(rng.integers(0, s.units + 1)) for s in layer.sub_blocks] for layer in space.layers]
    for i, row in enumerate(elsewhere):  # widths that are feasible where the space says nothing else
        for j, s in enumerate(space.layers[i].sub_blocks):
            row[j] = row[j] if (i, s.name) in space.excluded else s.floor(row[j]) if row[j] else 0
    repaired = space.repair(space.build(elsewhere), rng)
    if repaired is not None:
        toys.assert_meets(space, repaired)


def test_a_block_that_must_stay_comes_back_whole() -> None:
    free = toys.space(None, layers=2, heads=1, channels=20, hidden=16, quantum=1, outside=0)
    space = replace(free, keep_layers=frozenset({0}), budget=Budget(1_120))
    for seed in range(20):
        repaired = space.repair(space.build([[0, 0], [1, 1]]), np.random.default_rng(seed))
        assert repaired is not None
        toys.assert_meets(space, repaired)


@given(toys.spaces(), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_others_are_refused(space: SearchSpace, seed: int) -> None:
    assume(space.excluded)
    rng, counts = np.random.default_rng(seed), space.counts(space.base)
    index, name = sorted(space.excluded)[int(rng.integers(len(space.excluded)))]
    place = [s.name for s in space.layers[index].sub_blocks].index(name)
    counts[index][place] = int(rng.integers(0, counts[index][place]))
    with pytest.raises(UserError, match=rf"layer {index} has \d+ \w+, this search space keeps \d+ \(exclude\)"):
        space.validate(space.build(counts))


@pytest.mark.parametrize("granularity", ["block", "sublayer"])
@pytest.mark.parametrize("init", ["uniform", "importance", "random"])
@pytest.mark.parametrize("name", STRATEGIES.names())
def test_no_strategy_proposes_anything_else(name: str, init: str, granularity: str) -> None:
    """A prior that would drop the excluded blocks first, and scores that reward their being narrow."""
    free = toys.space(0.5, layers=8, granularity=granularity, min_depth=2)
    space = replace(free, layers=kept_whole(free.layers, KEPT), excluded=KEPT)
    ratios = [[0.01 if (i, s.name) in KEPT else 1.0 for s in la.sub_blocks] for i, la in enumerate(space.layers)]
    prior = Prior(ratios, [0, 3, 4, 1, 2, 5, 6, 7])
    settings_ = SearchSettings(population=10, elites=4, iterations=6, init=init, seed=1)
    strategy = STRATEGIES.get(name)(space, settings_, prior=prior)
    seen: list[Architecture] = []
    while (batch := strategy.ask()) is not None:
        found = [p.candidate for p in batch.proposals if p.candidate is not None]
        for arch in found:
            toys.assert_meets(space, arch)
        seen += found
        strategy.tell(batch, [-sum(space.ratios(p.candidate)[i][0] for i in (1, 2)) for p in batch.proposals])
    assert len(seen) > (1 if name != "uniform" else 0)
    if granularity == "sublayer" and name == "random":  # what stands beside them may go
        assert any(not arch.layers[0]["channels"] for arch in seen)
