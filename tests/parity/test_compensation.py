"""Compensated output projections against direct least squares on activations of an unpermuted, unsliced model."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from pruned_cases import DECODERS
from tiny import tiny_config, tiny_model
from torch import Tensor
from trained import source_tokens, trained_model

from tracenas.errors import UserError
from tracenas.families import FAMILIES, Options, config_family, present
from tracenas.models.functionals.perplexity import perplexity
from tracenas.models.surgery.ordering import Ordering, permutation
from tracenas.models.surgery.stepping import BlockRunner
from tracenas.models.surgery.supernet import Supernet
from tracenas.paging import in_memory
from tracenas.proxies import PROXIES
from tracenas.refits import sequential as sequential_module
from tracenas.refits.aim import Aim
from tracenas.refits.gram import gram_matrices
from tracenas.refits.gram_sum import GramSum
from tracenas.refits.realisation import CompensatedRealisation, _factorised, _fit, prefix_order
from tracenas.refits.ridge import FittedRealisation, fit_removed, in_base_order, ridge_outputs, strength
from tracenas.refits.sequential import SequentialFit
from tracenas.saliency.wanda import saliency
from tracenas.scoring.evaluator import Evaluator, ScoringSettings
from tracenas.space.architecture import Architecture
from tracenas.space.search_space import SearchSpace

pytestmark = pytest.mark.parity

RIDGE = 1e-3


def has_experts(name: str) -> bool:
    config = json.loads(tiny_config(name).to_json_string())
    return any(s.stacked for b in config_family(config).blocks(config, Options()) for s in b.sub_blocks)


EXPERTS = [name for name in FAMILIES if has_experts(name)]
CASES: dict[str, tuple[str, dict[str, Any], Options]] = {
    **{name: (name, {}, Options()) for name in DECODERS if name not in EXPERTS},
    "llama_mha": ("llama", {"num_key_value_heads": 4}, Options()),
    "llama_kv_groups": ("llama", {}, Options(kv_groups=True)),
    "gpt_neox_serial": ("gpt_neox", {"use_parallel_residual": False}, Options()),
}
QUICK = ("llama", "llama_kv_groups", "gemma2", "olmo2", "phi3", "gpt_neox")
"""One of every kind of block; the others go with the slow tests."""
POST_NORM = ("gemma2", "gemma3_text", "olmo2")
Key = tuple[int, str]


class Setting:
    """A dense float64 model, its super-network (another copy) and a heterogeneous architecture."""

    def __init__(self, case: str) -> None:
        model_type, changes, options = CASES[case]
        self.case = case
        self.dense = tiny_model(model_type, **changes).double()
        permuted = tiny_model(model_type, **changes).double()
        config = json.loads(self.dense.config.to_json_string())
        self.blocks = config_family(config).blocks(config, options)
        self.tokens = torch.randint(1, 257, (8, 48), generator=torch.Generator().manual_seed(1))
        per_unit, _ = saliency(self.dense, self.blocks, self.tokens, 4)
        self.net = Supernet(permuted, self.blocks, Ordering.from_saliency(self.blocks, per_unit))
        self.space = SearchSpace(tuple(b.spec for b in self.blocks), config_family(config).outside(config))

    def arch(self, share: float = 0.5) -> Architecture:
        """Narrow, full and skipped: a full-width sub-block behind pruned ones, the third block gone.

        Args:
            share: of the attention units, in the first and the last block.
        """
        attention = self.blocks[0].sub_blocks[0].spec
        half = attention.round(attention.units * share)
        widths = [[half, 64], [attention.units, 32], [0, 0], [half, 96]]
        return self.space.validate(self.space.build(widths), where="test")

    def columns(self, key: Key, arch: Architecture) -> Tensor:
        """Kept columns of the output projection in the base, ascending, from the ids of the kept units."""
        sub = next(s for s in self.blocks[key[0]].sub_blocks if s.spec.name == key[1])
        ids = self.net.ordering.kept(self.blocks, arch)[key]
        assert ids is not None
        owner = sub.output_projection.unit_ids(1, sub.spec.units)
        return torch.from_numpy(np.flatnonzero((owner < 0) | np.isin(owner, ids)))

    def linear(self, model: Any, key: Key) -> Any:
        sub = next(s for s in self.blocks[key[0]].sub_blocks if s.spec.name == key[1])
        return model.get_submodule(f"{self.blocks[key[0]].path}.{sub.output}")

    def keys(self) -> list[Key]:
        return [(i, s.spec.name) for i, b in enumerate(self.blocks) for s in b.sub_blocks]

    def weights(self, arch: Architecture, how: Any) -> dict[Key, Tensor]:
        """Output projections as realised, columns in the base's order."""
        found = {}
        with self.net.realise(arch, how) as model:
            for (index, name), (_, kept) in self.widths(arch).items():
                if kept:
                    found[index, name] = self.linear(model, (index, name)).weight.detach()
        return in_base_order(self.net, arch, found)

    def widths(self, arch: Architecture) -> dict[Key, tuple[str, int]]:
        return {
            (i, s.spec.name): kept
            for i, (b, layer) in enumerate(zip(self.blocks, arch.layers, strict=True))
            for s, kept in zip(b.sub_blocks, layer.kept, strict=True)
        }

    def inputs(self) -> dict[Key, Tensor]:
        """X of every output projection in the dense model, [tokens, columns]."""
        modules = {key: self.linear(self.dense, key) for key in self.keys()}
        with captured(modules) as seen, torch.no_grad():
            self.dense(input_ids=self.tokens)
        return {key: x for key, (x, _) in seen.items()}


