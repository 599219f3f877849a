"""What this machine manages in under a second of trying: matrix products, memory traffic and attention.

Numbers for an estimate, not a benchmark: the fastest of a few calls each, so other work on the machine hardly
counts.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional

__all__ = ["Rates", "measure_rates", "product_flops"]

_PRODUCT_FLOPS = {"cpu": 2e8, "cuda": 5e11}
_TRAFFIC_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 27}
_ATTENTION_LENGTH = 256
_SQUARE = {"cpu": 512, "cuda": 8192}
_SCHEDULED = Path("/proc/thread-self/schedstat")


@dataclass(frozen=True)
class Rates:
    """Sustained rates of one device.

    Args:
        flops: of a matrix product [tokens, hidden] × [hidden, width], per second.
        thin_flops: of a product with a rank-64 side, per second.
        single_flops, double_flops: of products in float32 and float64.
        bytes: moved by elementwise work, reads and writes, per second.
        score_seconds: forward and backward of causal attention, per head and pair of tokens.
        score_seconds_forward: forward alone.
        device_memory: bytes of a GPU; None of a CPU.
        load: how many times as long all of this took on the CPU, beside what else ran there just then.
    """

    flops: float
    thin_flops: float
    single_flops: float
    double_flops: float
    bytes: float
    score_seconds: float
    score_seconds_forward: float
    device_memory: int | None = None
    load: float = 1.0


def measure_rates(
    device: torch.device, dtype: torch.dtype, *, tokens: int, hidden: int, width: int, head_dim: int, rank: int = 64
) -> Rates:
    """Measure the device with products and attention of a model's shape.

    Args:
        tokens: of a micro-batch; fewer are used where that many would take too long.
        hidden, width: of the MLP's products.
        head_dim: of the attention heads.
        rank: of the thin product.
    """
    before = _scheduled()
    fits = int(_PRODUCT_FLOPS[device.type] / (2.0 * hidden * width))
    rows = max(16, min(tokens, fits))
    x = torch.randn(rows, hidden, device=device, dtype=dtype)
    weight = torch.randn(width, hidden, device=device, dtype=dtype)
    thin = torch.randn(max(1, rank), hidden, device=device, dtype=dtype)
    # Into memory that is there: the first touch of new pages is slow, and in a search happens only now and then.
    wide = torch.empty(rows, width, device=device, dtype=dtype)
    narrow = torch.empty(rows, thin.shape[0], device=device, dtype=dtype)
    product = _seconds(lambda: torch.mm(x, weight.T, out=wide), device, 0.3)
    thin_product = _seconds(lambda: torch.mm(x, thin.T, out=narrow), device, 0.1)
    wider = {number: product_flops(device, number) for number in (torch.float32, torch.float64)}
    a = torch.ones(_TRAFFIC_ELEMENTS[device.type], device=device, dtype=dtype)
    b = torch.empty_like(a)
    traffic = _seconds(lambda: torch.mul(a, 2.0, out=b), device, 0.15)
    forward, both = _attention(device, dtype, min(tokens, _ATTENTION_LENGTH), head_dim)
    return Rates(
        flops=2.0 * rows * hidden * width / product,
        thin_flops=2.0 * rows * hidden * thin.shape[0] / thin_product,
        single_flops=wider[torch.float32],
        double_flops=wider[torch.float64],
        bytes=2.0 * a.numel() * a.element_size() / traffic,
        score_seconds=both,
        score_seconds_forward=forward,
        device_memory=torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None,
        load=1.0 if device.type == "cuda" else _load(before, _scheduled()),
    )


def _scheduled() -> tuple[int, int]:
    """Nanoseconds that this thread has run, and that it has waited for a processor; nothing where no system tells."""
    try:
        ran, waited, *_ = _SCHEDULED.read_text().split()
    except (OSError, ValueError):
        return 0, 0
    return int(ran), int(waited)


def _load(before: tuple[int, int], after: tuple[int, int]) -> float:
    ran, waited = (end - begin for begin, end in zip(before, after, strict=True))
    return (ran + waited) / ran if ran > 0 else 1.0


def product_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second in products of square matrices."""
    side = _SQUARE[device.type]
    a = torch.randn(side, side, device=device, dtype=dtype)
    out = torch.empty_like(a)
    return 2.0 * side**3 / _seconds(lambda: torch.mm(a, a, out=out), device, 0.1)


def _attention(device: torch.device, dtype: torch.dtype, length: int, head_dim: int) -> tuple[float, float]:
    """Seconds per head and pair of tokens of causal attention: forward, and forward with backward."""
    heads = 2
    q, k, v = (torch.randn(1, heads, length, head_dim, device=device, dtype=dtype) for _ in range(3))

    def forward() -> torch.Tensor:
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    def both() -> None:
        forward().backward(v)

    with torch.no_grad():
        alone = _seconds(forward, device, 0.05)
    for tensor in (q, k, v):
        tensor.requires_grad_(True)
    pairs = heads * length * length
    return alone / pairs, _seconds(both, device, 0.15) / pairs


def _seconds(work: Callable[[], object], device: torch.device, budget: float) -> float:
    """Seconds of one call: the fastest of as many as fit into `budget` seconds, after one to warm up."""
    times: list[float] = []
    work()
    _wait(device)
    started = time.perf_counter()
    while len(times) < 9 or (time.perf_counter() - started < budget and len(times) < 100):
        begin = time.perf_counter()
        work()
        _wait(device)
        times.append(time.perf_counter() - begin)
    return min(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
