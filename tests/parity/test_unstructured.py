"""Unstructured metrics, their statistics and the walk against slow, direct implementations of their definitions."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_model

from tracenas.families import FAMILIES, Block, Options, config_family
from tracenas.models.functionals.loss import next_token_nll
from tracenas.saliency.gradients import GradientStore, write_gradients
from tracenas.saliency.layerwise import BlockWalk, SparsityPlan, statistics
from tracenas.saliency.linear import linear_module, projections
from tracenas.saliency.masks import Sparsity, keep
from tracenas.saliency.sparsify import outlier_shares, sparsify_model
from tracenas.saliency.unstructured import METRICS, Metric, Statistics
from tracenas.saliency.unstructured.sparsegpt import BLOCK, DAMPING, solve
from tracenas.symbolic import KNOWN
from tracenas.symbolic.names import find_metric

pytestmark = pytest.mark.parity

TOKENS = torch.randint(1, 257, (6, 24), generator=torch.Generator().manual_seed(1))


def blocks_of(model: Any) -> tuple[Block, ...]:
    config = model.config.to_dict()
    return config_family(config).blocks(config, Options())


def inputs_of(model: Any, path: str) -> torch.Tensor:
    """All inputs of a module, [tokens, columns]."""
    seen: list[torch.Tensor] = []
    handle = model.get_submodule(path).register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    with torch.no_grad():
        model(input_ids=TOKENS, use_cache=False)
    handle.remove()
    return torch.cat([x.reshape(-1, x.shape[-1]) for x in seen])


def slow_mask(score: torch.Tensor, target: Sparsity, by: str) -> torch.Tensor:
    """Where weights stay, by sorting Python lists."""
    rows, columns = score.shape
    stays = [[True] * columns for _ in range(rows)]
    places = [[(i, j) for j in range(columns)] for i in range(rows)]
    groups, counts = places, int(columns * target.share)
    if target.m:
        groups = [row[j : j + target.m] for row in places for j in range(0, columns, target.m)]
        counts = target.m - target.n
    elif by == "layer":
        groups, counts = [[p for row in places for p in row]], int(rows * columns * target.share)
    for group in groups:
        for i, j in sorted(group, key=lambda p: float(score[p]))[:counts]:
            stays[i][j] = False
    return torch.tensor(stays)


def slow_score(name: str, w: torch.Tensor, x: torch.Tensor, gradients: list[torch.Tensor]) -> torch.Tensor:
    """The published formulas, entry by entry."""
    n, length = len(gradients), x.shape[0] // len(gradients)
    mean = sum(g.abs() for g in gradients) / n
    flat = [float(v) for v in mean.reshape(-1)]
    low, high = min(flat), max(flat)
    out = torch.zeros_like(w)
    for j in range(w.shape[1]):
        norm = float(x[:, j].double().square().sum()) ** 0.5
        for i in range(w.shape[0]):
            value = abs(float(w[i, j]))
            squares = sum(float(g[i, j]) ** 2 for g in gradients) / n
            out[i, j] = {
                "magnitude": value,
                "wanda": value * norm,
                "gblm": value * (norm / n**0.5 + 100 * squares**0.5),
                "pruner_zero": value * value * (float(mean[i, j]) - low) / (high - low),
            }[name]
    assert length == TOKENS.shape[1]
    return out


def true_gradients(model: Any, path: str) -> list[torch.Tensor]:
    """Per sequence: the gradient of its mean loss, by autograd on the weight."""
    weight = model.get_submodule(path).weight.requires_grad_(True)
    found = [torch.autograd.grad(next_token_nll(model, row[None]).mean(), weight)[0] for row in TOKENS]
    weight.requires_grad_(False)
    return found


@pytest.mark.parametrize("sparsity", ["0.5", "0.3", "2:4"])
@pytest.mark.parametrize("name", ["magnitude", "wanda", "gblm", "pruner_zero"])
def test_first_layer_masks_are_those_of_the_definition(name: str, sparsity: str, tmp_path: Path) -> None:
    model = tiny_model("llama", num_hidden_layers=1, hidden_size=16, intermediate_size=24)
    blocks = blocks_of(model)
    target, metric = Sparsity.parse(sparsity), METRICS.get(name)
    expected = {}
    for _, _, p in projections(blocks):
        path = f"{blocks[0].path}.{p.path}"
        w = model.get_submodule(path).weight.clone()
        score = slow_score(name, w, inputs_of(model, path), true_gradients(model, path))
        expected[p.path] = slow_mask(score, target, metric.compare)
    gradients = write_gradients(model, blocks, TOKENS, tmp_path / "g.safetensors", micro_batch=4)
    compare = "row" if target.m else metric.compare
    sparsify_model(model, blocks, TOKENS, SparsityPlan(metric, target, compare), micro_batch=4, gradients=gradients)
    for _, _, p in projections(blocks):
        assert torch.equal(linear_module(model, blocks[0], p).weight != 0, expected[p.path]), p.path


@pytest.mark.parametrize(("name", "by_expression"), [(n, KNOWN[n]) for n in ("magnitude", "wanda", "pruner_zero")])
def test_expressions_prune_as_the_named_metrics_do(name: str, by_expression: str, tmp_path: Path) -> None:
    model, blocks = tiny_model("llama"), blocks_of(tiny_model("llama"))
    gradients = write_gradients(model, blocks, TOKENS, tmp_path / "g.safetensors")
    masks = []
    for metric in (METRICS.get(name), find_metric(by_expression)[0]):
        own = tiny_model("llama")
        sparsify_model(own, blocks, TOKENS, SparsityPlan(metric, Sparsity(0.5)), gradients=gradients)
        masks.append([linear_module(own, blocks[i], p).weight != 0 for i, _, p in projections(blocks)])
    assert all(torch.equal(a, b) for a, b in zip(*masks, strict=True))


@pytest.mark.parametrize("kinds", [("gradient",), ("gradient", "gradient_rms")])
@pytest.mark.parametrize("buffer", [1, 1 << 30])
def test_gradients_are_those_of_autograd(kinds: tuple[str, ...], buffer: int, tmp_path: Path) -> None:
    model = tiny_model("qwen2")
    blocks = blocks_of(model)
    groups: list[tuple[int, int]] = []
    path = tmp_path / "g.safetensors"
    write_gradients(
        model,
        blocks,
        TOKENS,
        path,
        kinds=kinds,
        micro_batch=4,
        buffer_bytes=buffer,
        report=lambda done, _: groups.append(done),
    )
    assert groups == ([1, 2, 3, 4] if buffer == 1 else [4])
    store = GradientStore(path)
    for index, _, p in projections(blocks):
        true = torch.stack(true_gradients(model, f"{blocks[index].path}.{p.path}"))
        expected = {"gradient": true.abs().mean(0), "gradient_rms": true.square().mean(0).sqrt()}
        for kind in kinds:
            torch.testing.assert_close(store.get(index, p.path, kind), expected[kind], rtol=1e-4, atol=1e-6)
    assert all(not p.requires_grad and p.grad is None for p in model.parameters())


def slow_surgeon(w: torch.Tensor, gram: torch.Tensor, target: Sparsity) -> torch.Tensor:
    """Optimal brain surgery column by column; the inverse of what is left of H is computed anew every time."""
    w, h = w.double().clone(), gram.double().clone()
    columns = w.shape[1]
    h += DAMPING * h.diagonal().mean() * torch.eye(columns, dtype=torch.float64)
    pivot = torch.stack([torch.linalg.inv(h[j:, j:])[0, 0] for j in range(columns)])
    stays = torch.ones_like(w, dtype=torch.bool)
    for j in range(columns):
        if target.m and j % target.m == 0:
            part = slice(j, j + target.m)
            stays[:, part] = slow_mask(w[:, part] ** 2 / pivot[part], target, "row")
        elif not target.m and j % BLOCK == 0:
            part = slice(j, min(j + BLOCK, columns))
            stays[:, part] = slow_mask(w[:, part] ** 2 / pivot[part], target, "layer")
        inverse = torch.linalg.inv(h[j:, j:])
        gone = torch.where(stays[:, j], torch.zeros_like(w[:, j]), w[:, j])
        w[:, j:] -= gone[:, None] / inverse[0, 0] * inverse[0][None, :]
        w[~stays[:, j], j] = 0.0
    return w


@pytest.mark.parametrize(("sparsity", "columns"), [("0.5", 40), ("2:4", 40), ("0.6", BLOCK + 16), ("4:8", BLOCK + 16)])
def test_sparsegpt_is_optimal_brain_surgery(sparsity: str, columns: int) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(600, columns, generator=g) @ torch.randn(columns, columns, generator=g) / columns**0.5
    w = torch.randn(12, columns, generator=g)
    gram = x.T @ x / len(x)
    weight, stays = solve(Statistics(w, g, 8, gram=gram), Sparsity.parse(sparsity))
    expected = slow_surgeon(w, gram, Sparsity.parse(sparsity))
    assert torch.equal(weight != 0, stays) and torch.equal(stays, expected != 0)
    torch.testing.assert_close(weight.double(), expected, rtol=1e-4, atol=1e-4)
    masked = torch.where(stays, w, torch.zeros_like(w))
    assert ((w - weight) @ x.T).square().sum() < ((w - masked) @ x.T).square().sum()


def test_sparsegpt_without_inputs_in_a_column_prunes_it() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(50, 8, generator=g)
    x[:, 3] = 0
    weight, _ = solve(Statistics(torch.randn(4, 8, generator=g), g, 8, gram=x.T @ x / 50), Sparsity(0.5))
    assert bool((weight[:, 3] == 0).all()) and bool(torch.isfinite(weight).all())


WALKED = ("llama", "gemma2", "gemma3_text", "gpt_neox", "phi3", "mistral", "qwen3", "olmo2")


@pytest.mark.parametrize("model_type", [name for name in WALKED if name in FAMILIES])
def test_the_walk_sees_the_inputs_of_the_pruned_model(model_type: str) -> None:
    """Every block's statistics are those of a full forward pass with all blocks before it pruned."""
    model = tiny_model(model_type)
    blocks = blocks_of(model)
    walk = BlockWalk(model, blocks, TOKENS, 4)
    for index in range(len(blocks)):
        for layer, found in statistics(walk, index, frozenset({"inputs", "gram"})):
            x = inputs_of(model, f"{blocks[index].path}.{layer.projection.path}")
            torch.testing.assert_close(found.gram, x.T @ x / len(x), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(found.input_rms, x.square().mean(0).sqrt(), rtol=1e-4, atol=1e-5)
        for layer in walk.layers(index):
            module = linear_module(model, blocks[index], layer.projection)
            module.weight.masked_fill_(~keep(module.weight.abs(), Sparsity(0.5)), 0.0)
        walk.advance(index)


def test_outlier_shares_follow_their_definition() -> None:
    model = tiny_model("llama")
    blocks = blocks_of(model)
    found = outlier_shares(model, blocks, TOKENS, 0.6, factor=3.0, spread=0.1)
    outliers = []
    for index, block in enumerate(blocks):
        scores = []
        for _, _, p in (t for t in projections(blocks) if t[0] == index):
            path = f"{block.path}.{p.path}"
            x = inputs_of(model, path)
            scores.append((model.get_submodule(path).weight.abs() * x.square().mean(0).sqrt()).reshape(-1))
        whole = torch.cat(scores)
        outliers.append(float((whole > 3 * whole.mean()).double().mean()))
    density = [0.2 * (d - min(outliers)) / (max(outliers) - min(outliers)) for d in outliers]
    expected = [0.6 - (d - sum(density) / 4) for d in density]
    assert [found[i, "mlp"] for i in range(4)] == pytest.approx(expected, abs=1e-6)
    assert all(found[i, "attention"] == found[i, "mlp"] for i in range(4))


def test_global_comparison_prunes_the_lowest_of_the_whole_model() -> None:
    model = tiny_model("llama")
    blocks = blocks_of(model)
    before = [linear_module(model, blocks[i], p).weight.clone() for i, _, p in projections(blocks)]
    counts = sparsify_model(model, blocks, TOKENS, SparsityPlan(METRICS.get("magnitude"), Sparsity(0.4), "global"))
    flat = torch.cat([w.abs().reshape(-1) for w in before])
    limit = flat.sort().values[int(0.4 * len(flat))]
    for (i, _, p), w in zip(projections(blocks), before, strict=True):
        assert torch.equal(linear_module(model, blocks[i], p).weight != 0, w.abs() >= limit)
    assert sum(c.pruned for c in counts) == int(0.4 * len(flat))


def live_bytes() -> int:
    """Memory of all tensors that exist."""
    gc.collect()
    tensors = (thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor))
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


