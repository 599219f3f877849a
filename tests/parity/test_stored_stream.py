"""Sequential refits that aim at hidden states which another pass has put aside, against those that make them."""

from typing import Any

import pytest
import torch
from tiny import tiny_model
from torch import Tensor

from tracenas.families import Options, config_family
from tracenas.models.surgery.ordering import Key, Ordering
from tracenas.models.surgery.supernet import Supernet
from tracenas.paging import in_memory
from tracenas.pipeline.refit import stream as module
from tracenas.pipeline.refit.statistics import StoredGrams
from tracenas.pipeline.refit.stream import StoredStream
from tracenas.refits.aim import Aim
from tracenas.refits.gram import gram_matrices
from tracenas.refits.sequential import SequentialFit
from tracenas.saliency.fisher import as_saliency
from tracenas.saliency.sensitivity.measuring import measure_sensitivity
from tracenas.space.search_space import SearchSpace

pytestmark = pytest.mark.parity

AIMS = (Aim(0.1, 1.0), Aim(0.1, 0.0))


@pytest.fixture(autouse=True)
def disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Temporary files are on a disk with room, wherever the tests run."""
    monkeypatch.setattr(module, "on_disk", lambda directory: True)


class Setting:
    """A model of random weights, its super-network with the units in the table's order, and a narrower candidate."""

    def __init__(self, family: str, dtype: torch.dtype) -> None:
        self.model: Any = tiny_model(family).to(dtype)
        config = self.model.config.to_dict()
        described = config_family(config)
        self.blocks = described.blocks(config, Options(channel_quantum=8))
        self.tokens = torch.randint(1, 257, (12, 24), generator=torch.Generator().manual_seed(1))
        self.stored = StoredGrams(self.blocks, StoredStream(self.blocks))
        recorder = self.stored.begin(self.model, self.tokens)
        drawn = torch.Generator().manual_seed(2)
        table = measure_sensitivity(self.model, self.blocks, self.tokens, 4, drawn, stream=recorder)
        self.net = Supernet(self.model, self.blocks, Ordering.from_saliency(self.blocks, as_saliency(table)[0]))
        space = SearchSpace(tuple(block.spec for block in self.blocks), described.outside(config))
        widths = [[spec.round(spec.units * share) for spec in b.spec.sub_blocks] for b, share in self.shares()]
        self.arch = space.validate(space.build(widths), where="test")

    def shares(self) -> list[tuple[Any, float]]:
        """Every block with the share of its units that stays; the second one goes."""
        return [(block, 0.0 if index == 1 else 0.5) for index, block in enumerate(self.blocks)]

    def refits(self, micro_batch: int, *, stored: bool) -> dict[Aim, dict[Key, Tensor]]:
        """Of all aims, from the stream that was put aside or from one made on the way."""
        stream = None
        if stored:
            stream = self.stored.stream(self.tokens, in_memory)
            assert stream is not None
        return SequentialFit(self.net, self.arch, self.tokens, micro_batch, AIMS, stream=stream).advance()


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox", "mixtral"])
def test_refits_are_the_same(family: str) -> None:
    """Of the table's pass: units in another order, other micro-batches, so up to the rounding of float32's sums."""
    setting = Setting(family, torch.float32)
    expected, found = setting.refits(5, stored=False), setting.refits(5, stored=True)
    assert found.keys() == expected.keys() == set(AIMS)
    for aim in AIMS:
        assert found[aim].keys() == expected[aim].keys() and found[aim]
        for key, weight in expected[aim].items():
            torch.testing.assert_close(found[aim][key], weight, rtol=1e-4, atol=1e-5)
    setting.stored.close()


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_a_pass_over_the_same_units_they_are_the_same_in_every_bit(family: str, dtype: torch.dtype) -> None:
    setting = Setting(family, torch.float32)
    net = setting.net
    net.model.to(dtype)
    recorder = setting.stored.begin(net.model, setting.tokens, in_order=True)
    list(gram_matrices(net.model, net.blocks, setting.tokens, 5, recorder))
    expected, found = setting.refits(5, stored=False), setting.refits(5, stored=True)
    for aim in AIMS:
        assert all(torch.equal(found[aim][key], weight) for key, weight in expected[aim].items())
    setting.stored.close()


def test_nothing_is_read_of_another_text_or_of_half_a_pass() -> None:
    setting = Setting("llama", torch.float32)
    stream = setting.stored.stream
    assert stream(setting.tokens, in_memory) is not None
    assert stream(setting.tokens + 1, in_memory) is None
    passing = gram_matrices(
        setting.model, setting.blocks, setting.tokens, 5, setting.stored.begin(setting.model, setting.tokens)
    )
    next(passing)
    assert stream(setting.tokens, in_memory) is None
    list(passing)
    assert stream(setting.tokens, in_memory) is not None
    setting.stored.close()
    assert stream(setting.tokens, in_memory) is None


@pytest.mark.parametrize("lacking", ["disk", "room"])
def test_without_a_disk_that_has_room_nothing_is_put_aside(lacking: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if lacking == "disk":
        monkeypatch.setattr(module, "on_disk", lambda directory: False)
    else:
        monkeypatch.setattr(module, "_SPARE", 1 << 60)
    setting = Setting("llama", torch.float32)
    stream = setting.stored.stream
    assert stream(setting.tokens, in_memory) is None
    setting.stored.close()
