"""The machine that is checked, and models made there: shapes of published ones with random weights."""

import math
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import transformers
from torch import Tensor

from tracenas.families import Block, Family, Options, config_family, present
from tracenas.models.surgery.ordering import Ordering
from tracenas.models.surgery.supernet import Supernet
from tracenas.proxies import PROXIES
from tracenas.refits.gram import gram_matrices
from tracenas.refits.realisation import CompensatedRealisation
from tracenas.scoring.evaluator import Evaluator, ScoringSettings
from tracenas.space.architecture import Architecture
from tracenas.space.constraints import Budget
from tracenas.space.search_space import SearchSpace

T = TypeVar("T")
Found = tuple[dict[str, Any], list[dict[str, Any]]]
"""What a part measured, and its checks."""

SHAPES: dict[str, dict[str, int]] = {
    "smollm2-135m": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
    },
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
}
_SHRUNK = {
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
}


@dataclass(frozen=True)
class Machine:
    """Where the check runs."""

    device: torch.device

    @property
    def shrunk(self) -> bool:
        """Whether models and texts are small, as without a GPU."""
        return self.device.type == "cpu"

    def facts(self) -> dict[str, Any]:
        """What it is, in every file."""
        facts: dict[str, Any] = {
            "device": "cpu",
            "shrunk": self.shrunk,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        }
        if self.device.type == "cuda":
            about = torch.cuda.get_device_properties(self.device)
            facts |= {"device": about.name, "memory_gib": about.total_memory / 2**30, "cuda": torch.version.cuda}
        return facts

    def sized(self, full: T, small: T) -> T:
        """What is of the one size on a GPU, and of the other without."""
        return small if self.shrunk else full

    def timed(self, work: Callable[[], T]) -> tuple[T, float, int]:
        """What comes of it, its seconds, and the bytes on the device at the peak (0 without a GPU)."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        result = work()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
        return result, seconds, torch.cuda.max_memory_allocated() if self.device.type == "cuda" else 0

    def tokens(self, model: Any, count: int, length: int, seed: int = 0) -> Tensor:
        """Token ids at random, int64 [count, length] on the device."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(1, model.config.vocab_size, (count, length), generator=generator).to(self.device)


@dataclass(frozen=True)
class Made:
    """A model with random weights, and what may be cut of it."""

    name: str
    model: Any
    family: Family
    blocks: tuple[Block, ...]
    space: SearchSpace

    @property
    def uniform(self) -> Architecture:
        """The architecture of equal ratios within the space."""
        arch = self.space.uniform()
        assert arch is not None
        return arch

    def ordered_by(self, saliency: Any) -> Supernet:
        """The super-network of this order."""
        return Supernet(self.model, self.blocks, Ordering.from_saliency(self.blocks, saliency))

    def as_it_is(self) -> Supernet:
        """The super-network whose units stay where they are."""
        return self.ordered_by({k: torch.zeros(s.spec.units, dtype=torch.float64) for k, s in present(self.blocks)})


def made(machine: Machine, name: str, dtype: torch.dtype, *, share: float = 0.6) -> Made:
    """A Llama of a shape, the same weights at every call on a device, with the space below a share of its size."""
    shape = machine.sized(SHAPES[name], _SHRUNK)
    config = transformers.LlamaConfig(**shape, max_position_embeddings=4096, tie_word_embeddings=False)
    torch.manual_seed(0)
    with torch.device(machine.device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    return described(name, model.eval().requires_grad_(False), share)


def described(name: str, model: Any, share: float) -> Made:
    """A model and the space below a share of its size."""
    config = model.config.to_dict()
    family = config_family(config)
    blocks = family.blocks(config, Options())
    layers, outside = tuple(block.spec for block in blocks), family.outside(config)
    whole = SearchSpace(layers, outside)
    limit = int(share * whole.parameters(whole.base))
    return Made(name, model, family, blocks, SearchSpace(layers, outside, Budget(limit, 0.02)))


def at_most(name: str, value: float, limit: float) -> dict[str, Any]:
    """The check that a value is at most so large."""
    return {"name": name, "value": value, "at_most": limit, "ok": bool(math.isfinite(value) and value <= limit)}


def sampled(subject: Made, count: int) -> list[Architecture]:
    """Architectures at random."""
    rng = np.random.default_rng(7)
    return [arch for _ in range(count) if (arch := subject.space.sample(rng)) is not None]


def scorer_of(subject: Made, net: Supernet, tokens: Tensor, proxy: str, micro_batch: int = 4) -> Evaluator:
    """Scores candidates; a refit's statistics are those of the same tokens."""
    here, how = tokens.to(net.device), None
    if "compensated" in PROXIES.get(proxy).needs:
        how = CompensatedRealisation(net, gram_matrices(subject.model, subject.blocks, here, micro_batch), 0.01)
    return Evaluator(net, subject.space, here, PROXIES.get(proxy), ScoringSettings(16, 0, micro_batch), how)