@pytest.mark.slow
def test_memory_beside_the_model_does_not_grow_with_its_depth(tmp_path: Path) -> None:
    beside = []
    for depth in (2, 8):
        model = tiny_model("llama", num_hidden_layers=depth)
        blocks = blocks_of(model)
        gradients = write_gradients(model, blocks, TOKENS, tmp_path / f"{depth}.safetensors", buffer_bytes=1)
        before, seen = live_bytes(), []

        def score(s: Statistics, seen: list[int] = seen) -> torch.Tensor:
            if s.weight.shape == (96, 32):  # gate_proj and up_proj; looking at every object takes its time
                seen.append(live_bytes())
            return s.weight.abs() * s.read("inputs") * s.read("gradient")

        metric = Metric("measured", score, frozenset({"inputs", "gram", "gradient"}))
        sparsify_model(model, blocks, TOKENS, SparsityPlan(metric, Sparsity(0.5)), micro_batch=2, gradients=gradients)
        beside.append(max(seen) - before)
        del model
    assert beside[1] <= beside[0]


def test_random_masks_depend_on_the_seed_only() -> None:
    def masks(seed: int) -> list[torch.Tensor]:
        model = tiny_model("llama")
        sparsify_model(model, blocks_of(model), TOKENS, SparsityPlan(METRICS.get("random"), Sparsity(0.5), seed=seed))
        return [linear_module(model, blocks_of(model)[i], p).weight != 0 for i, _, p in projections(blocks_of(model))]

    one, again, other = masks(1), masks(1), masks(2)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", sorted(METRICS))
def test_every_registered_metric_prunes_exactly(name: str, tmp_path: Path) -> None:
    metric: Metric = METRICS.get(name)
    make: Callable[[], Any] = lambda: tiny_model("llama")  # noqa: E731
    gradients = write_gradients(make(), blocks_of(make()), TOKENS, tmp_path / "g.safetensors")
    assert metric.name == name and metric.reference and metric.compare in ("row", "layer")
    for sparsity in ("0.5", "4:8"):
        model, target = make(), Sparsity.parse(sparsity)
        plan = SparsityPlan(metric, target, "row" if target.m else metric.compare)
        counts = sparsify_model(model, blocks_of(model), TOKENS, plan, gradients=gradients)
        assert all(c.zeros == c.pruned and abs(c.share - 0.5) < 0.02 for c in counts)
