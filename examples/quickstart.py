"""Search, prune and check a model from Python: python examples/quickstart.py MODEL TEXT HELD_OUT OUT"""

import sys
from pathlib import Path

import tracenas

model, text, held_out, out = sys.argv[1:]
run = tracenas.search(
    model,
    data=text,
    params="60%",
    out=Path(out) / "run",
    seed=0,
    population=8,
    elites=3,
    iterations=4,
    samples=8,
    seq_len=128,
)
pruned = tracenas.prune(model, arch=run.best, out=Path(out) / "pruned")
print(tracenas.evaluate([model, pruned.path], text=held_out, seq_len=128, windows=16).table())
