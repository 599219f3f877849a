"""What is computed in pieces equals the whole: every real vocabulary and model takes more pieces than one."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from proxy_setting import ProxySetting
from tiny import tiny_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tracenas.families import Options, config_family
from tracenas.models.functionals import chunk_sizes, loss, tiles
from tracenas.models.surgery.supernet import Realisation
from tracenas.saliency import sinks
from tracenas.saliency.nirvana import sequence_loss
from tracenas.saliency.products import unit_products
from tracenas.scoring.evaluator import ScoringSettings
from tracenas.scoring.observers import divergence

pytestmark = pytest.mark.parity

VOCABULARY = 257
CHUNKS = [1, 7 * VOCABULARY, 1 << 23]
"""One token at a time, seven, and all of them."""


class Watched:
    """What a watch of the logits was shown."""

    def __init__(self) -> None:
        self.logits_, self.normalisers = [], []  # type: list[Tensor], list[Tensor]
        self.parts: list[int] = []

    def logits(self, part: slice, logits: Tensor, scale: float) -> None:
        self.parts.append(part.start)
        self.logits_.append(logits * scale)

    def normaliser(self, part: slice, lse: Tensor) -> None:
        assert part.start == self.parts[-1]
        self.normalisers.append(lse.clone())


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_the_loss_of_every_token(monkeypatch: pytest.MonkeyPatch, chunk: int, softcap: float | None) -> None:
    monkeypatch.setattr(chunk_sizes, "CHUNK_ELEMENTS", {"cpu": chunk})
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(23, 32, generator=generator).requires_grad_(True)
    weight = torch.randn(VOCABULARY, 32, generator=generator)
    labels = torch.randint(0, VOCABULARY, (23,), generator=generator)
    watched = Watched()
    values = loss.token_nll(hidden, weight, labels, softcap, watched)
    (slope,) = torch.autograd.grad((values * torch.arange(23)).sum(), hidden)
    logits = hidden @ weight.T
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    expected = F.cross_entropy(logits, labels, reduction="none")
    (reference,) = torch.autograd.grad((expected * torch.arange(23)).sum(), hidden)
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(slope, reference, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.cat(watched.logits_), logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.cat(watched.normalisers), logits.logsumexp(-1), rtol=1e-5, atol=1e-5)


class Largest(TorchDispatchMode):
    """The most numbers that a matrix product has had."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.mm.default:
            self.numbers = max(self.numbers, out.numel())
        return out


@pytest.mark.parametrize("words", [1, 64, 256, VOCABULARY, 4096])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tiles_of_logits_make_the_loss_of_whole_rows(
    monkeypatch: pytest.MonkeyPatch, words: int, softcap: float | None, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(tiles, "WORDS", words)
    monkeypatch.setattr(tiles, "ELEMENTS", 7 * words)
    generator = torch.Generator().manual_seed(0)
    hidden = (3 * torch.randn(23, 32, generator=generator)).to(dtype)
    weight = torch.randn(VOCABULARY, 32, generator=generator).to(dtype)
    labels = torch.randint(0, VOCABULARY, (23,), generator=generator)
    with Largest() as largest:
        values = loss.token_nll(hidden, weight, labels, softcap)
    assert largest.numbers <= 7 * max(words, words * words // VOCABULARY)
    rows = loss.token_nll(hidden.requires_grad_(True), weight, labels, softcap)
    assert rows.requires_grad and not values.requires_grad and values.std() > 1
    # in bf16 a logit here and there is on the other side of a tie, by the order of its sum
    torch.testing.assert_close(values, rows.detach(), rtol=1e-6, atol=2e-6 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("word", [-1, VOCABULARY])
def test_a_label_that_is_no_word_is_refused(word: int) -> None:
    with pytest.raises(IndexError):
        loss.token_nll(torch.ones(1, 32), torch.ones(VOCABULARY, 32), torch.tensor([word]))


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("room", [0, 1 << 30], ids=["hidden", "probabilities"])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_the_divergence_of_every_sequence(monkeypatch: pytest.MonkeyPatch, family: str, room: int, chunk: int) -> None:
    """Gemma 2 caps its logits; without room for probabilities the base's logits are computed again."""
    monkeypatch.setattr(chunk_sizes, "CHUNK_ELEMENTS", {"cpu": chunk})
    monkeypatch.setattr(divergence, "PROBABILITY_BYTES", room)
    setting = ProxySetting(family)
    evaluator = setting.evaluator("kl", ScoringSettings(rank=4, micro_batch=2))
    arch = setting.architectures(3)[2]
    found = evaluator.measure(arch).kls
    log_p, log_q = (_log_probabilities(setting, a) for a in (setting.space.base, arch))
    expected = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1).mean(-1)
    assert len(found) == len(setting.tokens) and expected.min() > 1e-3
    torch.testing.assert_close(torch.tensor(found, dtype=torch.float32), expected, rtol=1e-3, atol=1e-5)


def _log_probabilities(setting: ProxySetting, arch: Any) -> Tensor:
    with torch.no_grad(), setting.net.realise(arch, Realisation()) as model:
        logits: Tensor = model(input_ids=setting.tokens, use_cache=False).logits[:, :-1]
    return logits.float().log_softmax(-1)


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_gradients_end_the_same_in_few_rows_and_in_many(
    monkeypatch: pytest.MonkeyPatch, family: str, absolute: bool
) -> None:
    model = tiny_model(family)
    config = model.config.to_dict()
    blocks = config_family(config).blocks(config, Options(channel_quantum=8))
    tokens = torch.randint(1, VOCABULARY, (4, 16), generator=torch.Generator().manual_seed(1))

    def products(rows: int) -> dict[Any, Tensor]:
        monkeypatch.setattr(sinks, "CHUNK_ELEMENTS", {"cpu": rows * 32})
        return unit_products(model, blocks, tokens, 2, sequence_loss, absolute=absolute)

    few, many = products(5), products(1 << 18)
    assert few.keys() == many.keys()
    for key, values in few.items():
        torch.testing.assert_close(values, many[key], rtol=1e-3, atol=1e-7)
        assert values.abs().min() > 0


@pytest.mark.parametrize(
    ("vocabulary", "tokens"), [(512, 8192), (49_152, 85), (65_536, 64), (151_936, 55), (262_144, 32), (1 << 24, 1)]
)
def test_chunks_hold_four_million_logits_or_64_tokens_of_up_to_eight(vocabulary: int, tokens: int) -> None:
    assert chunk_sizes.logit_tokens(vocabulary, "cpu") == tokens
