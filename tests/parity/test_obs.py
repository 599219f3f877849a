"""Elimination by structured OBS against refits from scratch after every single removal."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import tiny_model
from torch import Tensor

from tracenas.errors import UserError
from tracenas.families import Options, config_family
from tracenas.refits.gram import gram_matrices
from tracenas.refits.ridge import fit_removed, strength
from tracenas.saliency import SALIENCIES, obs

pytestmark = pytest.mark.parity

COLUMNS, ROWS = 24, 7
LAYOUTS: dict[str, tuple[list[int], int]] = {
    "channels": (list(range(24)), 1),
    "heads": ([j // 3 for j in range(24)], 1),
    "heads_in_groups": ([j // 2 for j in range(24)], 3),
    "columns_that_stay": ([-1] * 4 + [j // 2 for j in range(20)], 1),
    "interleaved": ([j % 8 for j in range(24)], 2),
}


def projection() -> tuple[Tensor, Tensor, float]:
    """Correlated inputs' Gram matrix, a weight, λ."""
    rng = torch.Generator().manual_seed(0)
    mixed, mixing, weight = (
        torch.randn(*shape, generator=rng, dtype=torch.float64)
        for shape in ((200, COLUMNS), (COLUMNS, COLUMNS), (ROWS, COLUMNS))
    )
    inputs = mixed @ mixing
    gram = inputs.T @ inputs
    return gram, weight, strength(gram, 0.01)


def error_after(gram: Tensor, weight: Tensor, ridge: float) -> Callable[[list[int]], float]:
    """Columns that stay → ‖X W'ᵀ - X Wᵀ‖² + λ‖W' - W‖², W' refitted on them."""

    def error(kept: list[int]) -> float:
        change = -weight.clone()
        if kept:
            change[:, kept] += fit_removed(gram, weight, torch.tensor(kept), ridge)
        return float((change @ gram * change).sum() + ridge * change.square().sum())

    return error


def greedily(owner: list[int], groups: int, error: Callable[[list[int]], float]) -> Tensor:
    """Take out the unit after which the error is least, among the groups that have most; error by unit."""
    units = max(owner) + 1
    left, found = list(range(units)), torch.zeros(units, dtype=torch.float64)
    while left:
        group = {u: u * groups // units for u in left}
        size = {g: list(group.values()).count(g) for g in group.values()}
        allowed = [u for u in left if size[group[u]] == max(size.values())]
        after = {u: error([j for j, o in enumerate(owner) if o < 0 or (o in left and o != u)]) for u in allowed}
        best = min(after, key=lambda u: after[u])
        found[best] = after[best]
        left.remove(best)
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_elimination_equals_refits_from_scratch(layout: str) -> None:
    gram, weight, ridge = projection()
    owner, groups = LAYOUTS[layout]
    expected = greedily(owner, groups, error_after(gram, weight, ridge))
    found = obs.elimination(gram, weight, torch.tensor(owner), groups=groups, ridge=ridge)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    assert torch.equal(found.argsort(), expected.argsort())


def test_several_at_a_time_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """After every removal of three the error is that of a refit on the rest."""
    monkeypatch.setattr(obs, "ROUNDS", 8)
    gram, weight, ridge = projection()
    error = error_after(gram, weight, ridge)
    found = obs.elimination(gram, weight, torch.arange(COLUMNS), ridge=ridge)
    order = found.argsort().tolist()
    assert found[order].diff().min() > 0
    for gone in range(3, COLUMNS + 1, 3):
        expected = error(sorted(order[gone:]))
        assert float(found[order[gone - 1]]) == pytest.approx(expected, rel=1e-6)


def test_the_first_of_two_copies_is_free() -> None:
    """What another column can stand in for costs nothing, however large it is."""
    inputs = torch.randn(400, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inputs[:, 4] = 5 * inputs[:, 1]
    weight = torch.eye(6, dtype=torch.float64)
    found = obs.elimination(inputs.T @ inputs, weight, torch.arange(6), ridge=1e-6)
    assert int(found.argmin()) in (1, 4)
    assert float(found.min()) < 1e-5 < 1 < float(found.sort().values[1])


@pytest.mark.parametrize("model_type", ["llama", "gpt_neox", "phi3", "gemma2", "mixtral"])
@pytest.mark.parametrize("kv_groups", [False, True])
def test_on_a_model(model_type: str, kv_groups: bool) -> None:
    """Every unit has an error, grouped heads go in turns; fused experts and importance are Wanda's."""
    model: Any = tiny_model(model_type)
    config = model.config.to_dict()
    blocks = config_family(config).blocks(config, Options(channel_quantum=8, kv_groups=kv_groups))
    tokens = torch.randint(1, 257, (6, 16), generator=torch.Generator().manual_seed(1))
    units, importance = SALIENCIES.get("obs")(model, blocks, tokens, 4)
    by_wanda, expected = SALIENCIES.get("wanda")(model, blocks, tokens, 4)
    assert importance == pytest.approx(expected, rel=1e-5)
    assert units.keys() == by_wanda.keys()
    grams = dict(gram_matrices(model, blocks, tokens, 4))
    for index, block in enumerate(blocks):
        for sub in block.sub_blocks:
            key = (index, sub.spec.name)
            if sub.stacked:
                assert torch.equal(units[key], by_wanda[key])
                continue
            grouped = units[key].view(sub.groups, -1).sort(dim=1).values
            assert (grouped[:, 1:].amin(dim=0) > grouped[:, :-1].amax(dim=0)).all()
            weight = model.get_submodule(f"{block.path}.{sub.output}").weight.detach().double()
            gram = grams[key]
            shrunk = torch.where(torch.eye(len(gram)) == 1, gram, 0.9 * gram)
            whole = error_after(shrunk, weight, strength(gram, obs.RIDGE))([])
            if (sub.output_projection.unit_ids(1, sub.spec.units) >= 0).all():
                assert float(units[key].max()) == pytest.approx(whole, rel=1e-6)


def test_not_of_an_encoder_decoder_model() -> None:
    model = tiny_model("t5")
    config = model.config.to_dict()
    with pytest.raises(UserError, match="encoder"):
        SALIENCIES.get("obs")(model, config_family(config).blocks(config, Options()), torch.ones(2, 8).long(), 2)
