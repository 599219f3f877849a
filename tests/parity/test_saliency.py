"""Saliencies against plain autograd: full weight gradients of the dense model, units cut out of them by hand."""

from typing import Any

import pytest
import torch
from tiny import tiny_model
from torch import Tensor
from unit_products import absolute, assert_equal_units, products, signed

from tracenas.families import Options, config_family
from tracenas.models.functionals.max_logit import max_logit
from tracenas.saliency import SALIENCIES
from tracenas.saliency.nirvana import sequence_loss
from tracenas.saliency.products import unit_products
from tracenas.saliency.statistics import column_norms

pytestmark = pytest.mark.parity

CHUNKS = 4 * 8 << 18
"""Bytes of temporary tensors that an allowance counts first."""

# family, changes, whole KV groups
CASES: dict[str, tuple[str, dict[str, Any], bool]] = {
    "mha": ("llama", {"num_key_value_heads": 4}, False),
    "gqa": ("llama", {}, False),
    "gqa_kv_groups": ("llama", {}, True),
    "qwen3_kv_groups": ("qwen3", {}, True),
    "gemma2_softcap": ("gemma2", {}, False),
    "gpt_neox_fused": ("gpt_neox", {}, False),
    "phi3_fused": ("phi3", {}, False),
    "phi3_fused_kv_groups": ("phi3", {}, True),
    "mixtral_experts": ("mixtral", {}, True),
    "qwen3_moe_experts": ("qwen3_moe", {}, False),
    "qwen2": ("qwen2", {}, False),
    "mistral_kv_groups": ("mistral", {}, True),
    "gemma": ("gemma", {}, False),
    "gemma3_text": ("gemma3_text", {}, True),
    "olmo2_kv_groups": ("olmo2", {}, True),
}


def prepared(name: str) -> tuple[Any, Any, Tensor]:
    model_type, changes, groups = CASES[name]
    model = tiny_model(model_type, **changes)
    config = model.config.to_dict()
    blocks = config_family(config).blocks(config, Options(channel_quantum=8, kv_groups=groups))
    tokens = torch.randint(1, 257, (6, 16), generator=torch.Generator().manual_seed(1))
    return model, blocks, tokens


def functional(model: Any, tokens: Tensor, kind: str) -> Tensor:
    if kind == "loss":
        loss: Tensor = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        return loss
    logits = model(input_ids=tokens, use_cache=False).logits  # softcapped where the family does that
    largest: Tensor = logits.max(dim=1).values
    return largest.mean()