@contextmanager
def captured(modules: dict[Any, Any]) -> Iterator[dict[Any, tuple[Tensor, Tensor]]]:
    """Input and output of modules on the next forward pass, [tokens, features]."""
    seen: dict[Any, tuple[Tensor, Tensor]] = {}

    def hook(key: Any) -> Any:
        def note(_: Any, args: Any, output: Any) -> None:
            seen[key] = (args[0].flatten(0, -2), (output[0] if isinstance(output, tuple) else output).flatten(0, -2))

        return note

    handles = [module.register_forward_hook(hook(key)) for key, module in modules.items()]
    yield seen
    for handle in handles:
        handle.remove()


def direct(x: Tensor, target: Tensor, start: Tensor, lam: float) -> Tensor:
    """argmin ‖X Wᵀ - T‖² + λ‖W - W⁰‖² as one stacked least-squares problem (SVD, no normal equations)."""
    left = torch.cat([x, lam**0.5 * torch.eye(x.shape[1], dtype=x.dtype)])
    right = torch.cat([target, lam**0.5 * start.T])
    return torch.linalg.lstsq(left, right, driver="gelsd").solution.T


def close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    assert float((found - expected).norm() / expected.norm()) < tolerance


@pytest.fixture(params=[case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in CASES])
def setting(request: pytest.FixtureRequest) -> Setting:
    return Setting(request.param)


def test_gram_matrices_are_those_of_the_dense_activations(setting: Setting) -> None:
    runner, whole = BlockRunner(setting.dense, setting.blocks), setting.inputs()
    found = dict(gram_matrices(setting.dense, setting.blocks, setting.tokens, 3))  # batches of 3, 3 and 2
    assert list(found) == setting.keys()
    for key, x in whole.items():
        close(found[key], x.T @ x, 1e-6)
    states = runner.embed(setting.tokens, 8)[0]
    for index in range(len(setting.blocks)):
        states = runner(index, states)
    with captured({"last": setting.dense.get_submodule(setting.blocks[-1].path)}) as seen, torch.no_grad():
        setting.dense(input_ids=setting.tokens)
    assert torch.equal(states.flatten(0, -2), seen["last"][1])


