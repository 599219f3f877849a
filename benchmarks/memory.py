"""Memory of a search: peak above the base weights, and growth over many evaluations.

    python benchmarks/memory.py MODEL --data TEXT [--evaluations 500] [--samples 4 --seq-len 256] [--out FILE]

Resident memory is read after every tenth evaluation; growth is the last reading over the one after a tenth of the run.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from machine import facts, memory, publish

from tracenas.config import ScoreConfig
from tracenas.models.checkpoints.source import open_source
from tracenas.pipeline.opening import open_session
from tracenas.pipeline.scoring import make_evaluator
from tracenas.pipeline.target import resolve_target


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--evaluations", type=int, default=500)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    config = ScoreConfig(model=args.model, arch=Path("-"), data=args.data, samples=args.samples, seq_len=args.seq_len)
    source = open_source(args.model)
    target = resolve_target(source, config, params="60%")
    space = target.space
    before = memory("VmRSS")
    session = open_session(target, config, data=args.data)
    weights = sum(p.numel() * p.element_size() for p in session.loaded.model.parameters())
    evaluator = make_evaluator(session, "phi", 64)
    rng = np.random.default_rng(0)
    readings = []
    for i in range(args.evaluations):
        arch = space.sample(rng)
        assert arch is not None
        evaluator.score(arch)
        if i % 10 == 9:
            readings.append(memory("VmRSS"))
    first = readings[len(readings) // 10]
    peak = memory("VmHWM")
    publish(
        {
            "benchmark": "memory",
            "model": Path(args.model).name,
            "machine": facts(),
            "evaluations": args.evaluations,
            "tokens": args.samples * args.seq_len,
            "base weights, MiB": round(weights / 2**20, 1),
            "process before the model, MiB": round(before / 2**20, 1),
            "resident after a tenth, MiB": round(first / 2**20, 1),
            "resident at the end, MiB": round(readings[-1] / 2**20, 1),
            "growth": round(readings[-1] / first - 1, 4),
            "peak above base weights and process, MiB": round((peak - before - weights) / 2**20, 1),
        },
        args.out,
    )


if __name__ == "__main__":
    main()
