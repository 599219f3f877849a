"""Elimination with a Fisher metric against least squares from scratch, and tables of tiny models."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import FLAN, tiny_model
from torch import Tensor

from tracenas.errors import UserError
from tracenas.families import FAMILIES, Options, config_family
from tracenas.refits.penalty import per_channel
from tracenas.saliency import elimination
from tracenas.saliency.allocation import Ranked
from tracenas.saliency.allocation.solver import predicted_rises as solver_rises
from tracenas.saliency.sensitivity.fisher import fisher_matrices
from tracenas.saliency.sensitivity.measuring import measure_sensitivity
from tracenas.saliency.sensitivity.moments import input_moments
from tracenas.saliency.sensitivity.rises import metric_root, predicted_rises
from tracenas.saliency.sensitivity.table import SensitivityTable
from tracenas.space.search_space import SearchSpace

pytestmark = pytest.mark.parity

COLUMNS, ROWS = 24, 7
LAYOUTS: dict[str, tuple[list[int], list[int], int]] = {
    "channels_one_by_one": (list(range(24)), list(range(1, 25)), 1),
    "channels_by_four": (list(range(24)), [8, 12, 16, 20, 24], 1),
    "no_multiple": (list(range(24)), [10, 20, 24], 1),
    "heads": ([j // 3 for j in range(24)], list(range(1, 9)), 1),
    "heads_in_groups": ([j // 2 for j in range(24)], [3, 6, 9, 12], 3),
    "interleaved": ([j % 8 for j in range(24)], [2, 4, 8], 2),
    "columns_of_no_unit": ([-1] * 4 + [j // 2 for j in range(20)], list(range(1, 11)), 1),
}


def problem(seed: int = 0, massive: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Correlated inputs' second moment with a massive channel, a weight, a Fisher matrix."""
    rng = torch.Generator().manual_seed(seed)
    mixed, mixing, weight, slopes = (
        torch.randn(*shape, generator=rng, dtype=torch.float64)
        for shape in ((200, COLUMNS), (COLUMNS, COLUMNS), (ROWS, COLUMNS), (50, ROWS))
    )
    inputs = mixed @ mixing
    if massive:
        inputs[:, 3] *= 40
    return inputs.T @ inputs / 200, weight, slopes.T @ slopes / 50


def least_squares(gram: Tensor, weight: Tensor, kept: list[int], ridge: float) -> Tensor:
    """W' = argmin tr((W' - W) A (W' - W)ᵀ) over W' that is 0 outside `kept`, row by row by lstsq on A's root."""
    shifted = gram + torch.diag(ridge * gram.diagonal()) + 1e-6 * gram.diagonal().mean() * torch.eye(len(gram))
    root = torch.linalg.cholesky(shifted).T
    fitted = torch.zeros_like(weight)
    if kept:
        solution = torch.linalg.lstsq(root[:, kept], root @ weight.T, driver="gelsd").solution
        fitted[:, kept] = solution.T
    return fitted


def rise(gram: Tensor, weight: Tensor, metric: Tensor, kept: list[int], ridge: float) -> float:
    shifted = gram + torch.diag(ridge * gram.diagonal()) + 1e-6 * gram.diagonal().mean() * torch.eye(len(gram))
    change = least_squares(gram, weight, kept, ridge) - weight
    return 0.5 * float(torch.trace(metric @ change @ shifted @ change.T))


