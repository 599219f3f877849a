"""Measure the demo model and put it into the package, every file replaced in one move."""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from batches import encode, pack, windows
from corpus import DEMO, Corpus
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

__all__ = ["MODEL_DIR", "loss_on", "publish", "single_threads", "write_atomically"]

MODEL_DIR = DEMO / "model"
LARGEST_FILE = 6_000_000  # bytes

CARD = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---

# Demo model

A Llama small enough to ship in the package: {layers} blocks of {heads} attention heads (as many
key-value heads) of {head_dim}, hidden size {hidden}, MLP width {width}, tied embeddings, a
byte-level BPE vocabulary of {vocabulary}. It exists so that every command can be tried on a CPU
in minutes. It completes Python documentation and code after a fashion and is of no other use.

| | |
|---|---|
| parameters | {parameters:,} |
| weights | {bytes:,} bytes, bfloat16 safetensors |
| training | {steps:,} of {total:,} steps, {tokens:,} tokens, {epochs:.1f} epochs |
| corpus | {corpus_bytes:,} characters, {corpus_tokens:,} tokens per epoch |
| held-out perplexity, windows of 256 | {ppl_256:.3f} |
| held-out perplexity, windows of 512 | {ppl_512:.3f} |
| held-out bits per byte, windows of 512 | {bits:.3f} |

Perplexity is measured on all of `heldout.txt` ({heldout_tokens:,} tokens), documents packed with
the end-of-text token between them, in float32 arithmetic on the bfloat16 weights.

## What pruning does to it

Held-out perplexity (on the first {sample_tokens:,} tokens, windows of 512) with one part taken out,
nothing retrained; {ppl_sample:.2f} with all parts in place:

| block | without the block | without its attention | without its MLP |
|---|---|---|---|
{ablations}

## Where it comes from

`scripts/demo_model/train.py` trains it on CPU from text that every CPython installation
carries: `pydoc_data.topics`, docstrings, and the standard library's source. This one was made
with CPython {python}; another version of the library gives a slightly different corpus.
`--steps {total}` repeats the run's schedule; `training_log.jsonl` has the loss along the way. The
held-out text shares no module and no topic with the training text; `calibration.txt` is a sample
of the training text.

The weights are under the Apache License 2.0. The text is CPython's, copyright the Python
Software Foundation, under the PSF License Agreement version 2.
"""


def single_threads(count: int) -> ThreadPoolExecutor:
    """Workers that each compute on one thread.

    On a machine that others use too this is several times faster than `count` threads
    inside every operation, which all wait for the one that was displaced.
    """
    return ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))


@torch.inference_mode()
def _summed_loss(model: nn.Module, chunk: Tensor) -> float:
    """Next-token cross-entropy in nats, summed over windows [n, length + 1]."""
    tokens = chunk.long()
    logits = model(input_ids=tokens[:, :-1], use_cache=False).logits.flatten(0, 1)
    return F.cross_entropy(logits.float(), tokens[:, 1:].flatten(), reduction="sum").item()


def loss_on(model: nn.Module, stream_N: Tensor, length: int, pool: ThreadPoolExecutor) -> float:
    """Mean next-token cross-entropy in nats over windows of `length` tokens."""
    cut = windows(stream_N, length)
    chunks = cut.split(max(1, 1024 // length))
    return sum(pool.map(partial(_summed_loss, model), chunks)) / (len(cut) * length)


def _silence(module: nn.Module, args: object, output: Any) -> Any:
    """A forward hook that turns the output of an attention or MLP into zeros."""
    if isinstance(output, tuple):
        return (torch.zeros_like(output[0]), *output[1:])
    return torch.zeros_like(output)


def _ablations(model: LlamaForCausalLM, stream_N: Tensor, pool: ThreadPoolExecutor) -> str:
    """Rows of the table: perplexity without each block, its attention, its MLP."""
    rows = []
    for index, block in enumerate(model.model.layers):
        cells = []
        for parts in ((block.self_attn, block.mlp), (block.self_attn,), (block.mlp,)):
            hooks = [part.register_forward_hook(_silence) for part in parts]
            cells.append(f"{math.exp(loss_on(model, stream_N, 512, pool)):.2f}")
            for hook in hooks:
                hook.remove()
        rows.append(f"| {index} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _card(
    folder: Path,
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerFast,
    run: dict[str, Any],
    pool: ThreadPoolExecutor,
) -> str:
    """The README of the weights saved in `folder`, measured as they will be loaded."""
    done = run["steps"] == run["total"]  # the table takes half a minute
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    config = model.config
    stream = pack(encode(tokenizer, corpus.heldout), eos=0)
    sample = stream[: 32 * 512 + 1]
    nats = {length: loss_on(model, stream, length, pool) for length in (256, 512)}
    characters = sum(len(d.text) + 1 for d in corpus.heldout)
    return CARD.format(
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        head_dim=config.head_dim,
        hidden=config.hidden_size,
        width=config.intermediate_size,
        vocabulary=config.vocab_size,
        parameters=model.num_parameters(),
        bytes=(folder / "model.safetensors").stat().st_size,
        corpus_bytes=sum(len(d.text) for d in corpus.train),
        heldout_tokens=len(stream),
        ppl_256=math.exp(nats[256]),
        ppl_512=math.exp(nats[512]),
        bits=nats[512] * (len(stream) / characters) / math.log(2),
        sample_tokens=len(sample) - 1,
        ppl_sample=math.exp(loss_on(model, sample, 512, pool)),
        ablations=_ablations(model, sample, pool) if done else "| | measured when finished | | |",
        python=platform.python_version(),
        **run,
    )


def _save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save under the class name that every transformers release knows, without local facts."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    facts = json.loads(path.read_text("utf-8"))
    for key in ("backend", "is_local", "local_files_only"):
        facts.pop(key, None)
    facts["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def write_atomically(path: Path, text: str) -> None:
    """Replace the file's text in one move."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8", newline="\n")
    os.replace(temporary, path)


def publish(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    corpus: Corpus,
    log: list[dict[str, float]],
    run: dict[str, Any],
    staging: Path,
    pool: ThreadPoolExecutor,
) -> None:
    """Save the model in bfloat16 with tokenizer, log and card, then move it into the package.

    `run` holds steps, total, tokens, epochs and corpus_tokens, as the card names them.
    """
    shutil.rmtree(staging, ignore_errors=True)
    weights = {k: v.detach().to(torch.bfloat16) for k, v in model.state_dict().items()}
    half = LlamaForCausalLM(model.config)
    nn.Module.to(half, torch.bfloat16)
    half.load_state_dict(weights)
    half.save_pretrained(staging)
    _save_tokenizer(tokenizer, staging)
    size = (staging / "model.safetensors").stat().st_size
    if size >= LARGEST_FILE:
        raise ValueError(f"weights take {size} bytes, expected under {LARGEST_FILE}")
    rows = "".join(json.dumps(row) + "\n" for row in log)
    (staging / "training_log.jsonl").write_text(rows, encoding="utf-8")
    (staging / "README.md").write_text(_card(staging, corpus, tokenizer, run, pool), "utf-8")
    MODEL_DIR.mkdir(parents=True, exist_ok=True)
    for path in sorted(staging.iterdir()):
        path.chmod(0o644)
        os.replace(path, MODEL_DIR / path.name)
