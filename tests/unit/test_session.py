"""A session's super-network is made once, and everything random in the stages has a stream of its own."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from proxy_setting import draw
from tiny import save_tiny
from transformers import PreTrainedTokenizerFast

from tracenas.commands.study.pool import _within
from tracenas.config import CalibrationConfig
from tracenas.data.tokens import save_tokens
from tracenas.models.checkpoints.source import open_source
from tracenas.models.surgery.supernet import Supernet
from tracenas.pipeline.one_shot import one_shot_architecture
from tracenas.pipeline.opening import open_session
from tracenas.pipeline.reference import reference_pool
from tracenas.pipeline.refit import text
from tracenas.pipeline.scoring import make_evaluator
from tracenas.pipeline.session import Session
from tracenas.pipeline.target import resolve_target

SOURCES = Path(__file__).parents[2] / "src" / "tracenas"


@pytest.fixture
def session(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Session:
    source = open_source(str(save_tiny(tmp_path / "model", "llama", tokenizer)))
    save_tokens(tmp_path / "t.safetensors", draw(4, 16, 0), {})
    config = CalibrationConfig(threads=1)
    target = resolve_target(source, config, params="70%")
    return open_session(target, config, data=str(tmp_path / "t.safetensors"))


def test_the_super_network_is_made_once(session: Session) -> None:
    before = {name: p.clone() for name, p in session.loaded.model.named_parameters()}
    net = session.supernet()
    permuted = {name: p.clone() for name, p in net.model.named_parameters()}
    assert any(not torch.equal(permuted[name], p) for name, p in before.items())
    shorter = replace(session, tokens=session.tokens[:2])
    assert session.supernet() is net and shorter.supernet() is net
    make_evaluator(session, "loss", 4)
    assert all(torch.equal(p, permuted[name]) for name, p in net.model.named_parameters())
    with pytest.raises(ValueError, match="restore that first"):
        Supernet(net.model, net.blocks, net.ordering)
    with pytest.raises(ValueError, match="measured on the base"):
        one_shot_architecture(session, "magnitude")
    net.restore()
    assert all(torch.equal(p, before[name]) for name, p in session.loaded.model.named_parameters())
    with pytest.raises(ValueError, match="already"):
        net.restore()
    assert session.supernet() is not net
    assert all(torch.equal(p, permuted[name]) for name, p in session.loaded.model.named_parameters())


def test_a_combinations_pool_and_a_studys_are_different_architectures(session: Session) -> None:
    reference = {arch.id for arch in reference_pool(session.space, 0)[1:]}
    study = [d.arch.id for d in _within(session.space, 20, 0)[1:]]
    assert len(reference.intersection(study)) < len(study) / 2


def test_no_two_stages_draw_from_the_same_stream() -> None:
    paths = [path for room in ("commands", "pipeline", "studies") for path in (SOURCES / room).rglob("*.py")]
    seeds = [n for p in paths for n in re.findall(r"\b0x[0-9A-F]{8}\b", p.read_text()) if n != "0x7FFFFFFF"]
    assert len(seeds) > 6 and len(seeds) == len(set(seeds))


@pytest.mark.parametrize(
    ("fitted", "further", "samples", "stay", "held"),
    [(12, 0, None, 9, 3), (12, 1, None, 10, 3), (12, 16, None, 12, 16), (100, 0, None, 84, 16), (3, 0, None, 2, 1),
     (1, 0, None, 1, 0), (12, 0, 12, 12, 0), (12, 2, 12, 12, 2)],
)  # fmt: skip
def test_of_scarce_text_every_fourth_sequence_is_held_out(
    fitted: int, further: int, samples: int | None, stay: int, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = draw(fitted + further, 8, 0)
    monkeypatch.setattr(text, "_further", lambda *_, **__: every[fitted:])
    session = SimpleNamespace(tokens=every[:0], refit=SimpleNamespace(samples=samples))
    kept, aside = text._divided(session, every[:fitted])  # type: ignore[arg-type]
    assert len(kept) == stay and (held == 0) == (aside is None)
    if aside is not None:
        assert len(aside) == held and torch.equal(torch.cat([kept, aside]), every)
