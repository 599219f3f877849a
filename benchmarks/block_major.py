"""Candidates whose model waits in files, block by block and one by one: what is read from disk, and the time.

    python benchmarks/block_major.py MODEL --data TEXT [--candidates 8] [--samples 4] [--seq-len 256] [--out FILE]

Memory is as short as can be: whenever another block is entered, all pages of mapped files but this block's weights and
factors are written if need be and put out of memory (Linux), hidden states that wait among them. `in_memory` is the
same without files, where block by block is forced: what it costs or saves beside the reading. Every candidate takes all
sequences, piece by piece in a race that stops nobody. Candidates are drawn at random, so next to none have equal
prefixes, and no refit is remembered.
"""

import argparse
import ctypes
import mmap
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import facts, publish

from tracenas.config import SearchConfig
from tracenas.models.checkpoints.source import open_source
from tracenas.paging import in_memory
from tracenas.pipeline.opening import open_session
from tracenas.pipeline.scoring import make_evaluator
from tracenas.pipeline.session import Session
from tracenas.pipeline.target import resolve_target
from tracenas.refits.realisation import CompensatedRealisation
from tracenas.scoring.block_major import BlockMajorScorer
from tracenas.scoring.evaluator import Evaluator
from tracenas.scoring.raced import RacingEvaluator
from tracenas.scoring.racing import Bar
from tracenas.scoring.scorer import Scorer
from tracenas.space.architecture import Architecture

_PAGE = mmap.PAGESIZE
_SYNC, _PAGE_OUT = 4, 21
"""MS_SYNC of msync(2), MADV_PAGEOUT of madvise(2)."""
_LIBC = ctypes.CDLL(None, use_errno=True)


def put_out(stays: Sequence[torch.Tensor] = ()) -> None:
    """Write the pages of mapped temporary files where they differ, and put them out of memory; some tensors stay."""
    kept = sorted((t.data_ptr() // _PAGE * _PAGE, -(-(t.data_ptr() + t.nbytes) // _PAGE) * _PAGE) for t in stays)
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "/tracenas-" in line:
            start, end = (int(x, 16) for x in line.split()[0].split("-"))
            for first, after in [*((a, b) for a, b in kept if start <= a < end), (end, end)]:
                if start < first:
                    _put_out(start, first - start)
                start = max(start, after)


def _put_out(start: int, size: int) -> None:
    place, length = ctypes.c_void_p(start), ctypes.c_size_t(size)
    if _LIBC.msync(place, length, _SYNC) or _LIBC.madvise(place, length, _PAGE_OUT):
        raise OSError(ctypes.get_errno(), f"{size} bytes of a mapped file")


@contextmanager
def one_block_in_memory(session: Session, how: CompensatedRealisation) -> Iterator[None]:
    """Nothing that waits in files stays in memory once another block is entered, but what is that block's."""
    last: list[Any] = [None]
    net = session.supernet()

    def enter(index: int, block: Any, _: Any) -> None:
        if last[0] is not block:
            factors = [f for (at, _), f in how._factors.items() if at == index]
            put_out([*block.parameters(), *(t for f in factors for t in (f.inverse, f.mixed))])
            last[0] = block

    blocks = [net.model.get_submodule(b.path) for b in net.blocks]
    hooks = [block.register_forward_pre_hook(partial(enter, at)) for at, block in enumerate(blocks)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def read_bytes() -> int:
    """What this process has had read from disk."""
    line = next(x for x in Path("/proc/self/io").read_text().splitlines() if x.startswith("read_bytes"))
    return int(line.split()[1])


def measured(scorer: Scorer[Architecture], candidates: Sequence[Architecture]) -> dict[str, Any]:
    """Scores, and what they took."""
    before, wall, cpu = read_bytes(), time.perf_counter(), time.process_time()
    scores = list(scorer(candidates))
    return {
        "scores": [score.score for score in scores],
        "wall_seconds": round(time.perf_counter() - wall, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "read_gib": round((read_bytes() - before) / 2**30, 3),
    }


def both(args: argparse.Namespace, host_memory: str) -> dict[str, Any]:
    """The same candidates one by one and block by block."""
    with tempfile.TemporaryDirectory() as out:
        config = SearchConfig(
            model=args.model,
            data=args.data,
            params=args.params,
            out=Path(out) / "run",
            samples=args.samples,
            seq_len=args.seq_len,
            saliency="wanda",
            compensate_samples=8,
            threads=1,
            dtype=args.dtype,
            batch=args.batch,
            host_memory=host_memory,
        )
        target = resolve_target(open_source(args.model), config)
        session = open_session(target, config, data=args.data)
    evaluator = make_evaluator(session, "loss_compensated", 64)
    assert isinstance(evaluator, Evaluator) and isinstance(evaluator.realisation, CompensatedRealisation)
    evaluator.realisation.forget(0)  # as with a model whose refits are more than is remembered
    racing = RacingEvaluator(evaluator, elites=1)
    racing.take(Bar((1e9,) * args.samples, 0.0))
    rng = np.random.default_rng(0)
    candidates = [arch for _ in range(args.candidates) if (arch := session.space.sample(rng)) is not None]
    keep = session.loaded.keep
    # in memory, another function than `in_memory` has candidates go block by block whatever they share
    together = BlockMajorScorer(racing, keep if keep is not in_memory else lambda tensor, dtype=None: tensor)
    result: dict[str, Any] = {"micro_batch": session.micro_batch, "files": keep is not in_memory}
    for name, scorer in {"one_by_one": racing, "block_by_block": together}.items():
        if keep is in_memory:
            result[name] = measured(scorer, candidates)
        else:
            with one_block_in_memory(session, evaluator.realisation):
                put_out()
                result[name] = measured(scorer, candidates)
    scores = [result[name].pop("scores") for name in ("one_by_one", "block_by_block")]
    return {**result, "same_scores": scores[0] == scores[1]}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--params", default="60%")
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--dtype", default="fp32")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--host-memory", default="700MB")
    parser.add_argument("--out")
    args = parser.parse_args()
    kinds = {"files": both(args, args.host_memory), "in_memory": both(args, "auto")}
    sizes = {k: getattr(args, k) for k in ("candidates", "samples", "seq_len", "dtype")}
    publish(
        {"benchmark": "block_major", "model": Path(args.model).name, **sizes, "machine": facts(), **kinds}, args.out
    )


if __name__ == "__main__":
    main()
