"""OSSCAR's error and exchanges against refits from scratch and the best of all subsets."""

import itertools
from typing import Any

import pytest
import torch
from benchmark_modules import load_benchmark
from tiny import tiny_model

from tracenas.families import Options, config_family
from tracenas.refits.gram import gram_matrices
from tracenas.refits.ridge import fit_removed, strength

pytestmark = pytest.mark.parity

LAYOUTS = {"channels": (9, 1, 1, 4), "heads": (6, 2, 1, 2), "heads_in_groups": (8, 2, 2, 4)}
"""Units, columns of one, groups, units that go."""


def layer(layout: str, seed: int) -> tuple[Any, Any, int, float]:
    """A layer of correlated inputs; its Gram matrix, how many units go, and λ."""
    units, size, groups, count = LAYOUTS[layout]
    rng = torch.Generator().manual_seed(seed)
    n = units * size
    inputs = torch.randn(60, n, generator=rng, dtype=torch.float64) @ torch.randn(n, n, generator=rng).double()
    weight = torch.randn(5, n, generator=rng, dtype=torch.float64)
    gram = inputs.T @ inputs
    ridge = strength(gram, 0.01)
    columns = torch.arange(n).view(units, size)
    moment = gram + ridge * torch.eye(n, dtype=torch.float64)
    return load_benchmark("rivals.osscar").Layer(moment, weight, columns, groups), gram, count, ridge


def by_refit(one: Any, gram: torch.Tensor, ridge: float, removed: tuple[int, ...]) -> float:
    """‖X W'ᵀ - X Wᵀ‖² + λ‖W' - W‖², W' refitted on what stays."""
    gone = set(one.columns[list(removed)].flatten().tolist())
    kept = [c for c in range(len(gram)) if c not in gone]
    change = -one.weight.clone()
    change[:, kept] += fit_removed(gram, one.weight, torch.tensor(kept), ridge)
    return float((change @ gram * change).sum() + ridge * change.square().sum())


def subsets(one: Any, count: int) -> list[tuple[int, ...]]:
    """Every set of units that groups lose as many of."""
    each, per_group = one.units // one.groups, count // one.groups
    ranges = [range(g * each, (g + 1) * each) for g in range(one.groups)]
    chosen = itertools.product(*(itertools.combinations(r, per_group) for r in ranges))
    return [tuple(itertools.chain.from_iterable(parts)) for parts in chosen]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_error_is_that_of_a_refit_from_scratch(layout: str) -> None:
    one, gram, count, ridge = layer(layout, 0)
    inverse = torch.linalg.inv(one.moment)
    for removed in subsets(one, count)[:7]:
        found = load_benchmark("rivals.osscar").error(one, inverse, removed)
        assert found == pytest.approx(by_refit(one, gram, ridge, removed), rel=1e-8)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_exchanges_come_from_the_greedy_choice_to_the_best_of_all(layout: str) -> None:
    osscar, better, best = load_benchmark("rivals.osscar"), 0, 0
    for seed in range(20):
        one, gram, count, ridge = layer(layout, seed)
        widths = list(range(one.groups, one.units + 1, one.groups))
        first = osscar.greedy(one, widths)[:count]
        found = osscar.exchanged(one, first)
        assert tuple(found) in subsets(one, count)
        errors = {s: by_refit(one, gram, ridge, s) for s in subsets(one, count)}
        start, end = errors[tuple(sorted(first))], errors[tuple(found)]
        assert end <= start * (1 + 1e-9)
        better += end < start * (1 - 1e-9)
        best += end == pytest.approx(min(errors.values()))
        wrong = osscar.exchanged(one, subsets(one, count)[-1])
        assert errors[tuple(wrong)] <= errors[subsets(one, count)[-1]]
    assert best >= 17 and better > 0


def test_layers_are_the_models_with_their_statistics() -> None:
    model = tiny_model("llama")
    config = model.config.to_dict()
    blocks = config_family(config).blocks(config, Options(channel_quantum=8))
    tokens = torch.randint(1, 257, (6, 12), generator=torch.Generator().manual_seed(4))
    grams = dict(gram_matrices(model, blocks, tokens, 6))
    for key, one in load_benchmark("rivals.osscar").layers(model, blocks, tokens, 4, lambda gram: 2.0):
        eye = torch.eye(len(grams[key]), dtype=torch.float64)
        torch.testing.assert_close(one.moment, grams[key] + 2 * eye, rtol=1e-4, atol=1e-4)
        assert (one.units, one.groups) == ((4, 2) if key[1] == "attention" else (96, 1))
        assert one.columns.flatten().tolist() == list(range(len(eye)))
