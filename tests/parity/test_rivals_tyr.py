"""Týr's local stage against statistics and refits written out, and the budget under its mutations."""

from typing import Any

import numpy as np
import pytest
import torch
from benchmark_modules import load_benchmark
from tiny import tiny_model

from tracenas.families import Options, config_family
from tracenas.refits.ridge import fit_removed

pytestmark = pytest.mark.parity

RIDGE = 0.3
LEVELS = {"attention": [2, 4], "mlp": [32, 64, 96]}


def setting(family: str) -> tuple[Any, Any, torch.Tensor]:
    model = tiny_model(family).double()
    config = model.config.to_dict()
    blocks = config_family(config).blocks(config, Options(channel_quantum=8))
    return model, blocks, torch.randint(1, 257, (6, 12), generator=torch.Generator().manual_seed(5))


def inputs_of(model: Any, module: Any, tokens: torch.Tensor) -> torch.Tensor:
    """What enters a linear module in a pass of the whole model, [tokens, n]."""
    seen: list[torch.Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, given: seen.append(given[0].flatten(0, 1)))
    with torch.no_grad():
        model(tokens)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_levels_are_refits_on_what_the_levels_before_give_on_average(family: str) -> None:
    model, blocks, tokens = setting(family)
    tyr = load_benchmark("rivals.tyr")
    widths = {(i, s.spec.name): LEVELS[s.spec.name] for i, b in enumerate(blocks) for s in b.sub_blocks}
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    found = tyr.local_stage(model, blocks, tokens, 4, widths, lambda gram: RIDGE)
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    for index, layer in enumerate(model.model.layers):
        for name, module in (("attention", layer.self_attn.o_proj), ("mlp", layer.mlp.down_proj)):
            x, dense, levels = inputs_of(model, module, tokens), module.weight.clone(), found[index, name]
            units = len(levels.place)
            size, groups = dense.shape[1] // units, 2 if name == "attention" else 1
            mean = torch.zeros_like(dense)
            for width in LEVELS[name]:
                each, kept = units // groups, []
                for first in range(0, units, each):
                    ranked = sorted(range(first, first + each), key=lambda u: -int(levels.place[u]))
                    kept += ranked[: width // groups]
                columns = torch.tensor([unit * size + c for unit in kept for c in range(size)])
                expected = fit_removed(x.T @ x, dense, columns, RIDGE)
                torch.testing.assert_close(levels.outputs[width], expected, rtol=1e-6, atol=1e-8)
                mean[:, columns] += expected / len(LEVELS[name])
            module.weight.copy_(mean)  # what later sub-blocks see


def test_mutations_stay_within_levels_and_keep_the_units_of_every_kind() -> None:
    tyr, rng = load_benchmark("rivals.tyr"), np.random.default_rng(0)
    keys = [(i, name) for i in range(4) for name in LEVELS]
    levels = {key: LEVELS[key[1]] for key in keys}
    parent = tuple((key, 2 if key == (0, "attention") else LEVELS[key[1]][1]) for key in keys)
    seen = set()
    for _ in range(200):
        child = tyr.mutated(parent, levels, rng)
        seen.add(child)
        changed = [(key, width, dict(child)[key]) for key, width in parent if dict(child)[key] != width]
        assert len(changed) == 2 and len({key[1] for key, *_ in changed}) == 1
        assert sum(new - old for _, old, new in changed) == 0
        assert all(width in levels[key] for key, width in child)
    assert len(seen) == 4 * 3 + 3
    assert tyr.mutated(((keys[0], 2), (keys[1], 64)), levels, rng) == ((keys[0], 2), (keys[1], 64))


def test_levels_are_widths_that_there_are() -> None:
    _, blocks, _ = setting("llama")
    attention, mlp = blocks[0].sub_blocks
    around = load_benchmark("rivals.tyr").levels_around
    assert around(mlp, 64, 24, 2) == [16, 40, 64, 88]
    assert around(attention, 2, 2, 2) == [2, 4]
