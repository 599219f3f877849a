"""What `plan` says of compensation: products as torch counts them, memory as the tensors take it."""

from typing import Any

import pytest
import torch
from proxy_setting import ProxySetting
from torch.utils.flop_counter import FlopCounterMode

from tracenas.families import active, present
from tracenas.refits.costs import MEMO_BYTES, _gram, refit_costs, refit_memory
from tracenas.refits.gram_sum import GramSum
from tracenas.refits.realisation import CompensatedRealisation
from tracenas.scoring.workload import Shape, workload

pytestmark = pytest.mark.parity

TOKENS = 96


@pytest.fixture(scope="module", params=["llama", "mixtral"])
def setting(request: pytest.FixtureRequest) -> ProxySetting:
    return ProxySetting(request.param)


def refitted(setting: ProxySetting) -> list[tuple[Any, Any]]:
    return [(key, sub) for key, sub in present(setting.blocks) if not sub.stacked]


def test_products_are_those_that_torch_counts(setting: ProxySetting) -> None:
    arch = setting.architectures(3)[2]
    costs = refit_costs(setting.blocks, arch, TOKENS)
    forward = workload(setting.blocks, setting.space.base, 0, 32, Shape(1, TOKENS, 1, None, 4, "cpu"))
    assert costs.forward == forward.flops
    assert costs.gram == sum(gram_products(sub.output_projection.columns) for _, sub in refitted(setting))
    for candidate in setting.architectures(6)[2:]:
        how = CompensatedRealisation(setting.net, grams(setting), 0.1)
        with FlopCounterMode(display=False) as counter, setting.net.realise(candidate, how):
            pass
        assert refit_costs(setting.blocks, candidate, TOKENS).candidate == counter.get_total_flops()
    factors = [(sub.output_projection.columns, sub.output_projection.rows) for _, sub in refitted(setting)]
    assert costs.factor == sum(n**3 + 2 * n**2 * rows for n, rows in factors)


def gram_products(columns: int) -> int:
    with FlopCounterMode(display=False) as counter:
        GramSum(columns, torch.device("cpu")).add(torch.ones(TOKENS, columns))
    return int(counter.get_total_flops())


@pytest.mark.parametrize("columns", [256, 300, 700])
def test_of_a_wide_gram_matrix_half_is_computed(columns: int) -> None:
    assert _gram(columns) * TOKENS == gram_products(columns) <= 2 * TOKENS * columns**2


def grams(setting: ProxySetting) -> Any:
    return ((key, torch.eye(sub.output_projection.columns).double()) for key, sub in refitted(setting))


def test_a_pruned_block_runs_again_up_to_every_output_projection() -> None:
    """Dense and 2.2 times the kept share; T k² of the Gram matrix, 2 T k D of its targets, k³/3 and 2 k² D to solve."""
    setting = ProxySetting("llama")
    arch = setting.architectures(3)[2]
    expected = 0.0
    for _, sub, kept in active(setting.blocks, arch):
        share, k = kept / sub.spec.units, sub.output_projection.columns * kept // sub.spec.units
        dense = 2 * TOKENS * (sub.spec.units * sub.spec.weights_per_unit + sub.spec.fixed_weights)
        expected += dense * (1 + 2.2 * share) + TOKENS * (2 * k * k + 2 * k * 32) + k**3 / 3 + 2 * k * k * 32
    assert refit_costs(setting.blocks, arch, TOKENS).sequential == pytest.approx(expected)


def test_memory_is_what_the_tensors_take(setting: ProxySetting, monkeypatch: pytest.MonkeyPatch) -> None:
    arch = setting.architectures(3)[2]
    how = CompensatedRealisation(setting.net, grams(setting), 0.1)
    costs = refit_costs(setting.blocks, arch, TOKENS)
    factors = sum(f.inverse.nbytes + f.mixed.nbytes for f in how._factors.values())
    assert costs.factor_bytes == factors
    squares = [sum(s.output_projection.columns**2 for s in b.sub_blocks if not s.stacked) for b in setting.blocks]
    assert costs.statistics_bytes == 8 * max(squares) + 2 * TOKENS * 32
    outputs = [
        sub.output_projection.columns * kept // sub.spec.units
        for _, sub, kept in active(setting.blocks, arch)
        if not sub.stacked
    ]
    assert costs.outputs_bytes == 2 * 32 * sum(outputs)
    for key, sub in refitted(setting):
        for kept in sub.spec.choices():
            if kept < sub.spec.units:
                how.weight(setting.net, key, sub, sub.output_projection, kept)
    whole = sum(4 * 32 * sub.output_projection.columns for _, sub in refitted(setting))  # counted, but never refitted
    assert refit_memory(setting.blocks, 1, 4) == factors + max(how.memo_used + whole, 8 * max(squares) + 128)
    assert refit_memory(setting.blocks, 1 << 20, 4) == factors + 8 * max(squares) + (128 << 20)
    assert refit_memory(setting.blocks, 1, 8) > refit_memory(setting.blocks, 1, 4) >= refit_memory(setting.blocks, 1, 2)
    monkeypatch.setattr("tracenas.refits.costs.MEMO_BYTES", 0)
    assert refit_memory(setting.blocks, 1, 4) == factors + 8 * max(squares) + 128
    assert how.memo_used < MEMO_BYTES