def test_ridge_is_the_direct_least_squares_solution(setting: Setting) -> None:
    arch, inputs = setting.arch(), setting.inputs()
    grams = {}
    for key, sub in present(setting.blocks):
        gram = inputs[key].T @ inputs[key]
        order = permutation(sub.output_projection, 1, setting.net.ordering.ranking[key])
        grams[key] = gram[order][:, order]
    exact = CompensatedRealisation(setting.net, grams.items(), RIDGE)
    collected = gram_matrices(setting.net.model, setting.blocks, setting.tokens, 4)
    streamed = CompensatedRealisation(setting.net, collected, RIDGE)
    precise, found = setting.weights(arch, exact), setting.weights(arch, streamed)
    assert precise.keys() == {key for key, (_, kept) in setting.widths(arch).items() if kept}
    for key, weight in precise.items():
        base, x, columns = setting.linear(setting.dense, key).weight, inputs[key], setting.columns(key, arch)
        lam = RIDGE * float(x.square().sum() / x.shape[1])
        expected = direct(x[:, columns], x @ base.T, base[:, columns], lam)
        close(weight, expected, 1e-9)
        close(found[key], expected, 1e-6)
        error = [float((x[:, columns] @ w.T - x @ base.T).norm()) for w in (weight, base[:, columns])]
        assert error[0] <= error[1] * (1 + 1e-12)


def test_every_width_is_a_prefix_with_a_leading_factor(setting: Setting) -> None:
    grams = dict(gram_matrices(setting.net.model, setting.blocks, setting.tokens, 4))
    how = CompensatedRealisation(setting.net, grams.items(), RIDGE)
    for key in setting.keys()[:2]:
        sub = next(s for s in setting.blocks[0].sub_blocks if s.spec.name == key[1])
        projection, order = sub.output_projection, torch.from_numpy(prefix_order(sub))
        shifted = grams[key] + strength(grams[key], RIDGE) * torch.eye(len(order), dtype=torch.float64)
        for kept in sub.spec.choices():
            stays = setting.net.cut(sub, projection, 1, kept).take(torch.arange(projection.columns), 0)
            prefix = order[: len(stays)]
            assert torch.equal(prefix.sort().values, stays)
            inverse = torch.linalg.inv(torch.linalg.cholesky(shifted[prefix][:, prefix]))
            assert torch.allclose(how._factors[key].inverse[: len(stays), : len(stays)], inverse, rtol=1e-9, atol=1e-11)


def test_one_architecture_is_refitted_alike_without_factors(setting: Setting) -> None:
    arch = setting.arch()
    grams = list(gram_matrices(setting.net.model, setting.blocks, setting.tokens, 4))
    outputs = ridge_outputs(setting.net, arch, grams, [RIDGE, 1e-1])
    for ridge, fitted in outputs.items():
        expected = setting.weights(arch, CompensatedRealisation(setting.net, grams, ridge))
        for key, weight in setting.weights(arch, FittedRealisation(fitted)).items():
            close(weight, expected[key], 1e-9)


def test_limits_and_untouched_base_weights(setting: Setting) -> None:
    arch, net = setting.arch(), setting.net
    before = {name: tensor.clone() for name, tensor in net.model.state_dict().items()}
    grams = list(gram_matrices(net.model, setting.blocks, setting.tokens, 4))
    strong = CompensatedRealisation(net, grams, 1e12)
    for key, weight in setting.weights(arch, strong).items():
        columns = setting.columns(key, arch)
        close(weight, setting.linear(setting.dense, key).weight[:, columns], 1e-9)
    with net.realise(setting.space.base, CompensatedRealisation(net, grams, RIDGE)) as model:
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    sequential(net, arch, setting.tokens, 4, Aim(RIDGE))
    after = net.model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    net.restore()
    assert all(torch.equal(t, setting.dense.state_dict()[name]) for name, t in net.model.state_dict().items())


def sequential(net: Supernet, arch: Architecture, tokens: Tensor, micro_batch: int, aim: Aim) -> dict[Key, Tensor]:
    """The refit of one aim."""
    return SequentialFit(net, arch, tokens, micro_batch, [aim]).advance()[aim]


