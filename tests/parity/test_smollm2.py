"""Scores on a published model against dense masked autograd through transformers: runs where the model is cached."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_score import Setup
from transformers import AutoModelForCausalLM, AutoTokenizer

from tracenas.demo import calibration_path
from tracenas.demo.fetch import SMOLLM2
from tracenas.models.checkpoints.loading import load
from tracenas.models.checkpoints.source import open_source
from tracenas.rundir import cache_directory
from tracenas.space.architecture import Architecture

CACHED = cache_directory() / "models" / SMOLLM2.file
pytestmark = [
    pytest.mark.slow,
    pytest.mark.parity,
    pytest.mark.skipif(
        not CACHED.is_file(), reason=f"no {SMOLLM2.file} in {CACHED.parent}: `tracenas demo --model smollm2` fetches it"
    ),
]
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def smollm2() -> Path:
    """The model as a directory; converted where that has not been done."""
    source = open_source(str(CACHED))
    load(source, device="cpu")
    assert source.path is not None
    return source.path


def _setup(path: Path, length: int) -> Setup:
    model, reference = (
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval().requires_grad_(False) for _ in range(2)
    )
    text = calibration_path().read_text(encoding="utf-8")[: 20 * length]
    return Setup(model, reference, torch.tensor([AutoTokenizer.from_pretrained(path)(text).input_ids[:length]]))


def _architectures() -> list[Architecture]:
    """The base, the uniform architecture at 75 % of the parameters, and three random ones of that size."""
    from tracenas.config import SearchConfig
    from tracenas.pipeline.target import resolve_target

    config = SearchConfig(model=str(CACHED), data="-", params="75%", out="-")
    space = resolve_target(open_source(str(CACHED)), config, params="75%").space
    rng = np.random.default_rng(0)
    found = [space.base, space.uniform(), *(space.sample(rng) for _ in range(3))]
    return [arch for arch in found if arch is not None]


def _close(ours: float, theirs: float) -> bool:
    return abs(ours - theirs) <= TOLERANCE * max(1.0, abs(theirs))


def test_scores_equal_masked_dense_autograd_through_transformers(smollm2: Path) -> None:
    setup, architectures = _setup(smollm2, 64), _architectures()
    assert len(architectures) == 5
    _, base = setup.dense(setup.space.base)
    for arch in architectures:
        score = setup.evaluator.score(arch)
        assert score.reason is None and score.loss is not None
        loss, gradients = setup.dense(arch)
        assert _close(score.loss, loss)
        rho = {(i, name): float(np.corrcoef(g, base[i, name])[0, 1]) for (i, name), g in gradients.items()}
        assert all(_close(score.extra["rho"][name][i], value) for (i, name), value in rho.items())
        assert _close(score.score, sum(_retention(setup, arch, i, name) * value for (i, name), value in rho.items()))


def _retention(setup: Setup, arch: Architecture, index: int, name: str) -> float:
    pairs: Any = zip(setup.blocks[index].sub_blocks, arch.layers[index].kept, strict=True)
    return next(kept / sub.spec.units for sub, (_, kept) in pairs if sub.spec.name == name)
