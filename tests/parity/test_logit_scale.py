"""The factor of all logits against a search for it, and the norm that carries it in every family."""

from typing import Any

import pytest
import torch
from scipy.optimize import minimize_scalar
from tiny import ENCODER_DECODER, FLAN, tiny_model

from tracenas.families import FAMILIES
from tracenas.models.functionals.loss import hidden_states
from tracenas.refits.factors import scaled_norm
from tracenas.refits.logit_scale import best_scale


def drawn(seed: int, sharpness: float, tokens: int = 300) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, a head, and labels drawn from its predictions; its logits are then `sharpness` times as large."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, 12, generator=generator, dtype=torch.float64)
    head = torch.randn(40, 12, generator=generator, dtype=torch.float64)
    labels = torch.multinomial((hidden @ head.T).softmax(1), 1, generator=generator)[:, 0]
    return sharpness * hidden, head, labels


def loss(logits: torch.Tensor, labels: torch.Tensor, softcap: float | None) -> float:
    capped = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    return float(torch.nn.functional.cross_entropy(capped, labels))


@pytest.mark.parametrize("softcap", [None, 30.0, 6.0])
@pytest.mark.parametrize("sharpness", [0.4, 1.0, 1.5, 3.0])
def test_no_other_factor_is_better(sharpness: float, softcap: float | None) -> None:
    for seed in range(3):
        hidden, head, labels = drawn(seed, sharpness)
        logits = hidden @ head.T
        searched = minimize_scalar(
            lambda s, logits=logits, labels=labels: loss(s * logits, labels, softcap),
            bounds=(0.25, 4.0),
            method="bounded",
            options={"xatol": 1e-7},
        )
        found = best_scale(hidden, head, labels, softcap)
        assert found.before == pytest.approx(loss(logits, labels, softcap), rel=1e-9)
        assert found.after == pytest.approx(loss(found.factor * logits, labels, softcap), rel=1e-9)
        assert found.after <= searched.fun + 1e-5
        # With a cap the loss may have a second, worse minimum, which is what the search finds.
        assert found.factor == pytest.approx(searched.x, abs=5e-3) or found.after < searched.fun - 1e-3


def test_labels_of_the_model_itself_leave_it_nearly_as_it_is() -> None:
    factors = [best_scale(*drawn(seed, 1.0, tokens=20_000)).factor for seed in range(3)]
    assert all(abs(factor - 1) < 0.02 for factor in factors)


def test_logits_that_are_all_the_same_have_no_best_factor() -> None:
    found = best_scale(torch.ones(5, 4), torch.ones(7, 4), torch.arange(5))
    assert found.factor == 1 and found.before == found.after


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model_type", [*FAMILIES.names(), "flan"])
def test_the_norm_in_front_of_the_head_carries_it(model_type: str, dtype: torch.dtype) -> None:
    name, changes = ("t5", FLAN) if model_type == "flan" else (model_type, {})
    model: Any = tiny_model(name, **changes).to(dtype)
    tokens = torch.arange(24).view(2, 12)
    before = hidden_states(model, tokens).double()
    norm = model.get_submodule(FAMILIES.get(name).final_norm)
    assert (name in ENCODER_DECODER) == model.config.is_encoder_decoder
    for key, value in scaled_norm(norm, 0.8).items():
        assert value.dtype == dtype and value.shape == norm.get_parameter(key).shape
        norm.get_parameter(key).data.copy_(value)
    rounding = 1e-6 if dtype == torch.float32 else 2.0**-7
    torch.testing.assert_close(hidden_states(model, tokens).double(), 0.8 * before, rtol=rounding, atol=rounding)
