"""Allocations over made-up saliencies; no model."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import LLAMA_8B

from tracenas.errors import UserError
from tracenas.families import Options, config_family
from tracenas.models.checkpoints.source import ModelSource
from tracenas.saliency.allocation import ALLOCATIONS, Ranked
from tracenas.saliency.allocation.adaptive import attention_sparsity, default_gamma
from tracenas.saliency.allocation.ranked import UnitPool
from tracenas.saliency.allocation.solver import predicted_rise
from tracenas.space.architecture import Architecture
from tracenas.space.constraints import Budget
from tracenas.space.exclusion import kept_whole

LLAMA_3B = LLAMA_8B | {
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 28,
    "num_attention_heads": 24,
    "tie_word_embeddings": True,
}
SMALL: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 100,
}


def ranked(
    config: dict[str, Any], share: float, *, kv_groups: bool = True, seed: int = 0, quantum: int = 8, **space: Any
) -> Ranked:
    options = Options(channel_quantum=quantum, kv_groups=kv_groups)
    source = ModelSource("model", Path("model"), config, config_family(config))
    base = source.space(options).parameters(source.space(options).base)
    rng = np.random.default_rng(seed)
    blocks = source.blocks(options)
    subs = {(i, s.spec.name): s for i, b in enumerate(blocks) for s in b.sub_blocks}
    found = {key: rng.lognormal(rng.normal(), 1.0, s.spec.units) for key, s in subs.items()}
    groups = {key: s.groups for key, s in subs.items()}
    importance = {key: float(value.mean()) for key, value in found.items()}
    return Ranked(source.space(options, budget=Budget(int(base * share)), **space), found, groups, importance)


@pytest.mark.parametrize(("config", "published"), [(LLAMA_8B, 3.36), (LLAMA_3B, 3.00)])
def test_default_gamma_is_the_published_one(config: dict[str, Any], published: float) -> None:
    blocks = config_family(config).blocks(config, Options(kv_groups=True))
    specs = [s.spec for b in blocks for s in b.sub_blocks]
    assert specs[0].parameters_per_unit == 2 * (config["num_attention_heads"] // 8 + 1) * 128 * config["hidden_size"]
    assert round(default_gamma(specs), 2) == published


def test_attention_and_mlp_sparsity_are_tied() -> None:
    """f_attn · A + γ · f_attn · M = s (A + M)."""
    f = attention_sparsity(0.4, 10.0, 42.0, 3.36)
    assert f * 10 + 3.36 * f * 42 == pytest.approx(0.4 * 52)
    assert attention_sparsity(0.4, 10.0, 42.0, 1.0) == pytest.approx(0.4)


@pytest.mark.parametrize("gamma", [0.8, 1.0, 2.0, None])
def test_gamma_decides_both_sparsities(gamma: float | None) -> None:
    given = ranked(SMALL | {"hidden_size": 128, "intermediate_size": 2048, "num_hidden_layers": 12}, 0.6)
    found = ALLOCATIONS.get("adaptive")(given, gamma)
    counts = given.space.counts(found.architecture)
    lost_attention = 1 - sum(row[0] for row in counts) / (12 * 4)
    lost_mlp = 1 - sum(row[1] for row in counts) / (12 * 2048)
    assert (lost_attention, lost_mlp) == (found.facts["attention_sparsity"], found.facts["mlp_sparsity"])
    chosen = found.facts["gamma"]
    assert chosen == (found.facts["gamma_default"] if gamma is None else gamma)
    unit = 1 / (12 * 4)  # of attention, the coarser of both
    assert abs(lost_attention - found.facts["attention_sparsity_by_formula"]) < unit
    assert abs(lost_mlp - chosen * lost_attention) < chosen * unit


@pytest.mark.parametrize("name", sorted(set(ALLOCATIONS.names()) - {"mlp", "solver"}))
@pytest.mark.parametrize("share", [0.45, 0.6, 0.8, 1.0])
@pytest.mark.parametrize("kv_groups", [False, True])
def test_the_budget_is_met(name: str, share: float, kv_groups: bool) -> None:
    given = ranked(SMALL, share, kv_groups=kv_groups)
    space = given.space
    found = ALLOCATIONS.get(name)(given, None).architecture
    assert space.window[0] <= space.parameters(found) <= space.window[1]
    assert space.validate(found) == found  # feasible widths: quanta, minimum, equal heads per group
    assert ALLOCATIONS.get(name)(given, None).architecture == found
    if name not in ("depth", "uniform"):
        assert not any(layer.skip for layer in found.layers)
        assert all(k > 0 for layer in found.layers for _, k in layer.kept)


def test_the_solver_has_the_least_sum_of_its_costs() -> None:
    """Within the window, no dearer than any other allocation; with a dear bypass, no block is skipped."""
    given = as_rises(ranked(SMALL, 0.6, kv_groups=False))
    found = ALLOCATIONS.get("solver")(given, None)
    space = given.space
    assert space.window[0] <= space.parameters(found.architecture) <= space.window[1]
    assert space.validate(found.architecture) == found.architecture
    rise = predicted_rise(given, found.architecture)
    assert rise == pytest.approx(rise_by_hand(given, found.architecture)) and found.facts["solver_gap"] < 1e-2
    for name in ("global", "uniform", "depth"):
        assert rise < rise_by_hand(given, ALLOCATIONS.get(name)(given, None).architecture)


def as_rises(given: Ranked) -> Ranked:
    """Saliencies that are costs of everything that is gone before a unit, itself included."""
    saliency = {}
    for key, values in given.saliency.items():
        order = np.argsort(values)
        saliency[key] = np.empty(len(values))
        saliency[key][order] = np.cumsum(values[order] ** 2)
    importance = {key: float(2 * values.max()) for key, values in saliency.items()}
    return Ranked(given.space, saliency, given.groups, importance)


def rise_by_hand(given: Ranked, arch: Architecture) -> float:
    """The dearest unit that is gone, where as many go from every group, or the whole sub-block."""
    total = 0.0
    for (i, _, spec), kept in zip(given.slots(), (k for row in given.space.counts(arch) for k in row), strict=True):
        values = np.sort(given.saliency[i, spec.name].reshape(given.groups[i, spec.name], -1), axis=1)
        lost = (spec.units - kept) // given.groups[i, spec.name]
        total += given.importance[i, spec.name] if not kept else float(values[:, lost - 1].max()) if lost else 0.0
    return total


@pytest.mark.parametrize("quantum", [1, 8])
@pytest.mark.parametrize("share", [0.6, 0.8, 1.0])
def test_one_width_for_all_mlps(share: float, quantum: int) -> None:
    """Attention untouched, the largest multiple within the budget, whatever the lower end of the window."""
    given = ranked(SMALL, share, quantum=quantum, kv_groups=False)
    found = ALLOCATIONS.get("mlp")(given, None)
    counts = given.space.counts(found.architecture)
    width = found.facts["mlp_width"]
    assert {tuple(row) for row in counts} == {(8, width)}
    assert given.space.parameters(found.architecture) <= given.space.window[1]
    if width < 160:
        wider = given.space.build([[8, min(width + quantum, 160)]] * 8)
        assert given.space.parameters(wider) > given.space.window[1]


def test_mlps_alone_cannot_meet_every_budget() -> None:
    with pytest.raises(UserError, match="with attention untouched, MLPs of the smallest width leave"):
        ALLOCATIONS.get("mlp")(ranked(SMALL, 0.3), None)


def test_thresholds_keep_what_is_above_them() -> None:
    """The kept units of every attention are those above one threshold; channels are rounded up to the quantum."""
    given = ranked(SMALL, 0.6)
    pools = [UnitPool(given, [t for t in given.slots() if (t[2].name == "mlp") == mlp]) for mlp in (False, True)]
    for pool, share, quantum in zip(pools, (0.2, 0.4), (1, 8), strict=True):
        everything = np.sort(np.concatenate([given.saliency[i, s.name] for i, _, s in pool.slots]))
        threshold = everything[round(share * len(everything))]
        kept = pool.kept(share)
        for i, j, s in pool.slots:
            above = int((given.saliency[i, s.name] >= threshold).sum())
            assert kept[i, j] == min(s.units, max(quantum, -(-above // quantum) * quantum))
        for lost in (0.0, 0.25, 0.5, pool.most):
            least = pool.threshold(lost)
            assert pool.lost(least) >= lost - 1e-9
            assert least == 0 or pool.lost(least - 1 / pool.units) < lost


def test_global_compares_per_parameter() -> None:
    """Attention units of twice the saliency but more than twice the parameters go first."""
    given = ranked(SMALL, 0.8)
    saliency = {key: np.full(len(v), 2.0 if key[1] == "attention" else 1.0) for key, v in given.saliency.items()}
    even = Ranked(given.space, saliency, given.groups, given.importance)
    by_parameter = given.space.counts(ALLOCATIONS.get("global")(even, None).architecture)
    by_unit = given.space.counts(ALLOCATIONS.get("global_units")(even, None).architecture)
    assert all(row[1] == 160 for row in by_parameter) and any(row[0] < 4 for row in by_parameter)
    assert all(row[0] == 4 for row in by_unit) and any(row[1] < 160 for row in by_unit)


def test_depth_removes_the_least_important_blocks() -> None:
    given = ranked(SMALL, 0.6, min_depth=1)
    influence = [0.5, 0.1, 0.3, 0.05, 0.2, 0.4, 0.15, 0.6]
    given = Ranked(given.space, given.saliency, given.groups, {k: influence[k[0]] for k in given.importance})
    found = ALLOCATIONS.get("depth")(given, None)
    gone = [i for i, layer in enumerate(found.architecture.layers) if layer.skip]
    order = sorted(range(8), key=lambda i: influence[i])
    assert sorted(found.facts["removed_blocks"]) == gone and set(gone) == set(order[: len(gone)])
    assert found.facts["narrowed_block"] == order[len(gone)]
    counts = given.space.counts(found.architecture)
    assert all(counts[i] == [4, 160] for i in range(8) if i not in gone and i != order[len(gone)])
    kept = ranked(SMALL, 0.6, min_depth=1, keep_layers=(3,))
    kept = Ranked(kept.space, kept.saliency, kept.groups, {k: influence[k[0]] for k in kept.importance})
    assert not ALLOCATIONS.get("depth")(kept, None).architecture.layers[3].skip


@pytest.mark.parametrize("allocation", ALLOCATIONS.names())
@given(
    excluded=st.sets(st.tuples(st.integers(0, 7), st.sampled_from(["attention", "mlp"])), min_size=1, max_size=5),
    seed=st.integers(0, 99),
    share=st.floats(0.55, 0.9),
    granularity=st.sampled_from(["block", "sublayer"]),
)
@settings(max_examples=12, deadline=None)
def test_what_is_excluded_keeps_its_width(
    allocation: str, excluded: set[tuple[int, str]], seed: int, share: float, granularity: str
) -> None:
    """The least salient units of all are theirs."""
    free = ranked(SMALL, share, seed=seed, min_depth=1, granularity=granularity)
    names = frozenset(excluded)
    space = replace(free.space, layers=kept_whole(free.space.layers, names), excluded=names)
    saliency = {key: v * (1e-6 if key in names else 1.0) for key, v in free.saliency.items()}
    importance = {key: v * (1e-6 if key in names else 1.0) for key, v in free.importance.items()}
    try:
        found = ALLOCATIONS.get(allocation)(Ranked(space, saliency, free.groups, importance), None).architecture
    except UserError:
        assert allocation in ("mlp", "depth")
        return
    assert space.validate(found) == found and space.cost(found) <= space.window[1]
    for index, name in names:
        place = [s.name for s in space.layers[index].sub_blocks].index(name)
        assert space.counts(found)[index][place] == space.layers[index].sub_blocks[place].units


def test_a_gamma_that_is_infeasible_says_which_is_not() -> None:
    given = ranked(SMALL, 0.3)
    range_ = r"gamma 50: the MLPs would .* accepted for this budget: [0-9.]+ to [0-9.]+$"
    with pytest.raises(UserError, match=range_) as info:
        ALLOCATIONS.get("adaptive")(given, 50.0)
    low, high = (float(x) for x in str(info.value).rpartition(": ")[2].split(" to "))
    assert low < 1 < high
    for gamma in (low, high):
        found = ALLOCATIONS.get("adaptive")(given, gamma).architecture
        assert given.space.parameters(found) <= given.space.window[1]
    for gamma in (low - 0.011, high + 0.011):
        with pytest.raises(UserError, match="accepted for this budget"):
            ALLOCATIONS.get("adaptive")(given, gamma)
    assert ALLOCATIONS.get("adaptive")(ranked(SMALL, 0.9), 50.0)  # the MLPs alone have more to give than that
    with pytest.raises(UserError, match="keeps every block"):
        ALLOCATIONS.get("adaptive")(ranked(SMALL, 0.1, min_depth=1), 1.3)
    with pytest.raises(UserError, match=r"cannot be met by removing whole blocks: 4 of 8 may go \(min-depth 4\)"):
        ALLOCATIONS.get("depth")(ranked(SMALL, 0.3, min_depth=4), None)