def masked_copy(setting: Setting, arch: Architecture) -> Any:
    """The dense model with the removed units' columns at zero and skipped blocks' outputs gone, in base order."""
    model_type, changes, _ = CASES[setting.case]
    model = tiny_model(model_type, **changes).double()
    for key, (_, kept) in setting.widths(arch).items():
        module = setting.linear(model, key)
        columns = setting.columns(key, arch) if kept else torch.empty(0, dtype=torch.int64)
        mask = torch.zeros(module.weight.shape[1], dtype=torch.float64)
        mask[columns] = 1
        module.weight.mul_(mask)
        if not kept and module.bias is not None:
            module.bias.zero_()
    return model


def share(setting: Setting, model: Any, key: Key, output: Tensor) -> Tensor:
    """What a sub-block adds to the stream, the norm behind it written out."""
    scale, gain = behind(setting, model, key, output)
    return scale * gain * output


def behind(setting: Setting, model: Any, key: Key, output: Tensor) -> tuple[Tensor, Tensor]:
    """Scales [tokens, 1] and gains [D] of the RMS norm behind a sub-block; ones where there is none."""
    model_type = CASES[setting.case][0]
    if model_type not in POST_NORM:
        return torch.ones(1, 1, dtype=torch.float64), torch.ones(output.shape[1], dtype=torch.float64)
    name = {"attention": "post_attention_layernorm", "mlp": "post_feedforward_layernorm"}[key[1]]
    norm = model.get_submodule(f"{setting.blocks[key[0]].path}.{name}")
    gain = norm.weight + (model_type != "olmo2")
    eps = norm.variance_epsilon if model_type == "olmo2" else norm.eps
    return (output.square().mean(1, keepdim=True) + eps).rsqrt(), gain


def captured_over(model: Any, modules: dict[str, Any], texts: tuple[Tensor, ...]) -> dict[str, tuple[Tensor, Tensor]]:
    """Inputs and outputs of modules in whole forward passes over several texts, one behind the other."""
    passes = []
    for text in texts:
        with captured(modules) as seen, torch.no_grad():
            model(input_ids=text)
        passes.append(seen)
    return {
        name: (torch.cat([seen[name][0] for seen in passes]), torch.cat([seen[name][1] for seen in passes]))
        for name in modules
    }


