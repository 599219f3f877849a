"""A Python whose llama_cpp takes no time but what it says: so much per call, and per byte of the file and token.

The real script runs in it, over a clock of its own; what is measured adds up exactly, whatever else the machine does.
"""

import sys
from pathlib import Path

__all__ = ["BUFFERS", "CALL", "PER_BYTE", "fake_llama_python"]

CALL, PER_BYTE = 1e-3, 1e-9
"""Seconds of a call, and per byte and token."""
BUFFERS = {"KV": 3.0, "compute": 2.5}
"""MiB that it says it holds, beside the file."""

_MODULE = """
import os, time
from types import SimpleNamespace as Of

__version__ = "0.0.fake"
clock, heard = [0.0], []
time.perf_counter = lambda: clock[0]
llama_log_callback = lambda function: function
llama_log_set = lambda function, data: heard.append(function)
llama_backend_init = lambda: print("noise on standard output")
llama_supports_gpu_offload = lambda: False
llama_print_system_info = lambda: b"FAKE = 1"
llama_model_default_params = lambda: Of()
llama_context_default_params = lambda: Of()
llama_model_get_vocab = lambda model: model
llama_vocab_n_tokens = lambda model: 257
llama_synchronize = llama_batch_free = llama_free = llama_model_free = lambda thing: None
llama_get_memory = lambda context: context


def log(what, size):
    heard[-1](2, f"load: CPU {what} buffer size = {size:8.2f} MiB\\n".encode(), None)


def llama_model_load_from_file(path, settings):
    with open(path, "rb") as file:
        if file.read(4) != b"GGUF":
            heard[-1](4, b"invalid magic", None)
            return None
    model = Of(bytes=os.path.getsize(path))
    log("model", model.bytes / 2**20)
    return model


def llama_init_from_model(model, settings):
    for what, size in BUFFERS.items():
        log(what, size)
    return Of(model=model, places=[set() for _ in range(settings.n_seq_max)], settings=settings)


def llama_memory_seq_rm(context, sequence, start, end):
    context.places = [{p for p in places if p < start} for places in context.places]


def llama_batch_init(tokens, embeddings, sequences):
    return Of(n_tokens=0, token=[0] * tokens, pos=[0] * tokens, n_seq_id=[0] * tokens,
              seq_id=[[0] for _ in range(tokens)], logits=[0] * tokens)


def llama_decode(context, batch):
    length = context.settings.n_ctx // context.settings.n_seq_max
    for i in range(batch.n_tokens):
        assert batch.n_seq_id[i] == 1 and 0 <= batch.token[i] < 257
        places = context.places[batch.seq_id[i][0]]
        assert batch.pos[i] == len(places) < length, "a token that is not the next of its sequence"
        places.add(batch.pos[i])
    clock[0] += CALL + PER_BYTE * context.model.bytes * batch.n_tokens
    return 0
"""


def fake_llama_python(directory: Path) -> Path:
    """An interpreter that finds this module."""
    (directory / "llama_cpp.py").write_text(f"CALL, PER_BYTE, BUFFERS = {CALL}, {PER_BYTE}, {BUFFERS}\n{_MODULE}")
    python = directory / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{directory}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return python
