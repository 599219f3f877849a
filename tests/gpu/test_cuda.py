"""CUDA: the same scores as on the CPU in fp32, close in bf16, and no growth of memory."""

import pytest
import torch
from tiny import tiny_model

from tracenas.families import Options, config_family
from tracenas.models.surgery.ordering import Ordering
from tracenas.models.surgery.supernet import Supernet
from tracenas.proxies import PROXIES
from tracenas.saliency.wanda import saliency
from tracenas.scoring.evaluator import Evaluator, ScoringSettings
from tracenas.space.search_space import SearchSpace

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def evaluator_on(device: str, dtype: torch.dtype, ordering: Ordering | None = None) -> tuple[Evaluator, Ordering]:
    model = tiny_model("qwen2").to(device=device, dtype=dtype)
    config = model.config.to_dict()
    blocks = config_family(config).blocks(config, Options())
    tokens = torch.randint(1, 257, (4, 48), generator=torch.Generator().manual_seed(0)).to(device)
    ordering = ordering or Ordering.from_saliency(blocks, saliency(model, blocks, tokens, 2)[0])
    space = SearchSpace(tuple(b.spec for b in blocks), config_family(config).outside(config))
    return Evaluator(
        Supernet(model, blocks, ordering), space, tokens, PROXIES.get("phi"), ScoringSettings(8, 0, 2)
    ), ordering


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 0.2)])
def test_scores_agree_with_the_cpu(dtype: torch.dtype, tolerance: float) -> None:
    cpu, ordering = evaluator_on("cpu", torch.float32)
    cuda, _ = evaluator_on("cuda", dtype, ordering)
    for counts in ([[4, 96]] * 4, [[2, 64], [0, 0], [4, 32], [2, 96]]):
        arch = cpu.space.build(counts)
        assert cuda.score(arch).score == pytest.approx(cpu.score(arch).score, abs=tolerance)


def test_memory_does_not_grow() -> None:
    cuda, _ = evaluator_on("cuda", torch.bfloat16)
    arch = cuda.space.build([[2, 64]] * 4)
    cuda.score(arch)
    before = torch.cuda.memory_allocated()
    for _ in range(50):
        cuda.score(arch)
    assert torch.cuda.memory_allocated() <= before
