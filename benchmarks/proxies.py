"""Cost of one candidate by what it is scored with, as a ratio to Φ alone; interleaved, medians, one run.

    python benchmarks/proxies.py --model DIR --data TEXT [--rounds 7] [--out FILE]
    python benchmarks/proxies.py --random --tokens 1024 [--rounds 5] [--out FILE]

`shared`: all proxies of the plain pass and its trace (no weight gradients). `gradients`: with those that need weight
gradients. `alone`: every proxy by itself. Candidates are drawn from the budget's space; a round's contestants all get
the same new one. `--random`: the 110M Llama of candidate.py, random tokens and weights.
"""

import argparse
import statistics
from typing import Any

import numpy as np
import torch
from candidate import model_of
from machine import facts, interleaved, publish, ratio

from tracenas.data.calibration import calibration
from tracenas.data.encoding import TextEncoding
from tracenas.data.further import further_calibration
from tracenas.data.windows import added_bos
from tracenas.families import Options, config_family
from tracenas.models.checkpoints.loading import load
from tracenas.models.surgery.ordering import Ordering
from tracenas.models.surgery.supernet import Supernet
from tracenas.proxies import PROXIES
from tracenas.refits.gram import gram_matrices
from tracenas.refits.realisation import CompensatedRealisation
from tracenas.saliency.fisher import label_generator
from tracenas.saliency.sensitivity.measuring import measure_sensitivity
from tracenas.saliency.wanda import saliency
from tracenas.scoring.evaluator import Evaluator, ScoringSettings
from tracenas.scoring.panel import Panel
from tracenas.space.constraints import Budget
from tracenas.space.search_space import SearchSpace

RANK = 64


class Bench:
    """A super-network, its space within 60 % of the parameters, scored and compensation tokens."""

    def __init__(self, args: argparse.Namespace) -> None:
        if args.random:
            torch.manual_seed(0)
            model = model_of(12, 2048)
            config = model.config.to_dict()
            length = min(args.seq_len, args.tokens)
            self.tokens = torch.randint(0, 32000, (args.tokens // length, length))
            fitted = torch.randint(0, 32000, (2304 // length, length))  # enough for the widest projection's moments
        else:
            loaded = load(args.model, device="cpu", dtype="fp32")
            model, config = loaded.model, loaded.source.config
            length, eos = min(args.seq_len, loaded.source.positions), config.get("eos_token_id")
            count = max(2, args.tokens // length)
            encoding = TextEncoding(loaded.tokenizer, eos, added_bos(loaded.tokenizer))
            self.tokens = calibration(args.data, encoding, samples=count, seq_len=length)
            fitted = further_calibration(args.data, encoding, reference=self.tokens, samples=24)
        self.batch = max(1, 4096 // length)
        family = config_family(config)
        blocks = family.blocks(config, Options())
        specs, outside = tuple(b.spec for b in blocks), family.outside(config)
        free = SearchSpace(specs, outside)
        self.space = SearchSpace(specs, outside, Budget(int(0.6 * free.parameters(free.base)), 0.01))
        ordering = Ordering.from_saliency(blocks, saliency(model, blocks, self.tokens, self.batch)[0])
        self.table = measure_sensitivity(model, blocks, fitted, self.batch, label_generator(fitted))
        self.net = Supernet(model, blocks, ordering)
        self.how = CompensatedRealisation(self.net, gram_matrices(model, blocks, fitted, self.batch), 0.01)
        self.settings = ScoringSettings(RANK, 0, self.batch)
        self.kind = {"layers": len(blocks), "parameters": free.parameters(free.base)}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Medians and ratios."""
    bench = Bench(args)
    proxies = {name: PROXIES.get(name) for name in PROXIES}
    plain = [p for p in proxies.values() if not p.needs & {"compensated", "steps"}]
    shared = [p for p in plain if "weight_gradients" not in p.needs]
    rng = np.random.default_rng(0)
    drawn: list[Any] = []
    while len(drawn) < args.rounds + 1:
        arch = bench.space.sample(rng)
        drawn += [] if arch is None else [arch]
    setup = (bench.net, bench.space, bench.tokens)
    runs: dict[str, Any] = {
        "shared": Panel(*setup, shared, bench.settings, table=bench.table).measure,
        "gradients": Panel(*setup, plain, bench.settings, table=bench.table).measure,
    }
    for name, proxy in proxies.items():
        if args.alone and name not in args.alone:
            continue
        how = bench.how if "compensated" in proxy.needs else None
        runs[name] = Evaluator(*setup, proxy, bench.settings, how, bench.table).score
    queues = {name: iter(drawn) for name in runs}
    contestants = {name: lambda name=name: runs[name](next(queues[name])) for name in runs}
    seconds = interleaved(contestants, args.rounds)
    return {
        "model": "random Llama, 110M" if args.random else args.model.rstrip("/").rpartition("/")[2],
        **bench.kind,
        "tokens": list(bench.tokens.shape),
        "micro_batch": bench.batch,
        "rounds": args.rounds,
        "phi_median_seconds": round(statistics.median(seconds["phi"]), 4),
        "shared / phi": round(ratio(seconds["shared"], seconds["phi"]), 3),
        "gradients / phi": round(ratio(seconds["gradients"], seconds["phi"]), 3),
        "alone / phi": {name: round(ratio(seconds[name], seconds["phi"]), 3) for name in proxies if name in seconds},
        "compensated / plain": {
            name: round(ratio(seconds[f"{name}_compensated"], seconds[name]), 3)
            for name in ("loss", "kl", "phi")
            if f"{name}_compensated" in seconds and name in seconds
        },
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--data")
    parser.add_argument("--random", action="store_true")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--alone", nargs="+", help="only these proxies by themselves, `phi` among them")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    publish({"benchmark": "proxies", "machine": facts(), "results": [measure(args)]}, args.out)


if __name__ == "__main__":
    main()
