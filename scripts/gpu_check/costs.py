"""What the device takes: a latency table, and the memory and time of an 8B model's candidate."""

from typing import Any

import torch
import transformers
from torch import Tensor

from gpu_check.machine import Found, Machine, Made, at_most, made, sampled, scorer_of
from tracenas.benchmark.latency_table import LatencyTable, Point
from tracenas.benchmark.torch_turns import TorchTurns
from tracenas.benchmark.width_latency import WidthLatencies, checked
from tracenas.models.functionals.perplexity import perplexity

__all__ = ["candidate", "latency"]

_GIB = 2**30


def latency(machine: Machine) -> Found:
    """A latency table of SmolLM2's shape, and how far whole architectures are from its sums."""
    subject = made(machine, "smollm2-135m", torch.bfloat16, share=0.7)
    points = [Point(1, *machine.sized((512, 512), (16, 16)))]
    turns = TorchTurns(
        subject.model, subject.blocks, subject.space, points, turns=machine.sized(3, 1), new_tokens=8, seed=0
    )
    widths = WidthLatencies(subject.space, points, lambda archs: turns(archs, lambda _: None))
    (outside, kinds, spread), seconds, _ = machine.timed(widths.measure)
    table = LatencyTable("torch", machine.facts(), {"name": subject.name}, tuple(points), outside, kinds, spread, {})
    whole = checked(
        widths,
        lambda arch, point: table.predict(subject.space.layers, arch, point),
        sampled(subject, machine.sized(4, 2)),
    )
    numbers = {
        "seconds": seconds,
        "outside": outside,
        "kinds": [{"units": k.units, "widths": k.widths, "latency": k.latency} for k in kinds],
        "spread": spread,
        "checked": whole,
    }
    slots = sum(spec.units > 0 for layer in subject.space.layers for spec in layer.sub_blocks)
    checks = [at_most("sub-blocks without a latency", slots - sum(len(k.slots) for k in kinds), 0)]
    if not machine.shrunk:  # of a tiny model all is noise
        checks.append(at_most("median error of whole architectures", whole["median_error"], 0.15))
    return numbers, checks


def candidate(machine: Machine) -> Found:
    """An 8B model's candidate by three proxies, against a dense model of the sizes that it is cut to."""
    subject = made(machine, "8b", torch.bfloat16)
    tokens = machine.tokens(subject.model, *machine.sized((8, 1024), (2, 32)))
    weights = sum(p.numel() * p.element_size() for p in subject.model.parameters())
    rows = {proxy: _scored(machine, subject, tokens, proxy) for proxy in ("loss", "phi", "loss_compensated")}
    subject.model.to("meta")
    floor_seconds, floor_peak, floor_weights = _floor(machine, subject, tokens)
    numbers = {
        "parameters": subject.space.parameters(subject.space.base),
        "kept": subject.space.parameters(subject.uniform),
        "weight_bytes": weights,
        "proxies": rows,
        "floor": {"seconds": floor_seconds, "peak_bytes": floor_peak, "weight_bytes": floor_weights},
    }
    checks = [at_most("candidates without a score", sum(row["score"] is None for row in rows.values()), 0)]
    if not machine.shrunk:
        beyond = rows["loss"]["peak_bytes"] - weights - (floor_peak - floor_weights)
        checks += [
            at_most("plain candidate: seconds over the dense model's", rows["loss"]["seconds"] / floor_seconds, 1.5),
            at_most("plain candidate: GiB beyond the weights and the dense model's activations", beyond / _GIB, 2.0),
            at_most("refitted candidate: GiB on the device", rows["loss_compensated"]["peak_bytes"] / _GIB, 24.0),
            at_most("phi: GiB on the device", rows["phi"]["peak_bytes"] / _GIB, 24.0),
        ]
    return numbers, checks


def _scored(machine: Machine, subject: Made, tokens: Tensor, proxy: str) -> dict[str, Any]:
    """What a candidate's score takes, and what is made once before it."""
    net, arch = subject.as_it_is(), subject.uniform
    scorer, prepared, most = machine.timed(lambda: scorer_of(subject, net, tokens, proxy, machine.sized(4, 1)))
    scorer.score(arch)  # what the first candidate makes once
    if proxy == "loss_compensated":
        scorer.realisation.forget(0)  # of other candidates other widths would be fitted
    score, seconds, peak = machine.timed(lambda: scorer.score(arch))
    net.restore()
    return {
        "score": score.score if score.ok else None,
        "reason": score.reason,
        "seconds": seconds,
        "peak_bytes": peak,
        "prepared": {"seconds": prepared, "peak_bytes": most},
    }


def _floor(machine: Machine, subject: Made, tokens: Tensor) -> tuple[float, int, int]:
    """Seconds and peak bytes of the same pass through a dense model of the candidate's sizes, and its weights' bytes.

    The widths are those of most blocks: uniform candidates have one left over.
    """
    counts = [count for count in subject.space.counts(subject.uniform) if all(count)]
    heads, channels = max(counts, key=counts.count)
    whole = subject.model.config
    config = transformers.LlamaConfig(
        hidden_size=whole.hidden_size,
        head_dim=whole.hidden_size // whole.num_attention_heads,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads * whole.num_key_value_heads // whole.num_attention_heads),
        intermediate_size=channels,
        num_hidden_layers=len(counts),
        vocab_size=whole.vocab_size,
        max_position_embeddings=whole.max_position_embeddings,
        tie_word_embeddings=False,
    )
    with torch.device(machine.device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.eval().requires_grad_(False)
    size = machine.sized(4, 1)
    perplexity(model, tokens, size)
    _, seconds, peak = machine.timed(lambda: perplexity(model, tokens, size))
    return seconds, peak, sum(p.numel() * p.element_size() for p in model.parameters())
