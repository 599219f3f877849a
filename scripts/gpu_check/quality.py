"""Whether what comes of the device is right: scores, searches, refits, written models, steps of recovery."""

import math
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpu_check.machine import Found, Machine, Made, at_most, described, made, sampled, scorer_of
from tracenas.demo import calibration_path, heldout_path, model_path
from tracenas.journal import Journal
from tracenas.models.checkpoints.loading import load
from tracenas.models.checkpoints.writing import save_pruned
from tracenas.models.functionals.perplexity import perplexity
from tracenas.models.surgery.ordering import Ordering
from tracenas.models.surgery.private import private_weights
from tracenas.models.surgery.supernet import Supernet
from tracenas.recovery.lora import add_adapters
from tracenas.recovery.short import ShortSettings, short_recovery
from tracenas.refits.gram import gram_matrices
from tracenas.refits.ridge import FittedRealisation, in_base_order, ridge_outputs
from tracenas.saliency.allocation import Ranked
from tracenas.saliency.allocation.solver import predicted_rises
from tracenas.saliency.fisher import as_saliency, label_generator
from tracenas.saliency.sensitivity.measuring import measure_sensitivity
from tracenas.saliency.starts import DEFAULT_STARTS, STARTS
from tracenas.saliency.wanda import saliency
from tracenas.space.architecture import Architecture
from tracenas.strategies import STRATEGIES, Prior, SearchSettings, run_search

__all__ = ["parity", "recovery", "refit", "search"]

_RIDGE = 0.01


def parity(machine: Machine) -> Found:
    """Scores of the same candidates on the CPU in fp32 and on the device, in fp32 and in bf16."""
    torch.backends.cuda.matmul.allow_tf32 = False
    text = _text(calibration_path(), 8, 128)
    reference = _demo("fp32", "cpu")
    order = Ordering.from_saliency(reference.blocks, saliency(reference.model, reference.blocks, text, 4)[0])
    candidates = [reference.uniform, *sampled(reference, 3)]
    scores: dict[str, dict[str, list[float]]] = {}
    there = str(machine.device)
    for label, device, dtype in (("cpu", "cpu", "fp32"), ("fp32", there, "fp32"), ("bf16", there, "bf16")):
        subject = _demo(dtype, device)
        net = Supernet(subject.model, subject.blocks, order)
        for proxy in ("phi", "loss_compensated"):
            scorer = scorer_of(subject, net, text, proxy)
            scores.setdefault(proxy, {})[label] = [scorer.score(arch).score for arch in candidates]
    limits = {("phi", "fp32"): 2e-3, ("phi", "bf16"): 0.1}
    limits |= {("loss_compensated", "fp32"): 1e-3, ("loss_compensated", "bf16"): 0.05}
    checks = []
    for (proxy, label), limit in limits.items():
        pairs = zip(scores[proxy]["cpu"], scores[proxy][label], strict=True)
        apart = max(abs(a - b) for a, b in pairs)
        checks.append(at_most(f"{proxy} in {label}: largest difference from the CPU's fp32", apart, limit))
    return {"scores": scores}, checks


def search(machine: Machine) -> Found:
    """One search by Φ as published, and one as by default, on the demo model; each twice."""
    text = _text(calibration_path(), 8, 128).to(machine.device)
    found: dict[str, Any] = {}
    checks = []
    for proxy in ("phi", "loss_compensated"):
        first, second = found[proxy] = [_searched(machine, proxy, text) for _ in range(2)]
        checks += [
            at_most(f"{proxy}: candidates that failed", first["failed"], 0),
            at_most(f"{proxy}: uniform beyond the best", first["uniform"] - first["score"], 1e-6),
            at_most(f"{proxy}: best scores of two runs apart", abs(first["score"] - second["score"]), 5e-2),
        ]
    return found, checks


def _searched(machine: Machine, proxy: str, text: Tensor) -> dict[str, Any]:
    subject = _demo("fp32", str(machine.device))
    population, iterations = machine.sized((12, 6), (4, 2))
    settings = SearchSettings(population, 2, iterations, init="uniform")
    if proxy == "phi":
        units, prior, starts = saliency(subject.model, subject.blocks, text, 4)[0], None, []
    else:
        units, prior, starts = _by_table(subject, text)
        settings = replace(settings, init="given")
    scorer = scorer_of(subject, subject.ordered_by(units), text, proxy)
    strategy = STRATEGIES.get("evolution" if proxy == "phi" else "guided")
    plan = strategy(subject.space, settings, prior=prior, starts=starts)
    with tempfile.TemporaryDirectory() as directory:
        journal = Journal(Path(directory) / "journal.jsonl")
        result, seconds, peak = machine.timed(lambda: run_search(plan, scorer, journal))
    return {
        "score": result.score,
        "uniform": scorer.score(subject.uniform).score,
        "evaluations": len(result.records),
        "failed": sum(record["status"] != "ok" for record in result.records),
        "seconds": seconds,
        "peak_bytes": peak,
    }


