"""Compensation: cost of a compensated candidate against a plain one, what it gains, and what it would cost at 7B.

    python benchmarks/compensation.py MODEL --data TEXT --held-out TEXT [--params 60%] [--rounds 5] [--out FILE]

`cost`: evaluations of `loss_compensated` against `loss`, and of `phi_compensated` against `phi`, on random candidates
that neither has seen, interleaved. `gain`: held-out loss of the uniform architecture, by number of calibration
sequences and by ridge. `estimate`: floating-point operations and memory on Llama 2 7B's shapes.
"""

import argparse
import itertools
import statistics
import time
from typing import Any

import numpy as np
import torch
from machine import facts, interleaved, publish, ratio
from torch import Tensor

from tracenas.data.calibration import calibration
from tracenas.data.encoding import TextEncoding
from tracenas.data.further import further_calibration
from tracenas.data.held_out import windows
from tracenas.data.windows import added_bos
from tracenas.families import Options, config_family
from tracenas.models.checkpoints.loading import LoadedModel, load
from tracenas.models.functionals.perplexity import perplexity
from tracenas.models.surgery.ordering import Ordering
from tracenas.models.surgery.supernet import Supernet
from tracenas.proxies import PROXIES
from tracenas.refits.aim import Aim
from tracenas.refits.costs import refit_costs
from tracenas.refits.gram import gram_matrices
from tracenas.refits.realisation import CompensatedRealisation
from tracenas.refits.ridge import FittedRealisation, ridge_outputs
from tracenas.refits.sequential import SequentialFit
from tracenas.saliency.wanda import saliency
from tracenas.scoring.evaluator import Evaluator, ScoringSettings
from tracenas.space.constraints import Budget, parse_size
from tracenas.space.search_space import SearchSpace

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
LLAMA_2_7B: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}