def units_by_hand(name: str, model: Any, found: dict[str, Tensor], of: Any) -> dict[tuple[int, str], Tensor]:
    """`of` of each unit's slices: a list of tensors per unit, read off the family's own layout of its matrices."""
    c, groups = model.config, CASES[name][2]
    heads = c.num_attention_heads
    kv = getattr(c, "num_key_value_heads", None) or heads
    dim = getattr(c, "head_dim", None) or c.hidden_size // heads
    out: dict[tuple[int, str], Tensor] = {}
    for i in range(c.num_hidden_layers):
        at = f"gpt_neox.layers.{i}." if c.model_type == "gpt_neox" else f"model.layers.{i}."
        if c.model_type == "gpt_neox":
            fused, dense = found[at + "attention.query_key_value.weight"], found[at + "attention.dense.weight"]
            slices = [[fused[3 * dim * h : 3 * dim * (h + 1)], dense[:, dim * h : dim * (h + 1)]] for h in range(heads)]
        else:
            if c.model_type == "phi3":
                qkv = found[at + "self_attn.qkv_proj.weight"]
                q, k, v = qkv.split([heads * dim, kv * dim, kv * dim])
            else:
                q, k, v = (found[f"{at}self_attn.{x}_proj.weight"] for x in "qkv")
            o = found[at + "self_attn.o_proj.weight"]
            width = dim * (heads // kv) if groups or kv == heads else dim
            places = [slice(u * width, (u + 1) * width) for u in range(len(q) // width)]
            slices = [[q[place], o[:, place]] for place in places]
            if groups or kv == heads:
                for u, own in enumerate(slices):
                    own += [k[u * dim : (u + 1) * dim], v[u * dim : (u + 1) * dim]]
        out[i, "attention"] = torch.stack([of(own) for own in slices])
        out[i, "mlp"] = torch.stack([of(own) for own in channels(c.model_type, at, found)])
    return out


def channels(model_type: str, at: str, found: dict[str, Tensor]) -> list[list[Tensor]]:
    if model_type == "gpt_neox":
        up, down = found[at + "mlp.dense_h_to_4h.weight"], found[at + "mlp.dense_4h_to_h.weight"]
        return [[up[j], down[:, j]] for j in range(len(up))]
    if at + "mlp.experts.gate_up_proj" in found:
        up, down = found[at + "mlp.experts.gate_up_proj"], found[at + "mlp.experts.down_proj"]
        width = down.shape[2]
        return [[up[e, j], up[e, width + j], down[e, :, j]] for e in range(len(up)) for j in range(width)]
    down = found[at + "mlp.down_proj.weight"]
    if model_type == "phi3":
        gate, up = found[at + "mlp.gate_up_proj.weight"].chunk(2)
    else:
        gate, up = found[at + "mlp.gate_proj.weight"], found[at + "mlp.up_proj.weight"]
    return [[gate[j], up[j], down[:, j]] for j in range(len(up))]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    ("saliency", "kind", "of"),
    [("nirvana", "logit", absolute), ("nirvana_loss", "loss", absolute), ("taylor", "loss", signed)],
)
def test_equals_autograd(name: str, saliency: str, kind: str, of: Any) -> None:
    model, blocks, tokens = prepared(name)
    expected = units_by_hand(name, model, products(model, lambda: functional(model, tokens, kind)), of)
    per_unit, importance = SALIENCIES.get(saliency)(model, blocks, tokens, 6)
    assert set(per_unit) == set(expected) == set(importance)
    for value in per_unit.values():
        assert value.dtype == torch.float64
    assert_equal_units(per_unit, expected, of)
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("allowance", [1, CHUNKS + 60_000, CHUNKS + 400_000])
def test_the_memory_allowed_does_not_change_it(name: str, allowance: int) -> None:
    """However small the batches, whichever way, the gradient is the whole calibration's before its absolute value."""
    model, blocks, tokens = prepared(name)
    whole = unit_products(model, blocks, tokens, 6, max_logit)
    parts = unit_products(model, blocks, tokens, 4, max_logit, allowance=allowance)
    separate = [unit_products(model, blocks, row, 1, max_logit) for row in tokens.split(1)]
    for key, value in whole.items():
        torch.testing.assert_close(parts[key], value, rtol=1e-5, atol=0)
        assert (sum(s[key] for s in separate) / 6 > 1.01 * value).all()  # |.| of every sequence is another thing


def test_one_pass_where_it_fits() -> None:
    model, blocks, tokens = prepared("gqa")
    batches = []

    def counted(net: Any, ids: Tensor) -> Tensor:
        batches.append(len(ids))
        loss: Tensor = sequence_loss(net, ids)
        return loss

    unit_products(model, blocks, tokens, 6, counted)
    assert batches == [6]
    batches.clear()
    unit_products(model, blocks, tokens, 4, counted, absolute=False)
    assert batches == [4, 2]  # sums without absolute values add up
    batches.clear()
    unit_products(model, blocks, tokens, 6, counted, allowance=1)
    assert batches == [1] * 6  # block by block: the functional is computed once, of what leaves the last one


def test_bfloat16() -> None:
    model, blocks, tokens = prepared("gqa_kv_groups")
    half = tiny_model("llama").to(torch.bfloat16)
    exact, _ = SALIENCIES.get("nirvana")(model, blocks, tokens, 6)
    rounded, _ = SALIENCIES.get("nirvana")(half, blocks, tokens, 6)
    for key, value in exact.items():
        error = (rounded[key] - value).abs() / value.mean()
        assert float(error.mean()) < 0.2 and float(torch.corrcoef(torch.stack([rounded[key], value]))[0, 1]) > 0.9


@pytest.mark.parametrize("name", CASES)
def test_magnitude_equals_sums_by_hand(name: str) -> None:
    model, blocks, tokens = prepared(name)
    weights = {n: p.detach().double() for n, p in model.named_parameters() if p.dim() > 1}
    expected = units_by_hand(name, model, weights, absolute)
    per_unit, _ = SALIENCIES.get("magnitude")(model, blocks, tokens, 6)
    assert_equal_units(per_unit, expected, absolute)


@pytest.mark.parametrize("name", ["mha", "gqa", "gqa_kv_groups", "gpt_neox_fused", "phi3_fused"])
def test_fluctuation_equals_its_formula(name: str) -> None:
    model, blocks, tokens = prepared(name)
    seen: dict[tuple[int, str], Tensor] = {}
    for i, block in enumerate(blocks):
        for sub in block.sub_blocks:
            module = model.get_submodule(f"{block.path}.{sub.output}")
            module.register_forward_pre_hook(
                lambda _, x, key=(i, sub.spec.name): seen.__setitem__(key, x[0].flatten(0, 1).double())
            )
    model(input_ids=tokens)
    inputs = dict(seen)
    per_unit, importance = SALIENCIES.get("flap")(model, blocks, tokens, 4)
    for i, block in enumerate(blocks):
        for sub in block.sub_blocks:
            key = (i, sub.spec.name)
            weight = model.get_submodule(f"{block.path}.{sub.output}").weight.double()
            metric = inputs[key].var(dim=0) * weight.square().sum(dim=0)
            standard = (metric - metric.mean()) / metric.std(correction=0)
            torch.testing.assert_close(
                per_unit[key], standard.view(sub.spec.units, -1).mean(dim=1), rtol=1e-4, atol=1e-5
            )
            assert importance[key] == pytest.approx(float(metric.mean()), rel=1e-4)


def test_block_influence_equals_its_formula() -> None:
    model, blocks, tokens = prepared("gqa")
    states = model(input_ids=tokens, output_hidden_states=True).hidden_states
    last: list[Tensor] = []
    model.get_submodule(blocks[-1].path).register_forward_hook(lambda _, __, out: last.append(out))
    model(input_ids=tokens)
    states = [*states[:-1], last[0]]  # transformers' last one is normed
    _, importance = SALIENCIES.get("block_influence")(model, blocks, tokens, 4)
    for i in range(len(blocks)):
        expected = 1 - float(torch.cosine_similarity(states[i], states[i + 1], dim=-1).mean())
        assert importance[i, "attention"] == importance[i, "mlp"] == pytest.approx(expected, abs=1e-6)


def peak_to_peak_by_hand(model: Any, index: int) -> Tensor:
    """Σ of ranges, each over the block's largest, channel by channel: experts one after the other."""
    c = model.config
    if c.model_type == "gpt_neox":
        mlp = model.gpt_neox.layers[index].mlp
        matrices = [mlp.dense_h_to_4h.weight, mlp.dense_4h_to_h.weight.T]
    elif c.model_type == "phi3":
        mlp = model.model.layers[index].mlp
        matrices = [*mlp.gate_up_proj.weight.chunk(2), mlp.down_proj.weight.T]
    elif hasattr(mlp := model.model.layers[index].mlp, "experts"):
        gate, up = mlp.experts.gate_up_proj.chunk(2, dim=1)
        matrices = [gate.flatten(0, 1), up.flatten(0, 1), mlp.experts.down_proj.transpose(1, 2).flatten(0, 1)]
    else:
        matrices = [mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight.T]
    total = torch.zeros(len(matrices[0]), dtype=torch.float64)
    for matrix in matrices:
        ranges = torch.tensor([float(max(row) - min(row)) for row in matrix.tolist()], dtype=torch.float64)
        total += ranges / ranges.max()
    return total


@pytest.mark.parametrize(
    "name",
    [
        "mha",
        "gemma2_softcap",
        "olmo2_kv_groups",
        "gpt_neox_fused",
        "phi3_fused",
        "mixtral_experts",
        "qwen3_moe_experts",
    ],
)
def test_peak_to_peak_of_channels(name: str) -> None:
    """Rows of gate and up, columns of down; the inputs of the last as a hook sees them. Heads are Wanda's."""
    model, blocks, tokens = prepared(name)
    found, importance = SALIENCIES.get("peak_to_peak")(model, blocks, tokens, 4)
    wanda, same = SALIENCIES.get("wanda")(model, blocks, tokens, 4)
    assert importance == same
    norms = column_norms(model, blocks, tokens, 4).norms
    for index, block in enumerate(blocks):
        attention, mlp = block.sub_blocks
        assert torch.equal(found[index, attention.spec.name], wanda[index, attention.spec.name])
        key = index, mlp.spec.name
        if not mlp.stacked:
            seen: list[Tensor] = []
            down = model.get_submodule(f"{block.path}.{mlp.output}")
            handle = down.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0].flatten(0, -2)))
            with torch.no_grad():
                model(input_ids=tokens)
            handle.remove()
            torch.testing.assert_close(seen[0].double().square().sum(0).sqrt(), norms[key], rtol=1e-5, atol=0)
        expected = peak_to_peak_by_hand(model, index) * norms[key].reshape(-1)
        torch.testing.assert_close(found[key], expected, rtol=1e-6, atol=0)
        assert not torch.equal(found[key].argsort(), wanda[key].argsort())