@pytest.mark.parametrize(("drift", "large"), [(1.0, None), (0.5, None), (0.0, None), (0.5, 0.5)])
def test_sequential_is_the_direct_solution_layer_by_layer(
    setting: Setting, drift: float, large: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every refit from whole forward passes of a masked model; the target by its definition, on the stream itself.

    First tokens are sequences of their own. With `large`, more than half of all tokens are too large to count as one.
    """
    if large is not None:
        monkeypatch.setattr(sequential_module, "_LARGE", large)
    count = setting.tokens.numel() // 24
    places = [number * setting.tokens.numel() // count for number in range(count)]
    ids = [number * setting.dense.config.vocab_size // count for number in range(count)]
    texts = (setting.tokens, setting.tokens.flatten()[places][:, None], torch.tensor(ids)[:, None])
    arch = setting.arch(1.0 if setting.case == "olmo2" else 0.5)  # a mask is no cut where norms run over all heads
    pruned, widths = masked_copy(setting, arch), setting.widths(arch)
    found = in_base_order(setting.net, arch, sequential(setting.net, arch, setting.tokens, 3, Aim(RIDGE, drift)))
    assert found.keys() == {key for key, (_, kept) in widths.items() if kept}
    for key in found:
        index, name = key
        earlier = [s.spec.name for s in setting.blocks[index].sub_blocks]
        earlier = earlier[: earlier.index(name)]
        sides = []
        for model in (setting.dense, pruned):
            modules = {n: setting.linear(model, (index, n)) for n in (*earlier, name)}
            modules["block"] = model.get_submodule(setting.blocks[index].path)
            seen = captured_over(model, modules, texts)
            shares = [share(setting, model, (index, n), seen[n][1]) for n in earlier]
            sides.append((seen[name], seen["block"][0] + sum(shares)))
        (_, y), reference = sides[0]
        (x, _), reached = sides[1]
        module, columns = setting.linear(pruned, key), setting.columns(key, arch)
        bias = 0 if module.bias is None else module.bias
        scale, gain = behind(setting, setting.dense, key, y)
        damping = 0.01 * gain.square().mean() if CASES[setting.case][0] in POST_NORM else 0
        gap = (reference - reached) * gain / (gain.square() + damping)
        target = scale * (y - bias) + drift * gap
        x = scale * x[:, columns]
        squares = (reference + share(setting, setting.dense, key, y)).square().sum(1, keepdim=True)
        weights = (squares / ((large or 4) * squares.median())).clamp(min=1).rsqrt()
        assert large is None or (weights < 1).float().mean() >= 0.5
        x, target = weights * x, weights * target
        lam = RIDGE * float(x.square().sum() / x.shape[1])
        expected = direct(x, target, module.weight[:, columns], lam)
        close(found[key], expected, 1e-5)
        module.weight[:, columns] = expected


def test_aims_are_refitted_side_by_side(setting: Setting) -> None:
    """Every aim is as it is alone, the first blocks are those of a refit of all, and one aim alone can go on."""
    arch, aims = setting.arch(0.5), [Aim(RIDGE), Aim(RIDGE, 0.5), Aim(0.1, 0.0)]
    together = SequentialFit(setting.net, arch, setting.tokens, 3, aims).advance()
    told: list[tuple[int, int]] = []
    begun = SequentialFit(setting.net, arch, setting.tokens, 3, aims)
    begun.advance(2, lambda *steps: told.append(steps))
    assert told == [(0, 2), (1, 2), (2, 2)]
    first = {aim: dict(begun.outputs[aim]) for aim in aims}
    begun.only(aims[1])
    begun.advance(report=lambda *steps: told.append(steps))
    rest = len(arch.layers) - 2
    assert told[3:] == [(count, rest) for count in range(rest + 1)] and begun.outputs.keys() == {aims[1]}
    gone_on = begun.outputs[aims[1]]
    assert gone_on.keys() == together[aims[1]].keys()
    assert all(torch.equal(gone_on[k], together[aims[1]][k]) for k in gone_on)
    for aim in aims:
        alone = sequential(setting.net, arch, setting.tokens, 3, aim)
        assert alone.keys() == together[aim].keys() and all(torch.equal(alone[k], together[aim][k]) for k in alone)
        start = {key: weight for key, weight in alone.items() if key[0] < 2}
        assert start.keys() == first[aim].keys() and all(torch.equal(start[k], first[aim][k]) for k in start)


def test_nothing_changes_where_nothing_was_removed() -> None:
    setting = Setting("llama")
    fitted = sequential(setting.net, setting.space.base, setting.tokens, 4, Aim(RIDGE))
    for key, weight in fitted.items():
        assert torch.equal(weight, setting.linear(setting.net.model, key).weight)


@pytest.mark.parametrize("name", DECODERS)
def test_families_say_which_norms_stand_behind_a_sub_block(name: str) -> None:
    """A block adds to the stream what its sub-blocks' output projections, or the norms that the family names, give."""
    model = tiny_model(name)
    config = json.loads(model.config.to_json_string())
    block = config_family(config).blocks(config, Options())[1]
    assert [bool(sub.post_norm) for sub in block.sub_blocks] == [name in POST_NORM] * len(block.sub_blocks)
    modules = {"block": model.get_submodule(block.path)}
    for sub in block.sub_blocks:
        end = sub.module if sub.stacked else sub.output
        modules[sub.spec.name] = model.get_submodule(f"{block.path}.{sub.post_norm or end}")
    with captured(modules) as seen, torch.no_grad():
        model(input_ids=torch.randint(1, 257, (2, 24), generator=torch.Generator().manual_seed(1)))
    before, after = seen.pop("block")
    close(after - before, sum(output for _, output in seen.values()), 1e-5)


def test_memory_of_what_was_refitted_is_bounded() -> None:
    setting = Setting("llama")
    grams = list(gram_matrices(setting.net.model, setting.blocks, setting.tokens, 4))
    free = CompensatedRealisation(setting.net, grams, RIDGE)
    bounded = CompensatedRealisation(setting.net, grams, RIDGE, memo_bytes=40_000)
    rng = np.random.default_rng(0)
    for _ in range(12):
        arch = setting.space.mutate(setting.space.base, rng, depth=0.0, width=1.0, sigma=0.5)
        expected = setting.weights(arch, free)
        for key, weight in setting.weights(arch, bounded).items():
            assert torch.equal(weight, expected[key])
        assert bounded.memo_used <= 40_000
    assert free.memo_used > 40_000


def test_what_was_used_last_is_remembered_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting("llama")
    grams = list(gram_matrices(setting.net.model, setting.blocks, setting.tokens, 4))
    sub = next(s for s in setting.blocks[0].sub_blocks if s.spec.name == "mlp")
    output, key = sub.output_projection, (0, "mlp")
    bytes_per_channel = setting.net.linear(key, output).weight.element_size() * output.rows
    how = CompensatedRealisation(setting.net, grams, RIDGE, memo_bytes=3 * 16 * bytes_per_channel)

    def refit(kept: int) -> int:
        return id(how.weight(setting.net, key, sub, output, kept))

    first, _ = refit(16), refit(24)
    assert refit(16) == first  # used again: 24 is the one to go
    fits: list[int] = []
    monkeypatch.setattr("tracenas.refits.realisation._fit", lambda *args: fits.append(args[2]) or _fit(*args))
    refit(20)
    assert refit(16) == first and fits == [20]
    refit(24)
    assert fits == [20, 24]


def test_a_gram_matrix_that_is_not_finite_is_refused() -> None:
    setting = Setting("llama")
    setting.net.model.model.layers[1].mlp.up_proj.weight.data[0] = float("inf")
    with pytest.raises(UserError, match=r"block 1, mlp: the dense model's activations are not finite"):
        list(gram_matrices(setting.net.model, setting.blocks, setting.tokens, 4))


@pytest.mark.parametrize("ridge", [1e-2, 1e-4])
@pytest.mark.parametrize("stays", [1, 50, 149, 150, 151, 299])
def test_float32_factors_refit_as_float64_ones(stays: int, ridge: float) -> None:
    generator = torch.Generator().manual_seed(stays)
    n, rows = 300, 40
    directions = torch.randn(n, n, generator=generator, dtype=torch.float64)
    x = torch.randn(200, n, generator=generator, dtype=torch.float64) * torch.logspace(0, -4, n).double() @ directions
    gram = x.T @ x
    weight = torch.randn(rows, n, generator=generator)
    shifted = gram + strength(gram, ridge) * torch.eye(n, dtype=torch.float64)
    factor = _factorised(shifted.clone(), weight, torch.arange(n), in_memory)
    expected = fit_removed(gram, weight, torch.arange(stays), strength(gram, ridge))
    found = _fit(factor, weight, stays).double()
    assert (found - expected).norm() <= 3e-6 * (expected.norm() + weight.norm())


@pytest.mark.parametrize("name", ["loss_compensated", "phi_compensated"])
def test_proxies_see_the_compensated_model(name: str) -> None:
    setting = Setting("llama")
    how = CompensatedRealisation(
        setting.net, gram_matrices(setting.net.model, setting.blocks, setting.tokens, 4), RIDGE
    )
    other = torch.randint(1, 257, (4, 48), generator=torch.Generator().manual_seed(2))
    evaluator = Evaluator(setting.net, setting.space, other, PROXIES.get(name), ScoringSettings(rank=0), how)
    arch = setting.arch()
    score = evaluator.score(arch)
    with setting.net.realise(arch, how) as model:
        loss = float(model(input_ids=other, labels=other).loss)
    assert score.loss == pytest.approx(loss, abs=1e-5)
    assert ("rho" in score.extra) == (name == "phi_compensated")
    base = evaluator.score(setting.space.base)
    assert base.score == pytest.approx(-evaluator.base_loss if name == "loss_compensated" else 8.0, abs=1e-4)


@pytest.mark.parametrize("name", EXPERTS)
def test_experts_stay_plain_and_attention_is_refitted(name: str) -> None:
    model = tiny_model(name)
    config = json.loads(model.config.to_json_string())
    blocks = config_family(config).blocks(config, Options())
    tokens = torch.randint(1, 257, (4, 48), generator=torch.Generator().manual_seed(1))
    net = Supernet(model, blocks, Ordering.from_saliency(blocks, saliency(model, blocks, tokens, 4)[0]))
    space = SearchSpace(tuple(b.spec for b in blocks), config_family(config).outside(config))
    arch = space.build([[s.choices()[0] for s in b.spec.sub_blocks] for b in blocks])
    how = CompensatedRealisation(net, gram_matrices(model, blocks, tokens, 4), RIDGE)
    fitted = sequential(net, arch, tokens, 4, Aim(RIDGE))
    assert fitted.keys() == {(i, s.spec.name) for i, b in enumerate(blocks) for s in b.sub_blocks if not s.stacked}
    for each in (how, FittedRealisation(fitted)):
        with net.realise(arch, each) as realised, torch.no_grad():
            assert torch.isfinite(realised(input_ids=tokens, labels=tokens).loss)


def test_wrong_statistics_are_refused() -> None:
    setting = Setting("llama")
    grams = dict(gram_matrices(setting.net.model, setting.blocks, setting.tokens, 4))
    with pytest.raises(ValueError, match="ridge must be positive, found 0"):
        CompensatedRealisation(setting.net, grams.items(), 0)
    with pytest.raises(ValueError, match="block 0, mlp: 96 columns, Gram matrix \\[32, 32\\]"):
        CompensatedRealisation(setting.net, [((0, "mlp"), torch.eye(32))], RIDGE)
    grams.pop((3, "mlp"))
    with pytest.raises(ValueError, match="no Gram matrix of block 3, mlp"):
        CompensatedRealisation(setting.net, grams.items(), RIDGE)


@pytest.mark.parametrize("columns", [1, 256, 300, 700])
def test_gram_sums_are_whole_and_symmetric(columns: int) -> None:
    """Only blocks below the diagonal are computed; the sum over batches is XᵀX, [columns, columns], all of it."""
    rows = torch.randn(96, columns, generator=torch.Generator().manual_seed(columns))
    total = GramSum(columns, rows.device)
    for part in rows.split(40):
        total.add(part)
    gram = total.total()
    torch.testing.assert_close(gram, rows.double().T @ rows.double(), rtol=1e-5, atol=1e-4)
    assert torch.equal(gram, gram.T)


BEHIND_NORMS = [
    ("olmo2", 0),
    *(pytest.param("gemma2", seed, marks=[pytest.mark.slow] * bool(seed)) for seed in range(3)),
]


@pytest.mark.parametrize(("name", "seed"), BEHIND_NORMS)
def test_sequential_is_as_good_as_ridge_behind_norms(name: str, seed: int) -> None:
    """On text that neither was fitted on, of models that have learned something; half the loss if a block is gone."""
    model = trained_model(name, seed=seed, steps=100)
    config = json.loads(model.config.to_json_string())
    blocks = config_family(config).blocks(config, Options())
    calibration, text, held_out = (source_tokens(count, 32, seed) for seed, count in enumerate((16, 48, 128)))
    net = Supernet(model, blocks, Ordering.from_saliency(blocks, saliency(model, blocks, calibration, 16)[0]))
    space = SearchSpace(tuple(b.spec for b in blocks), config_family(config).outside(config))
    attention = blocks[0].sub_blocks[0].spec
    full, half = attention.units, attention.units // 2
    dense = perplexity(model, held_out, 64).nll
    for widths in ([[half, 64]] * 4, [[half, 96], [0, 0], [full, 64], [half, 64]]):
        arch = space.build(widths)
        ridge = ridge_outputs(net, arch, gram_matrices(model, blocks, text, 16), [0.01])[0.01]
        lost = []
        for outputs in (ridge, sequential(net, arch, text, 16, Aim(0.01))):
            with net.realise(arch, FittedRealisation(outputs)) as candidate:
                lost.append(perplexity(candidate, held_out, 64).nll - dense)
        gone = any(layer.skip for layer in arch.layers)
        assert 0 < lost[1] < (0.6 if gone else 1) * lost[0]