def greedily(
    gram: Tensor, weight: Tensor, metric: Tensor, owner: list[int], widths: list[int], groups: int, ridge: float
) -> tuple[list[int], dict[int, float]]:
    """The order in which units go, and the rise at every width, everything from scratch at every step."""
    left, order, costs = list(range(widths[-1])), [], {}

    def after(lost: list[int]) -> float:
        return rise(gram, weight, metric, [j for j, o in enumerate(owner) if o < 0 or o not in lost], ridge)

    for width in (*reversed(widths[:-1]), 0):
        while len(left) > width:
            sizes = [sum(u * groups // widths[-1] == g for u in left) for g in range(groups)]
            allowed = [u for u in left if sizes[u * groups // widths[-1]] == max(sizes)]
            alone = {u: after([*order, u]) for u in allowed}
            count = len(left) - width if groups == 1 else 1
            chosen = sorted(allowed, key=lambda u: alone[u])[:count]
            order += chosen
            left = [u for u in left if u not in chosen]
        costs[width] = after(order)
    return order, costs


@pytest.mark.parametrize("ridge", [0.1, 1e-3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_order_and_costs_equal_least_squares(layout: str, ridge: float) -> None:
    gram, weight, metric = problem()
    owner, widths, groups = LAYOUTS[layout]
    order, costs = greedily(gram, weight, metric, owner, widths, groups, ridge)
    swept = predicted_rises(gram, weight, metric, torch.tensor(owner), widths, groups=groups, ridge=ridge)
    assert swept.order.tolist() == order
    units = widths[-1]
    for width, cost in costs.items():
        assert float(swept.cost[units - width - 1]) == pytest.approx(cost, rel=1e-6)
    assert (swept.cost.diff() > 0).all()
    assert swept.bypass == pytest.approx(rise(gram, weight, metric, [], ridge), rel=1e-6)


def test_the_refit_is_the_closed_form() -> None:
    """W_S - W_R (B_RR)⁻¹ B_RS equals least squares, whatever the metric."""
    gram, weight, _ = problem()
    kept = [0, 2, 3, 7, 11, 20]
    lost = [j for j in range(COLUMNS) if j not in kept]
    inverse = torch.linalg.inv(gram + torch.diag(per_channel(gram, 0.1)))
    closed = weight[:, kept] - weight[:, lost] @ torch.linalg.solve(inverse[lost][:, lost], inverse[lost][:, kept])
    torch.testing.assert_close(closed, least_squares(gram, weight, kept, 0.1)[:, kept], rtol=1e-6, atol=1e-9)


def test_every_channel_is_penalised_by_its_own_energy() -> None:
    """A channel without energy has some of the mean; without any at all λ is next to nothing, and G + λ regular."""
    gram = torch.diag(torch.tensor([1.0, 0.0, 5.0])).double()
    found = per_channel(gram, 0.1)
    assert found.tolist() == pytest.approx([0.1 + 2e-6, 2e-6, 0.5 + 2e-6], rel=1e-12)
    nothing = per_channel(torch.zeros(3, 3), 0.1)
    assert nothing.dtype == torch.float64 and nothing.tolist() == [1e-30] * 3
    for bad in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="ridge must be positive"):
            per_channel(gram, bad)


def test_one_channel_at_a_time_is_as_good_as_the_best_pair() -> None:
    """Greedy is no worse than a few percent above exhaustive search on a tiny problem."""
    gram, weight, metric = problem(3)
    sub = list(range(8))
    gram, weight = gram[sub][:, sub], weight[:, sub]
    swept = predicted_rises(gram, weight, metric, torch.arange(8), list(range(1, 9)))
    best = min(rise(gram, weight, metric, list(kept), 0.1) for kept in itertools.combinations(range(8), 5))
    assert best <= float(swept.cost[2]) * (1 + 1e-9)
    assert float(swept.cost[2]) < 1.25 * best


def test_a_singular_metric_has_a_root() -> None:
    _, _, metric = problem()
    low = metric[:, :2] @ metric[:2, :2].inverse() @ metric[:2]
    for one in (metric, low, torch.zeros(3, 3)):
        root = metric_root(one)
        torch.testing.assert_close(root @ root.T, one.double(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_leaving_behind_what_is_gone_changes_nothing(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """B and W shrink again and again, down to a single column."""
    gram, weight, metric = problem(5)
    owner, widths, groups = LAYOUTS[layout]
    whole = predicted_rises(gram, weight, metric, torch.tensor(owner), widths, groups=groups)
    sizes: list[int] = []
    shrink = elimination._Rest._shrink

    def counted(rest: elimination._Rest) -> None:
        shrink(rest)
        sizes.append(len(rest.weight))

    monkeypatch.setattr(elimination, "_LEAST", 1)
    monkeypatch.setattr(elimination._Rest, "_shrink", counted)
    shrunk = predicted_rises(gram, weight, metric, torch.tensor(owner), widths, groups=groups)
    assert sizes and sizes == sorted(sizes, reverse=True) and sizes[-1] <= 12
    assert shrunk.order.tolist() == whole.order.tolist()
    assert shrunk.cost.tolist() == pytest.approx(whole.cost.tolist(), rel=1e-9)
    assert shrunk.bypass == pytest.approx(whole.bypass, rel=1e-9)


def test_inputs_that_are_always_zero_cost_nothing() -> None:
    _, weight, metric = problem()
    swept = predicted_rises(torch.zeros(24, 24, dtype=torch.float64), weight, metric, torch.arange(24), [8, 16, 24])
    assert 0 <= float(swept.cost.max()) < 1e-20


# --- tables of models ----------------------------------------------------------------------------


KINDS: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in FAMILIES.names()}
KINDS["flan"] = ("t5", FLAN)


def setting(kind: str, **options: Any) -> tuple[Any, Any, Tensor]:
    model_type, changes = KINDS[kind]
    model = tiny_model(model_type, **changes)
    config = model.config.to_dict()
    blocks = config_family(config).blocks(config, Options(channel_quantum=8, **options))
    return model, blocks, torch.randint(1, 257, (12, 24), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kv_groups", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_tables_of_every_family(kind: str, kv_groups: bool) -> None:
    """Widths are the space's, costs fall with width; a bypass costs ½ tr(Γ E[y yᵀ]), here with A for G."""
    model, blocks, tokens = setting(kind, kv_groups=kv_groups)
    every = {"ridge": 1e-9, "gradients": tokens.numel()}
    table = measure_sensitivity(model, blocks, tokens, 4, torch.Generator().manual_seed(2), **every)
    metrics = dict(fisher_matrices(model, blocks, tokens, 4, torch.Generator().manual_seed(2)))
    moments = dict(input_moments(model, blocks, tokens, 5))
    for index, block in enumerate(blocks):
        for sub in block.sub_blocks:
            key = (index, sub.spec.name)
            one = table.costs[key]
            assert one.widths.tolist() == [0, *sub.spec.choices()]
            assert (np.diff(one.rise) < 0).all() and one.rise[-1] == 0.0
            grouped = np.sort(one.saliency.reshape(sub.groups, -1), axis=1)
            for width in sub.spec.choices()[:-1]:
                lost = (sub.spec.units - width) // sub.groups
                assert grouped[:, lost - 1].max() == one.at(width)
            outputs = outputs_by_hand(model, block, sub, tokens)
            metric = metrics[key].double()
            expected = sum(
                0.5 * float(torch.trace(m @ rows.T @ rows)) / max(1, len(rows))
                for m, rows in zip(metric if sub.stacked else [metric], outputs, strict=True)
            )
            assert one.at(0) == pytest.approx(expected, rel=1e-3)
            assert [m.tokens for m in moments[key]] == [len(rows) for rows in outputs]


@pytest.mark.parametrize("kind", ["llama", "mixtral", "t5"])
def test_tables_do_not_depend_on_how_many_sub_blocks_are_swept_at_a_time(kind: str) -> None:
    model, blocks, tokens = setting(kind)
    one, three = (
        measure_sensitivity(model, blocks, tokens, 4, torch.Generator().manual_seed(2), sweepers=sweepers)
        for sweepers in (1, 3)
    )
    assert list(one.costs) == list(three.costs)
    for key, costs in one.costs.items():
        assert (costs.rise == three.costs[key].rise).all() and (costs.saliency == three.costs[key].saliency).all()


@pytest.mark.parametrize("kind", ["llama", "mixtral", "t5"])
def test_tables_serve_other_quanta(kind: str) -> None:
    """Between a coarse table's widths costs fall, near those of smaller steps, and the solver reads the same."""
    model, fine, tokens = setting(kind)
    tokens = torch.randint(1, 257, (96, 24), generator=torch.Generator().manual_seed(1))  # little noise to be fitted
    config = model.config.to_dict()
    source = config_family(config)
    coarse = source.blocks(config, Options(channel_quantum=32))
    space = SearchSpace(tuple(b.spec for b in fine), source.outside(config), None, "sublayer")

    def measured(blocks: Any) -> SensitivityTable:
        return measure_sensitivity(model, blocks, tokens, 4, torch.Generator().manual_seed(2))

    table, exact = measured(coarse), measured(fine)
    groups = {(i, s.spec.name): s.groups for i, block in enumerate(fine) for s in block.sub_blocks}
    saliency = {key: one.saliency for key, one in table.costs.items()}
    costs = solver_rises(Ranked(space, saliency, groups, {key: one.at(0) for key, one in table.costs.items()}))
    between = 0
    for (index, name), one in table.costs.items():
        widths = exact.costs[index, name].widths.tolist()
        found = [one.at(width) for width in widths]
        assert costs[index, name] == found
        assert (np.diff(found) < 0).all()
        inner = slice(widths.index(one.widths[1]), -1)  # below it the units of a third go in one step
        ratio = np.array(found[inner]) / exact.costs[index, name].rise[inner]
        assert (ratio > 0.9).all() and (ratio < 1.5).all()
        between += len(set(widths) - set(one.widths.tolist()))
    assert between >= 12
    with pytest.raises(ValueError, match="no width"):
        one.at(len(one.saliency) + 1)


def outputs_by_hand(model: Any, block: Any, sub: Any, tokens: Tensor) -> list[Tensor]:
    """What the output projection gives, float64 [tokens, D], of every expert that has one."""
    from tracenas.models.functionals.loss import hidden_states

    rows: list[list[Tensor]] = [[] for _ in range(sub.output_projection.stack or 1)]
    module = model.get_submodule(f"{block.path}.{sub.output_projection.parameter[0]}")

    def dense(_: Any, __: Any, output: Tensor) -> None:
        rows[0].append(output.flatten(0, -2).double())

    def experts(_: Any, args: Any) -> None:
        hidden, chosen, _weights = args
        for expert in range(len(rows)):
            x = hidden[(chosen == expert).any(-1)]
            gate, up = (x @ module.gate_up_proj[expert].T).chunk(2, dim=-1)
            rows[expert].append((module.act_fn(gate) * up @ module.down_proj[expert].T).double())

    handle = module.register_forward_pre_hook(experts) if sub.stacked else module.register_forward_hook(dense)
    with torch.no_grad():
        hidden_states(model, tokens)
    handle.remove()
    return [torch.cat(parts) for parts in rows]


def test_saved_tables_are_checked(tmp_path: Path) -> None:
    model, blocks, tokens = setting("llama")
    measured = measure_sensitivity(model, blocks, tokens, 4, torch.Generator().manual_seed(2))
    origin = {"model": "abc", "tokenizer": "def"}
    SensitivityTable(measured.costs, origin).save(tmp_path / "a.safetensors")
    again = SensitivityTable.load(tmp_path / "a.safetensors", blocks, origin)
    assert again.origin == origin and again.costs.keys() == measured.costs.keys()
    for key, one in measured.costs.items():
        assert all(
            np.array_equal(getattr(one, k), getattr(again.costs[key], k)) for k in ("saliency", "widths", "rise")
        )
    with pytest.raises(UserError, match="of another tokenizer"):
        SensitivityTable.load(tmp_path / "a.safetensors", blocks, {**origin, "tokenizer": "x"})
    wider = config_family(model.config.to_dict()).blocks(model.config.to_dict(), Options(channel_quantum=16))
    assert SensitivityTable.load(tmp_path / "a.safetensors", wider, origin).costs.keys() == measured.costs.keys()
    with pytest.raises(UserError, match="another space: block 1, (attention|mlp) has no units here"):
        SensitivityTable.load(tmp_path / "a.safetensors", blocks[:1], origin)
    grouped = config_family(model.config.to_dict()).blocks(model.config.to_dict(), Options(kv_groups=True))
    with pytest.raises(UserError, match="another space: block 0, attention has 2 kv_heads here"):
        SensitivityTable.load(tmp_path / "a.safetensors", grouped, origin)
    key, one = next(iter(measured.costs.items()))
    for end in (slice(1, None), slice(-1)):
        short = replace(one, widths=one.widths[end], rise=one.rise[end])
        SensitivityTable({**measured.costs, key: short}, origin).save(tmp_path / "short.safetensors")
        with pytest.raises(UserError, match=f"block {key[0]}, {key[1]}: widths and costs differ"):
            SensitivityTable.load(tmp_path / "short.safetensors", blocks, origin)
    for field in ("saliency", "rise"):
        broken = replace(one, **{field: getattr(one, field) * np.nan})
        SensitivityTable({**measured.costs, key: broken}, origin).save(tmp_path / "nan.safetensors")
        with pytest.raises(UserError, match=f"block {key[0]}, {key[1]}: costs are not finite"):
            SensitivityTable.load(tmp_path / "nan.safetensors", blocks, origin)
    (tmp_path / "b.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="not a sensitivity table"):
        SensitivityTable.load(tmp_path / "b.safetensors", blocks, origin)
    with pytest.raises(UserError, match="not a sensitivity table"):
        SensitivityTable.load(tmp_path / "c.safetensors", blocks, origin)


def test_a_table_is_told_of_sub_block_by_sub_block() -> None:
    model, blocks, tokens = setting("llama")
    told: list[tuple[int, int]] = []
    measure_sensitivity(
        model, blocks, tokens, 4, torch.Generator().manual_seed(2), report=lambda *steps: told.append(steps)
    )
    total = 2 * sum(len(block.sub_blocks) for block in blocks)
    assert told == [(done, total) for done in range(1, total + 1)]


def test_too_few_tokens_are_refused() -> None:
    model, blocks, tokens = setting("llama")
    with pytest.raises(UserError, match=r"69 tokens are too few for the second moments .*: 5 sequences of 24"):
        measure_sensitivity(model, blocks, tokens[:3], 4, torch.Generator().manual_seed(2))
    with pytest.raises(UserError, match=r"23 tokens are too few for the Fisher matrices .*: 2 sequences of 24"):
        measure_sensitivity(model, blocks, tokens, 4, torch.Generator().manual_seed(2), gradients=24)
