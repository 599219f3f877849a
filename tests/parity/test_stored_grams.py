"""Gram matrices that the sensitivity table's pass puts aside against those of a pass of their own."""

from typing import Any

import pytest
import torch
from tiny import tiny_model

from tracenas.families import Options, config_family
from tracenas.models.surgery.ordering import Ordering
from tracenas.models.surgery.supernet import Supernet
from tracenas.pipeline.refit.statistics import StoredGrams
from tracenas.refits.gram import gram_matrices
from tracenas.saliency.fisher import as_saliency
from tracenas.saliency.sensitivity.measuring import measure_sensitivity

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("kv_groups", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt_neox", "phi3", "olmo2", "mixtral"])
def test_they_are_those_of_the_permuted_model(family: str, kv_groups: bool) -> None:
    model: Any = tiny_model(family)
    config = model.config.to_dict()
    blocks = config_family(config).blocks(config, Options(channel_quantum=8, kv_groups=kv_groups))
    tokens = torch.randint(1, 257, (12, 24), generator=torch.Generator().manual_seed(1))
    stored = StoredGrams(blocks)
    stored.begin(model, tokens)
    drawn = torch.Generator().manual_seed(2)
    table = measure_sensitivity(model, blocks, tokens, 4, drawn, put=stored.put)
    net = Supernet(model, blocks, Ordering.from_saliency(blocks, as_saliency(table)[0]))
    expected = dict(gram_matrices(net.model, net.blocks, tokens, 5))
    found = stored.of(tokens, net.ordering)
    assert found is not None
    matrices = dict(found)
    assert list(matrices) == list(expected)
    for key, gram in expected.items():
        scale = float(gram.diagonal().mean()) / tokens.numel()
        torch.testing.assert_close(matrices[key], gram / tokens.numel(), rtol=2e-5, atol=2e-6 * scale)
    assert stored.of(tokens + 1, net.ordering) is None
    stored.begin(net.model, tokens, in_order=True)
    assert stored.of(tokens, net.ordering) is None
    for key, gram in expected.items():
        stored.put(key, gram)
    again = stored.of(tokens, net.ordering)
    assert again is not None
    for key, gram in again:  # as they were put, to their rounding: they were in the super-network's order already
        assert torch.equal(gram, expected[key].float().double())
    stored.close()


def test_what_is_too_large_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tracenas.pipeline.refit.statistics._LARGEST", 100)
    model: Any = tiny_model("llama")
    config = model.config.to_dict()
    blocks = config_family(config).blocks(config, Options())
    stored = StoredGrams(blocks)
    tokens = torch.zeros(1, 2, dtype=torch.int64)
    stored.begin(model, tokens)
    for index, block in enumerate(blocks):
        for sub in block.sub_blocks:
            stored.put((index, sub.spec.name), torch.eye(sub.output_projection.columns))
    assert stored.of(tokens, Ordering({}, {})) is None
