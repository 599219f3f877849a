"""Is a materialised model as fast as its FLOPs promise? Prefill of a 110M Llama, dense against pruned.

    python benchmarks/prefill.py [--params 60% 50%] [--threads 1] [--trials 10] [--out FILE]

Prints JSON, a row per budget: the measured prefill speed-up of the pruned checkpoint over the dense model (all of them
interleaved, median of the ratios within a turn), the FLOP ratio, and their quotient, which should be at least 0.9.
Weights are random: only shapes matter here.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from candidate import model_of
from machine import facts, publish
from safetensors.torch import save_file

from tracenas.commands.bench.command import bench
from tracenas.commands.prune.command import prune
from tracenas.config import BenchConfig, PruneConfig
from tracenas.models.checkpoints.source import open_source
from tracenas.space.constraints import Budget, parse_size

TARGET = 0.9


def dense(directory: Path) -> Path:
    """Write a random Llama: 12 blocks, 768 wide, 12 heads, MLP 2,048, vocabulary 32,000, tied; 109.5M."""
    torch.manual_seed(0)
    model = model_of(12, 2048, max_position_embeddings=4352, bos_token_id=0, eos_token_id=0, pad_token_id=0)
    model.save_pretrained(directory / "dense")
    return directory / "dense"


def pruned(model: Path, directory: Path, params: str) -> Path:
    """Write the uniform architecture of a budget as a checkpoint."""
    source = open_source(str(model))
    base = source.space().parameters(source.space().base)
    uniform = source.space(budget=Budget(parse_size(params, base))).uniform()
    assert uniform is not None
    arch = directory / f"arch-{params.rstrip('%')}.json"
    arch.write_text(json.dumps(uniform.to_json()))
    save_file({"input_ids": torch.randint(0, 32000, (1, 64))}, directory / "tokens.safetensors")
    out = directory / f"pruned-{params.rstrip('%')}"
    tokens = str(directory / "tokens.safetensors")
    prune(PruneConfig(model=str(model), arch=arch, data=tokens, out=out, device="cpu", compensate="none"))
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", nargs="+", default=["60%", "50%"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--prompt", type=int, default=1024)
    parser.add_argument("--out")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        base = dense(Path(name))
        small = [pruned(base, Path(name), params) for params in options.params]
        found = bench(
            BenchConfig(
                models=(str(base), *map(str, small)),
                prompt=options.prompt,
                new_tokens=8,
                trials=options.trials,
                threads=options.threads,
                device="cpu",
                dtype="fp32",
                no_memory=True,
            )
        )
    first, *others = (m.to_json() for m in found.models)
    rows = [
        {
            "budget": budget,
            "params": row["params"],
            "ttft_ms": row["ttft_ms"],
            "prefill_speedup": row["prefill_speedup"],
            "flop_ratio": row["prefill_flop_ratio"],
            "prefill_speedup_over_flop_ratio": row["prefill_speedup_over_flop_ratio"],
            "met": row["prefill_speedup_over_flop_ratio"] >= TARGET,
        }
        for budget, row in zip(options.params, others, strict=True)
    ]
    result: dict[str, Any] = {
        "benchmark": "prefill of a materialised model",
        "baseline": "the dense model in the same run",
        "machine": facts(),
        "setting": found.setting,
        "dense": {"params": first["params"], "ttft_ms": first["ttft_ms"]},
        "target": TARGET,
        "rows": rows,
    }
    publish(result, options.out)
    return 0 if all(row["met"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
