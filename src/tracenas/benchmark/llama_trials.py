"""Run by a Python that has llama-cpp-python: how long GGUF files take in llama.cpp. Imports nothing of tracenas.

Answers a line of JSON on standard input by one on standard output, after a first line that says what is there:

    {"model": FILE, "runs": [{"batch": 1, "prompt": 512, "before": 504, "new_tokens": 16}], "threads": 2,
     "seed": 0, "gpu": false}
    → {"runs": [{"prefill": 0.8, "decode": 0.2}], "bytes": {"model": …, "KV": …, "compute": …, "output": …}}

Prefill is the prompt of all sequences, decode the tokens behind the first of `new_tokens` behind `before` ones, seconds
both. A model is loaded for its trial and freed behind it; a short pass comes first, so that weights are in memory and
threads have started. `bytes` is what llama.cpp's log says of its buffers, the largest of all runs.
"""

import ctypes
import json
import os
import random
import re
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["main"]

_BUFFER = re.compile(r"(model|KV|compute|output) buffer size\s*=\s*([0-9.]+) MiB")
_AT_ONCE = 2048
"""Tokens of a call at most (llama.cpp's own `--batch-size`)."""
_FIRST = 32
"""Tokens of the pass that does not count."""

Token = tuple[int, int, int, bool]
"""Id, position, sequence and whether its logits are wanted."""


class Context:
    """A model with a cache for so many sequences.

    Args:
        llama: the module llama_cpp.
        model: that was loaded.
        length: tokens of a sequence at most.
    """

    def __init__(self, llama: Any, model: Any, *, batch: int, length: int, threads: int, gpu: bool) -> None:
        settings = llama.llama_context_default_params()
        settings.n_ctx, settings.n_seq_max = batch * length, batch
        settings.n_batch = min(_AT_ONCE, batch * length)
        settings.n_threads = settings.n_threads_batch = threads
        settings.offload_kqv = settings.op_offload = gpu
        self.llama, self.at_once = llama, settings.n_batch
        self._context = llama.llama_init_from_model(model, settings)
        if not self._context:
            raise SystemExit("llama.cpp makes no context for this model (memory?)")
        self._batch = llama.llama_batch_init(self.at_once, 0, 1)

    def read(self, tokens: Sequence[Token]) -> None:
        """Compute these, as many at a time as fit."""
        for start in range(0, len(tokens), self.at_once):
            part = tokens[start : start + self.at_once]
            self._batch.n_tokens = len(part)
            for i, (token, position, sequence, wanted) in enumerate(part):
                self._batch.token[i], self._batch.pos[i] = token, position
                self._batch.n_seq_id[i], self._batch.seq_id[i][0] = 1, sequence
                self._batch.logits[i] = wanted
            if status := self.llama.llama_decode(self._context, self._batch):
                raise SystemExit(f"llama_decode failed with status {status}")
        self.llama.llama_synchronize(self._context)

    def forget(self, start: int) -> None:
        """What lies at this position and behind it, of all sequences."""
        self.llama.llama_memory_seq_rm(self.llama.llama_get_memory(self._context), -1, start, -1)

    def close(self) -> None:
        """Free it."""
        self.llama.llama_batch_free(self._batch)
        self.llama.llama_free(self._context)


def trial(context: Context, run: dict[str, int], draw: random.Random, vocabulary: int) -> dict[str, float]:
    """Seconds of a run in a fresh context."""
    batch, prompt, before, new = (run[name] for name in ("batch", "prompt", "before", "new_tokens"))

    def tokens(start: int, end: int) -> list[Token]:
        last = end - 1
        ids = ((s, p) for s in range(batch) for p in range(start, end))
        return [(draw.randrange(vocabulary), p, s, p == last) for s, p in ids]

    steps = [tokens(before + i, before + i + 1) for i in range(new - 1)]
    first, whole, behind = tokens(0, min(_FIRST, prompt)), tokens(0, prompt), tokens(prompt, max(prompt, before))
    context.read(first)
    context.forget(0)
    prefill = _seconds(context, [whole])
    context.read(behind)
    context.forget(before)
    return {"prefill": prefill, "decode": _seconds(context, steps)}


def _seconds(context: Context, calls: Iterable[Sequence[Token]]) -> float:
    began = time.perf_counter()
    for tokens in calls:
        context.read(tokens)
    return time.perf_counter() - began


class Buffers:
    """What llama.cpp's log says of its buffers, and the log's last line.

    Args:
        llama: the module llama_cpp.
    """

    def __init__(self, llama: Any) -> None:
        self.sizes: dict[str, float] = {}
        self.last = ""
        self._hold = llama.llama_log_callback(self._hear)  # kept as long as llama.cpp may call it
        llama.llama_log_set(self._hold, ctypes.c_void_p(0))

    def _hear(self, _level: int, text: bytes, _data: Any) -> None:
        line = text.decode("utf-8", "replace")
        self.last = line.strip() or self.last
        if found := _BUFFER.search(line):
            self.sizes[found[1]] = self.sizes.get(found[1], 0.0) + float(found[2]) * 2**20

    def take(self) -> dict[str, float]:
        """Sizes since the last time."""
        sizes, self.sizes = self.sizes, {}
        return sizes


def measure(llama: Any, buffers: Buffers, request: dict[str, Any]) -> dict[str, Any]:
    """All runs of a request, the model loaded once."""
    settings = llama.llama_model_default_params()
    settings.n_gpu_layers = 999 if request["gpu"] else 0
    buffers.take()
    model = llama.llama_model_load_from_file(os.fsencode(request["model"]), settings)
    if not model:
        raise SystemExit(f"llama.cpp does not load the file: {buffers.last}")
    vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    weights, largest, found = buffers.take(), dict[str, float](), []
    try:
        for run in request["runs"]:
            length = max(run["prompt"], run["before"]) + run["new_tokens"]
            shape = {"batch": run["batch"], "length": length}
            context = Context(llama, model, **shape, threads=request["threads"], gpu=request["gpu"])
            found.append(trial(context, run, random.Random(request["seed"]), vocabulary))
            context.close()
            largest = max(largest, buffers.take(), key=lambda sizes: sum(sizes.values()))
    finally:
        llama.llama_model_free(model)
    return {"runs": found, "bytes": {name: round(size) for name, size in (weights | largest).items()}}


def main() -> None:
    """Answer until standard input ends."""
    import llama_cpp  # type: ignore[import-not-found,unused-ignore]

    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what else is printed is not an answer
    buffers = Buffers(llama_cpp)
    llama_cpp.llama_backend_init()
    facts = {"llama_cpp": llama_cpp.__version__, "gpu": bool(llama_cpp.llama_supports_gpu_offload())}
    system = llama_cpp.llama_print_system_info().decode().strip()
    print(json.dumps({**facts, "system": system}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(measure(llama_cpp, buffers, json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