class Bench:
    """A model as super-network, scoring text, compensation text and held-out text."""

    def __init__(self, args: argparse.Namespace) -> None:
        loaded: LoadedModel = load(args.model, device=args.device, dtype="fp32")
        eos, positions = loaded.source.config.get("eos_token_id"), loaded.source.positions
        length = min(args.seq_len, positions)
        self.batch = max(1, 4096 // length)
        encoding = TextEncoding(loaded.tokenizer, eos, added_bos(loaded.tokenizer))
        self.scored = calibration(args.data, encoding, samples=16, seq_len=length)
        self.fitted = further_calibration(args.data, encoding, reference=self.scored, samples=max(args.sequences))
        self.held = windows(args.held_out, encoding, length, limit=args.windows)
        blocks = loaded.blocks()
        free = loaded.source.space(Options())
        limit = parse_size(args.params, free.parameters(free.base))
        self.space: SearchSpace = loaded.source.space(Options(), budget=Budget(limit, 0.01))
        ordering = Ordering.from_saliency(blocks, saliency(loaded.model, blocks, self.scored, self.batch)[0])
        self.net = Supernet(loaded.model, blocks, ordering)

    def grams(self, tokens: Tensor) -> Any:
        """Streamed statistics."""
        return gram_matrices(self.net.model, self.net.blocks, tokens, self.batch)

    def loss(self, arch: Any, how: Any = None) -> float:
        """Held-out loss, nats per token."""
        with self.net.realise(arch, how) as model:
            return perplexity(model, self.held, self.batch).nll


def cost(bench: Bench, rounds: int, sequences: int) -> dict[str, Any]:
    """Seconds per candidate, plain and compensated; no candidate is met twice by a realisation."""
    how = CompensatedRealisation(bench.net, bench.grams(bench.fitted[:sequences]), 0.01)
    rng = np.random.default_rng(0)
    drawn = (arch for arch in iter(lambda: bench.space.sample(rng), object()) if arch is not None)
    out: dict[str, Any] = {}
    for name in ("loss", "phi"):
        archs = list(itertools.islice(drawn, rounds + 1))
        contestants = {}
        for label, realisation in ((name, None), (f"{name}_compensated", how)):
            evaluator = Evaluator(
                bench.net,
                bench.space,
                bench.scored,
                PROXIES.get(label),
                ScoringSettings(64, 0, bench.batch),
                realisation,
            )
            queue = iter(archs)
            contestants[label] = lambda evaluator=evaluator, queue=queue: evaluator.score(next(queue))
        seconds = interleaved(contestants, rounds)
        out[name] = {
            "median_seconds": {k: round(statistics.median(v), 4) for k, v in seconds.items()},
            "compensated / plain": round(ratio(seconds[f"{name}_compensated"], seconds[name]), 3),
        }
    out["factor_bytes"], out["memo_bytes"] = how.factor_bytes, how.memo_used
    return out


def gain(bench: Bench, sequences: list[int]) -> dict[str, Any]:
    """Held-out loss of the uniform architecture: dense, pruned, and compensated in three ways."""
    arch = bench.space.uniform()
    assert arch is not None
    dense, pruned = bench.loss(bench.space.base), bench.loss(arch)
    rows = []
    for count, strength in itertools.product(sequences, RIDGES):
        tokens = bench.fitted[:count]
        started = time.perf_counter()
        ridge = ridge_outputs(bench.net, arch, bench.grams(tokens), [strength])[strength]
        middle = time.perf_counter()
        stream = SequentialFit(bench.net, arch, tokens, bench.batch, [Aim(strength)]).advance()[Aim(strength)]
        ended = time.perf_counter()
        local = Aim(strength, drift=0.0)
        output = SequentialFit(bench.net, arch, tokens, bench.batch, [local]).advance()[local]
        losses = {"ridge": ridge, "sequential": stream, "sequential, sub-block target": output}
        row: dict[str, Any] = {"sequences": count, "tokens": tokens.numel(), "ridge_strength": strength}
        row |= {k: round(bench.loss(arch, FittedRealisation(v)), 4) for k, v in losses.items()}
        row["gap_closed"] = {k: round((pruned - row[k]) / (pruned - dense), 3) for k in losses}
        row["seconds"] = {"ridge": round(middle - started, 2), "sequential": round(ended - middle, 2)}
        rows.append(row)
    forward = min(_forward_seconds(bench, max(sequences)) for _ in range(2))
    return {
        "architecture": arch.to_json(),
        "params": round(bench.space.parameters(arch) / bench.space.parameters(bench.space.base), 4),
        "dense": round(dense, 4),
        "pruned": round(pruned, 4),
        "forward_seconds": {"sequences": max(sequences), "seconds": round(forward, 2)},
        "rows": rows,
    }


def _forward_seconds(bench: Bench, count: int) -> float:
    from tracenas.models.functionals.loss import hidden_states

    started = time.perf_counter()
    with torch.no_grad():
        for batch in bench.fitted[:count].split(bench.batch):
            hidden_states(bench.net.model, batch)
    return time.perf_counter() - started


def estimate(tokens: int) -> dict[str, Any]:
    """Operations, bytes and minutes on Llama 2 7B's shapes at 60 % of every width."""
    family = config_family(LLAMA_2_7B)
    blocks = family.blocks(LLAMA_2_7B, Options())
    space = SearchSpace(tuple(b.spec for b in blocks), family.outside(LLAMA_2_7B))
    arch = space.build([[s.spec.round(0.6 * s.spec.units) for s in b.sub_blocks] for b in blocks])
    return refit_costs(blocks, arch, tokens).to_json()


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--held-out", required=True)
    parser.add_argument("--params", default="60%")
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--sequences", type=int, nargs="+", default=[8, 16, 48, 128])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    bench = Bench(args)
    middle = sorted(args.sequences)[len(args.sequences) // 2]
    result = {
        "benchmark": "compensation",
        "machine": facts(),
        "cost": cost(bench, args.rounds, middle),
        "gain": gain(bench, args.sequences),
        "estimate, Llama 2 7B, 48 x 2048 tokens": estimate(48 * 2048),
    }
    publish(result, args.out)


if __name__ == "__main__":
    main()
