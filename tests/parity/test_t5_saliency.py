"""Saliencies and scores of T5 against plain autograd on the dense model, units cut out of its matrices by hand."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from test_score import Setup, check_parity
from tiny import FLAN, tiny_model
from torch import Tensor
from unit_products import absolute, assert_equal_units, products, signed

from tracenas.families import Options, config_family
from tracenas.models.functionals.max_logit import max_logit
from tracenas.saliency import SALIENCIES
from tracenas.saliency.products import unit_products
from tracenas.space.architecture import Architecture

pytestmark = pytest.mark.parity

KINDS: dict[str, dict[str, Any]] = {"t5": {}, "flan": FLAN}
Key = tuple[int, str]


def tokens() -> Tensor:
    return torch.randint(2, 257, (6, 17), generator=torch.Generator().manual_seed(1))


def functional(model: Any, kind: str) -> Tensor:
    output = model(input_ids=tokens()[:, :8], labels=tokens()[:, 8:].contiguous())
    result: Tensor = output.loss if kind == "loss" else output.logits.max(dim=1).values.mean()
    return result


def units_by_hand(model: Any, found: dict[str, Tensor], of: Callable[[list[Tensor]], Tensor]) -> dict[Key, Tensor]:
    """`of` of each head's rows of q, k, v and columns of o, and of each channel's of wi and wo."""
    out: dict[Key, Tensor] = {}
    dim, heads, index = model.config.d_kv, model.config.num_heads, 0
    for stack in ("encoder", "decoder"):
        for i, block in enumerate(getattr(model, stack).block):
            at = f"{stack}.block.{i}.layer."
            modules = {"attention": "0.SelfAttention"}
            modules |= {"cross_attention": "1.EncDecAttention"} if stack == "decoder" else {}
            for name, module in modules.items():
                q, k, v, o = (found[f"{at}{module}.{x}.weight"] for x in "qkvo")
                places = [slice(h * dim, (h + 1) * dim) for h in range(heads)]
                out[index, name] = torch.stack([of([q[p], k[p], v[p], o[:, p]]) for p in places])
            ffn = f"{at}{len(block.layer) - 1}.DenseReluDense."
            into = [x for n, x in found.items() if n.startswith(f"{ffn}wi")]
            wo = found[f"{ffn}wo.weight"]
            out[index, "mlp"] = torch.stack([of([*(x[j] for x in into), wo[:, j]]) for j in range(wo.shape[1])])
            index += 1
    return out


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("saliency", "what", "of"),
    [
        ("nirvana", "logit", absolute),
        ("nirvana_loss", "loss", absolute),
        ("taylor", "loss", signed),
        ("magnitude", "weights", absolute),
    ],
)
def test_saliency_equals_autograd(kind: str, saliency: str, what: str, of: Any) -> None:
    model = tiny_model("t5", **KINDS[kind])
    blocks = config_family(model.config.to_dict()).blocks(model.config.to_dict(), Options(channel_quantum=8))
    weights = {n: p.detach().double() for n, p in model.named_parameters() if p.dim() > 1}
    # Signed sums cancel, in float32 autograd's own by more than the bound: their reference is the model's double.
    reference = copy.deepcopy(model).double() if of is signed else model
    found = weights if what == "weights" else products(reference, lambda: functional(reference, what))
    expected = units_by_hand(model, found, of)
    per_unit, importance = SALIENCIES.get(saliency)(model, blocks, tokens(), 6)
    assert set(per_unit) == set(expected) == set(importance)
    assert_equal_units(per_unit, expected, of)


@pytest.mark.parametrize("kind", ["t5", pytest.param("flan", marks=pytest.mark.slow)])
def test_the_memory_allowed_does_not_change_it(kind: str) -> None:
    """With little memory every matrix of encoder and decoder has passes of its own."""
    model = tiny_model("t5", **KINDS[kind])
    blocks = config_family(model.config.to_dict()).blocks(model.config.to_dict(), Options(channel_quantum=8))
    whole = unit_products(model, blocks, tokens(), 6, max_logit)
    parts = unit_products(model, blocks, tokens(), 4, max_logit, allowance=1)
    for key, value in whole.items():
        torch.testing.assert_close(parts[key], value, rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_wanda_equals_its_formula(kind: str) -> None:
    model = tiny_model("t5", **KINDS[kind])
    blocks = config_family(model.config.to_dict()).blocks(model.config.to_dict(), Options())
    seen: dict[Key, Tensor] = {}
    for i, block in enumerate(blocks):
        for sub in block.sub_blocks:
            model.get_submodule(f"{block.path}.{sub.output}").register_forward_pre_hook(
                lambda _, x, key=(i, sub.spec.name): seen.__setitem__(key, x[0].flatten(0, 1).double())
            )
    functional(model, "loss")
    inputs = dict(seen)
    per_unit, _ = SALIENCIES.get("wanda")(model, blocks, tokens(), 2)
    for i, block in enumerate(blocks):
        for sub in block.sub_blocks:
            weight = model.get_submodule(f"{block.path}.{sub.output}").weight.double()
            columns = weight.abs().sum(dim=0) * inputs[i, sub.spec.name].norm(dim=0)
            torch.testing.assert_close(per_unit[i, sub.spec.name], columns.view(sub.spec.units, -1).sum(dim=1))


# Counts of 4 heads and 96 channels: blocks 0 of both stacks, and what is bypassed in them.
FULL = [[4, 96]] * 4 + [[4, 4, 96]] * 3
EDGES = {
    "encoder without block 0": {0: [0, 0], 1: [3, 64]},
    "decoder without block 0": {4: [0, 0, 0], 5: [2, 3, 96]},
    "both without blocks 0 and 1": {0: [0, 0], 1: [0, 0], 2: [1, 32], 4: [0, 0, 0], 5: [0, 0, 0], 6: [3, 1, 96]},
    "no self-attention in blocks 0": {0: [0, 96], 1: [2, 96], 4: [0, 4, 96], 5: [3, 2, 64]},
    "no cross-attention in block 4": {4: [2, 0, 96], 5: [4, 2, 96], 6: [4, 3, 96]},
    "different heads in every block": {0: [1, 96], 1: [2, 96], 2: [3, 96], 4: [1, 3, 96], 5: [2, 2, 96], 6: [3, 1, 96]},
}


@pytest.fixture(scope="module", params=KINDS)
def setup(request: pytest.FixtureRequest) -> Setup:
    return Setup(*(tiny_model("t5", **KINDS[request.param]) for _ in range(2)), tokens())


@pytest.mark.parametrize("name", EDGES)
def test_the_position_bias_goes_on(name: str, setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    arch = setup.space.build([EDGES[name].get(i, row) for i, row in enumerate(FULL)])
    monkeypatch.setattr(setup, "architectures", lambda _: iter([arch]))
    check_parity(setup, 1)
    bias = "layer.0.SelfAttention.relative_attention_bias"
    table = setup.reference.get_submodule(f"{setup.blocks[0].path}.{bias}").weight
    flat = table.mean(dim=1, keepdim=True).expand_as(table).clone()
    loss = setup.evaluator.score(arch).loss
    assert loss is not None
    kept = setup.net.model.encoder.block[0].get_submodule(bias).weight
    with torch.no_grad():
        before = kept.clone()
        kept.copy_(flat)  # were it not read, this would change nothing
        changed = setup.evaluator.score(arch).loss
        kept.copy_(before)
    assert changed is not None and abs(changed - loss) > 1e-5


def test_a_search_keeps_a_block_of_every_stack(setup: Setup) -> None:
    from dataclasses import replace

    space = replace(setup.space, min_depth=1, granularity="block")
    rng = np.random.default_rng(0)

    def depths(arch: Architecture | None) -> dict[str, int]:
        assert arch is not None
        return space.active(space.counts(arch))

    assert depths(space.smallest) == {"encoder": 1, "decoder": 1}
    arch = space.base
    for _ in range(60):
        arch = space.mutate(arch, rng, depth=1.0, width=0.0)
        assert min(depths(arch).values()) >= 1
    empty = space.build([[0, 0]] * 4 + [[4, 4, 96]] * 3)
    assert depths(space.repair(empty, rng))["encoder"] == 1
    halves = [space.crossover(arch, space.base, rng) for _ in range(20)]
    assert all(min(depths(space.repair(child, rng)).values()) >= 1 for child in halves)
