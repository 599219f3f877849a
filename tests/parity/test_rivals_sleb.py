"""SLEB with shared prefixes against whole models from which blocks are taken out."""

from typing import Any

import pytest
import torch
from benchmark_modules import load_benchmark
from tiny import tiny_model
from torch import nn

from tracenas.families import Options, config_family
from tracenas.models.functionals.loss import next_token_nll

pytestmark = pytest.mark.parity


class Nothing(nn.Module):
    """A block that is not there."""

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return hidden_states


def blocks_of(model: Any) -> Any:
    config = model.config.to_dict()
    return config_family(config).blocks(config, Options(channel_quantum=8))


def greedily(model: Any, tokens: torch.Tensor, count: int) -> tuple[list[int], list[float]]:
    """The definition: every candidate is a whole model."""
    layers, order, losses = model.model.layers, [], []
    for _ in range(count):
        found = {}
        for index in range(len(layers)):
            if index not in order:
                kept = dict(layers._modules)
                for gone in (*order, index):
                    layers._modules[str(gone)] = Nothing()
                with torch.no_grad():
                    found[index] = float(next_token_nll(model, tokens).mean())
                layers._modules.update(kept)
        order.append(min(found, key=lambda i: found[i]))
        losses.append(found[order[-1]])
    return order, losses


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_order_and_losses_are_those_of_whole_models(family: str) -> None:
    model = tiny_model(family, num_hidden_layers=5)
    tokens = torch.randint(1, 257, (5, 12), generator=torch.Generator().manual_seed(1))
    losses: list[float] = []
    order = load_benchmark("rivals.sleb").removal_order(
        model, blocks_of(model), tokens, 2, lambda gone: len(gone) == 3, lambda _, loss: losses.append(loss)
    )
    expected, by_definition = greedily(model, tokens, 3)
    assert order == expected
    assert losses == pytest.approx(by_definition, rel=1e-5)
