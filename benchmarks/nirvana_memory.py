"""Memory of NIRVANA's saliency: the peak above the loaded model, as a share of its weights.

    python benchmarks/nirvana_memory.py MODEL [--dtype fp32|bf16] [--samples 32 --seq-len 128] [--out FILE]
    python benchmarks/nirvana_memory.py llama:hidden_size=1024,num_hidden_layers=16,… [--dtype bf16]

The second form is a random model. On the CPU the peak is the process's (VmHWM, set back before the pass); on CUDA it
is the allocator's. Freed memory is given back to the system at once (mallopt), so that the peak is what was in use.
Tokens are random: memory does not depend on them.
"""

import argparse
import ctypes
import time
from pathlib import Path
from typing import Any

import torch
from cells import pairs
from machine import facts, memory, publish

from tracenas.families import Options, config_family
from tracenas.saliency import SALIENCIES

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def model_of(name: str, dtype: torch.dtype, device: str) -> Any:
    """A directory's model, or a random one of the shape that the name says."""
    from transformers import AutoConfig, AutoModelForCausalLM

    model_type, colon, shape = name.partition(":")
    if not colon:
        model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype)
    else:
        config = AutoConfig.for_model(model_type, **pairs(shape.split(",")), dtype=dtype)
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.to(device).eval().requires_grad_(False)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--saliency", default="nirvana")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="fp32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--seq-len", type=int, default=128)
    parser.add_argument("--micro-batch", type=int, default=32)
    parser.add_argument("--out")
    args = parser.parse_args()
    ctypes.CDLL(None).mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD
    model = model_of(args.model, DTYPES[args.dtype], args.device)
    config = model.config.to_dict()
    blocks = config_family(config).blocks(config, Options(kv_groups=True))
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    tokens = torch.randint(0, config["vocab_size"], (args.samples, args.seq_len), device=args.device)
    measure = SALIENCIES.get(args.saliency)
    measure(model, blocks[:1], tokens[:1, :8], 1)  # libraries are loaded, threads are there
    if args.device == "cpu":
        Path("/proc/self/clear_refs").write_text("5")
        before = memory("VmRSS")
    else:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    started = time.perf_counter()
    measure(model, blocks, tokens, args.micro_batch)
    seconds = time.perf_counter() - started
    peak = memory("VmHWM") if args.device == "cpu" else torch.cuda.max_memory_allocated()
    publish(
        {
            "benchmark": "nirvana_memory",
            "model": args.model if ":" in args.model else Path(args.model).name,
            "saliency": args.saliency,
            "dtype": args.dtype,
            "machine": facts(),
            "parameters": sum(p.numel() for p in model.parameters()),
            "tokens": tokens.numel(),
            "weights, MiB": round(weights / 2**20, 1),
            "peak above the model, MiB": round((peak - before) / 2**20, 1),
            "share of the weights": round((peak - before) / weights, 4),
            "seconds": round(seconds, 1),
        },
        args.out,
    )


if __name__ == "__main__":
    main()