def _by_table(subject: Made, text: Tensor) -> tuple[Any, Prior, list[Architecture]]:
    """The order of units, the prior and the starts that a sensitivity table gives."""
    table = measure_sensitivity(subject.model, subject.blocks, text, 4, label_generator(text))
    units, importance = as_saliency(table)
    groups = {(i, s.spec.name): s.groups for i, block in enumerate(subject.blocks) for s in block.sub_blocks}
    ranked = Ranked(subject.space, {key: u.numpy() for key, u in units.items()}, groups, importance)
    ones = [[1.0] * len(layer.sub_blocks) for layer in subject.space.layers]
    starts = [STARTS.get(name)(ranked, None).architecture for name in DEFAULT_STARTS]
    return units, Prior(ones, rises=predicted_rises(ranked)), starts


def refit(machine: Machine) -> Found:
    """Refit, prune, reload: the refit helps on held-out text, and the written model has the candidate's loss."""
    text = _text(calibration_path(), 32, 128).to(machine.device)
    held = _text(heldout_path(), 16, 128).to(machine.device)
    subject = _demo("fp32", str(machine.device))
    net, arch = subject.ordered_by(saliency(subject.model, subject.blocks, text, 4)[0]), subject.uniform
    with net.realise(arch) as model:
        plain = perplexity(model, held, 4).nll
    fitted, seconds, peak = machine.timed(
        lambda: ridge_outputs(net, arch, gram_matrices(subject.model, subject.blocks, text, 4), [_RIDGE])[_RIDGE]
    )
    with net.realise(arch, FittedRealisation(fitted)) as model:
        refitted = perplexity(model, held, 4).nll
    kept, outputs = net.ordering.kept(subject.blocks, arch), in_base_order(net, arch, fitted)
    net.restore()
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "pruned"
        save_pruned(
            subject.model, None, subject.family, subject.blocks, kept, out, outputs=outputs, dtype=torch.float32
        )
        reloaded = load(str(out), device=str(machine.device), dtype="fp32").model
        written = perplexity(reloaded, held, 4).nll
    numbers = {"plain": plain, "refitted": refitted, "written": written, "seconds": seconds, "peak_bytes": peak}
    return numbers, [
        at_most("refitted loss over the plain cut's", refitted - plain, 0.0),
        at_most("written model's loss apart from the candidate's", abs(written - refitted), 1e-4),
    ]


def recovery(machine: Machine) -> Found:
    """Steps of recovery on one batch, which any training must learn: all weights of a candidate, and LoRA."""
    subject = made(machine, "smollm2-135m", torch.bfloat16)
    steps, (batch, length) = machine.sized(30, 4), machine.sized((8, 512), (2, 32))
    batches = [machine.tokens(subject.model, batch, length)] * steps
    net, found = subject.as_it_is(), {}
    with net.realise(subject.uniform) as model, private_weights(model) as weights:
        found["all weights"] = _trained(machine, model, weights, batches, 3e-4)
    net.restore()
    adapted = add_adapters(subject.model, rank=8, alpha=16, dropout=0.0, seed=0)
    adapters = [p for p in adapted.parameters() if p.requires_grad]
    found["lora"] = _trained(machine, adapted.get_base_model(), adapters, batches, 3e-3)
    checks = [at_most(f"{how}: loss after less before", f["last"] - f["first"], -1e-3) for how, f in found.items()]
    return found, checks


def _trained(
    machine: Machine, model: Any, weights: Sequence[Any], batches: Sequence[Tensor], rate: float
) -> dict[str, Any]:
    losses: list[float] = []
    settings = ShortSettings(learning_rate=rate, micro_batch=len(batches[0]))

    def train() -> object:
        marks, told = [len(batches)], lambda _, loss: losses.append(loss)
        return short_recovery(model, weights, batches, marks, lambda: math.nan, settings, told)

    _, seconds, peak = machine.timed(train)
    tokens = sum(b.numel() for b in batches) / seconds
    return {"first": losses[0], "last": losses[-1], "tokens_per_second": tokens, "peak_bytes": peak}


def _demo(dtype: str, device: str) -> Made:
    """The package's model."""
    return described("demo", load(str(model_path()), device=device, dtype=dtype).model, 0.6)


def _text(path: Path, count: int, length: int) -> Tensor:
    """The first windows of a text, int64 [count, length]."""
    tokenizer = load(str(model_path()), device="cpu", dtype="fp32").tokenizer
    text = path.read_text(encoding="utf-8")[: 16 * count * length]
    ids = tokenizer(text, verbose=False)["input_ids"][: count * length]
    return torch.tensor(ids).reshape(count, length)
