"""EvoPress over depth against an exhaustive search, its fitness against logits of cut models."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from benchmark_modules import load_benchmark
from tiny import tiny_model

from tracenas.families import Options, config_family

pytestmark = pytest.mark.parity


def setting(family: str) -> tuple[Any, Any, torch.Tensor]:
    model = tiny_model(family)
    blocks = config_family(model.config.to_dict()).blocks(model.config.to_dict(), Options(channel_quantum=8))
    return model, blocks, torch.randint(1, 257, (4, 10), generator=torch.Generator().manual_seed(2))


def divergence(model: Any, tokens: torch.Tensor, dropped: set[tuple[int, str]]) -> float:
    """The definition: output projections of what is gone give zero, all logits at once."""
    with torch.no_grad():
        dense = model(tokens).logits[:, :-1].double().log_softmax(-1)
        kept = {}
        for index, name in dropped:
            layer = model.model.layers[index]
            for tensor in (layer.self_attn.o_proj if name == "attention" else layer.mlp.down_proj).parameters():
                kept[tensor] = tensor.clone()
                tensor.zero_()
        other = model(tokens).logits[:, :-1].double().log_softmax(-1)
        for tensor, values in kept.items():
            tensor.copy_(values)
    return float((dense.exp() * (dense - other)).sum(-1).mean())


@pytest.mark.parametrize("family", ["mistral", "gemma2"])
def test_the_fitness_is_the_divergence_of_whole_logits(family: str) -> None:
    model, blocks, tokens = setting(family)
    measured = load_benchmark("rivals.evopress").DropDivergence(model, blocks, tokens, 3)
    assert measured(frozenset(), 4) == pytest.approx(0, abs=1e-6)
    dropped = {(0, "mlp"), (1, "attention"), (3, "attention")}
    assert measured(frozenset(dropped), 4) == pytest.approx(divergence(model, tokens, dropped), rel=1e-3)
    assert measured(frozenset(dropped), 2) == pytest.approx(divergence(model, tokens[:2], dropped), rel=1e-3)


@pytest.mark.parametrize("seed", [0, 1])
def test_evolution_finds_what_an_exhaustive_search_finds(seed: int) -> None:
    evopress, stage = load_benchmark("rivals.evopress"), load_benchmark("rivals.evolution").Stage
    model, blocks, tokens = setting("mistral")
    measured = evopress.DropDivergence(model, blocks, tokens, 4)
    keys = [(i, s.spec.name) for i, b in enumerate(blocks) for s in b.sub_blocks]
    pairs = itertools.combinations(range(4), 2)
    every = [frozenset({(i, "attention"), (j, "attention"), (k, "mlp")}) for (i, j) in pairs for k in range(4)]
    values: list[float] = []
    found = evopress.find_dropped(
        keys,
        {"attention": 2, "mlp": 1},
        measured,
        [stage(3, 1), stage(1, 4)],
        np.random.default_rng(seed),
        generations=12,
        offspring=6,
        initial=3,
        report=lambda _, value: values.append(value),
    )
    assert found == min(every, key=lambda one: measured(one, 4))
    assert values == sorted(values, reverse=True) and values[-1] == measured(found, 4)
