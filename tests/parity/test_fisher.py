"""Fisher matrices from sampled labels against the exact ones, by enumeration of every label of every token."""

from typing import Any

import pytest
import torch
from tiny import ENCODER_DECODER, FLAN, tiny_model
from torch import Tensor

from tracenas.errors import UserError
from tracenas.families import FAMILIES, Options, config_family
from tracenas.models.functionals.loss import hidden_states, predicting
from tracenas.saliency.sensitivity.fisher import fisher_matrices

pytestmark = pytest.mark.parity

VOCABULARY = 7
KINDS: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in FAMILIES.names()}
KINDS["flan"] = ("t5", FLAN)
KINDS["gpt_neox_serial"] = ("gpt_neox", {"use_parallel_residual": False})


def setting(kind: str) -> tuple[Any, Any, Tensor]:
    model_type, changes = KINDS[kind]
    model = tiny_model(model_type, vocab_size=VOCABULARY, **changes)
    config = model.config.to_dict()
    blocks = config_family(config).blocks(config, Options(channel_quantum=8))
    tokens = torch.randint(1, VOCABULARY, (2, 5), generator=torch.Generator().manual_seed(1))
    return model, blocks, tokens


def exact(model: Any, blocks: Any, tokens: Tensor) -> dict[tuple[int, str], Tensor]:
    """Γ = Σ_t Σ_s Σ_v p_s(v) g gᵀ / N, g the gradient of -log p_s(v) at y_t, one backward pass for each (s, v)."""
    outputs: dict[tuple[int, str], list[Any]] = {}
    handles = []
    for index, block in enumerate(blocks):
        for sub in block.sub_blocks:
            key = (index, sub.spec.name)
            path = sub.output_projection.parameter[0]

            def see(module: Any, args: Any, output: Tensor, key: Any = key) -> None:
                outputs[key] = [output, *args[1:]]

            handles.append(model.get_submodule(f"{block.path}.{path}").register_forward_hook(see))
    model.requires_grad_(True)
    hidden = predicting(model, hidden_states(model, tokens))
    for handle in handles:
        handle.remove()
    logits = hidden @ model.get_output_embeddings().weight.T
    if cap := getattr(model.config, "final_logit_softcapping", None):
        logits = cap * torch.tanh(logits / cap)
    losses = -logits.log_softmax(-1).flatten(0, 1)
    totals = {key: 0.0 for key in outputs}
    tensors = [values[0] for values in outputs.values()]
    for row in losses:
        for loss in row:
            slopes = torch.autograd.grad(loss, tensors, retain_graph=True)
            for (key, values), slope in zip(outputs.items(), slopes, strict=True):
                totals[key] = totals[key] + (-loss).exp() * products(slope, values[1:])
    model.requires_grad_(False)
    return {key: total.detach() / losses.shape[0] for key, total in totals.items()}  # type: ignore[attr-defined]


def products(slope: Tensor, routing: list[Tensor]) -> Tensor:
    """g gᵀ summed over tokens; of every expert where tokens are routed."""
    rows = slope.flatten(0, -2)
    if not routing:
        return rows.T @ rows
    chosen, weights = routing
    each = [((chosen == e) * weights).sum(1, keepdim=True) * rows for e in range(4)]
    return torch.stack([part.T @ part for part in each])


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_exact_fisher_within_sampling_error(kind: str) -> None:
    """The error of a mean over S samples is about 1/√S of one sample's."""
    model, blocks, tokens = setting(kind)
    expected = exact(model, blocks, tokens)
    errors = []
    for samples in (16, 1024):
        generator = torch.Generator().manual_seed(3)
        matrices = dict(fisher_matrices(model, blocks, tokens.repeat(samples, 1), 512, generator))
        assert matrices.keys() == expected.keys()
        assert all(matrix.dtype == torch.float32 for matrix in matrices.values())
        errors.append({key: float((matrices[key] - expected[key]).norm() / expected[key].norm()) for key in expected})
    assert max(errors[1].values()) < 0.15
    falls = torch.tensor([errors[1][key] / errors[0][key] for key in expected])
    assert float(falls.log().mean().exp()) < 0.25  # 1/8 is expected


@pytest.mark.parametrize("kind", ["llama", "mixtral", "t5"])
def test_does_not_depend_on_the_micro_batch(kind: str) -> None:
    model, blocks, tokens = setting(kind)
    tokens = tokens.repeat(3, 1)
    at_once, singly = (
        dict(fisher_matrices(model, blocks, tokens, batch, torch.Generator().manual_seed(0))) for batch in (6, 1)
    )
    for key, matrix in at_once.items():
        torch.testing.assert_close(singly[key], matrix, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_gradients_that_are_not_finite_are_refused(kind: str) -> None:
    model, blocks, tokens = setting(kind)
    name = "encoder.final_layer_norm" if kind in ENCODER_DECODER else "model.norm"
    model.get_submodule(name).weight.fill_(float("nan"))
    with pytest.raises(UserError, match=r"block \d, \w+: gradients of the loss are not finite"):
        list(fisher_matrices(model, blocks, tokens, 2, torch.Generator().manual_seed(0)))
