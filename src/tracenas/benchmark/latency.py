"""Time to the first token, time per further token, and what they cost in memory (TraceNAS Table 8).

Models take turns trial by trial, so that a machine that slows down or speeds up does so for all of them, and a
speed-up is the median of the ratios within a turn.

Shapes: B sequences, P prompt tokens, N generated tokens.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

__all__ = ["Quartiles", "Trial", "TrialSettings", "prompt_ids", "quartiles", "ratios", "run_trial", "take_turns"]

T = TypeVar("T")


@dataclass(frozen=True)
class TrialSettings:
    """What a trial does.

    Args:
        prompt: P, tokens of the prompt.
        new_tokens: N, tokens generated greedily, the first one by the prefill.
        batch_size: B, sequences at once.
        cache: `dynamic` (grows) or `static` (transformers allocates it on first use).
        room: tokens of a static cache; 0: P + N.
    """

    prompt: int
    new_tokens: int
    batch_size: int = 1
    cache: Literal["dynamic", "static"] = "dynamic"
    room: int = 0


@dataclass(frozen=True)
class Trial:
    """One trial of one model.

    Args:
        prefill: seconds from the prompt to the first token.
        decode: seconds for the other N - 1 tokens.
        extra_bytes: memory allocated at the peak beyond what was allocated before; CUDA only, else 0.
    """

    prefill: float
    decode: float
    extra_bytes: int


@dataclass(frozen=True)
class Quartiles:
    """Median and quartiles."""

    median: float
    q1: float
    q3: float

    def to_json(self) -> dict[str, float]:
        """For `--json`."""
        return asdict(self)


def quartiles(values: Sequence[float]) -> Quartiles:
    """Median and quartiles (inclusive) of at least one value."""
    if len(values) == 1:
        return Quartiles(values[0], values[0], values[0])
    q1, middle, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return Quartiles(middle, q1, q3)


def ratios(base: Sequence[float], other: Sequence[float]) -> Quartiles:
    """Speed-up of `other` over `base`: the quartiles of base/other within each turn."""
    return quartiles([b / o for b, o in zip(base, other, strict=True)])


def prompt_ids(settings: TrialSettings, vocabulary: int, seed: int) -> Tensor:
    """A random prompt, int64 [B, P], the same for every model with this vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, vocabulary, (settings.batch_size, settings.prompt), generator=generator)


def run_trial(model: Any, ids_BP: Tensor, settings: TrialSettings) -> Trial:
    """Prefill the prompt and decode greedily, eager PyTorch, the head on the last token only.

    Args:
        model: a causal language model of transformers.
        ids_BP: on the model's device.
    """
    device = ids_BP.device
    cache = _cache(model, settings)
    before = _reset_peak(device)
    with torch.inference_mode():
        clock = _Clock(device)
        output = model(input_ids=ids_BP, past_key_values=cache, use_cache=True, logits_to_keep=1)
        token_B1 = output.logits[:, -1].argmax(dim=-1, keepdim=True)
        prefill = clock.lap()
        for _ in range(settings.new_tokens - 1):
            output = model(input_ids=token_B1, past_key_values=cache, use_cache=True, logits_to_keep=1)
            token_B1 = output.logits[:, -1].argmax(dim=-1, keepdim=True)
        decode = clock.lap()
    extra = torch.cuda.max_memory_allocated(device) - before if device.type == "cuda" else 0
    return Trial(prefill, decode, extra)


def take_turns(
    trials: Sequence[Callable[[], T]], count: int, warmup: int, advance: Callable[[int], None]
) -> list[list[T]]:
    """`count` trials of every model after `warmup` uncounted ones; who begins a turn changes from turn to turn.

    Returns:
        per model, its trials in the order of the turns.
    """
    results: list[list[T]] = [[] for _ in trials]
    for turn in range(warmup + count):
        for offset in range(len(trials)):
            index = (turn + offset) % len(trials)
            result = trials[index]()
            if turn >= warmup:
                results[index].append(result)
            advance(1)
    return results


def _cache(model: Any, settings: TrialSettings) -> Any:
    from transformers import DynamicCache, StaticCache

    if settings.cache == "static":
        room = settings.room or settings.prompt + settings.new_tokens
        return StaticCache(config=model.config, max_cache_len=room)
    return DynamicCache(config=model.config)


def _reset_peak(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


class _Clock:
    """Seconds between laps: events on CUDA, the monotonic clock elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._last = self._mark()

    def _mark(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def lap(self) -> float:
        """Seconds since the last lap, all work on the device done."""
        now = self._mark()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            seconds = float(self._last.elapsed_time(now)) / 1000
        else:
            seconds = now - self._last
        self._last = self._mark()
        return seconds
