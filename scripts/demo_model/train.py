"""Train the model that ships in ``src/tracenas/demo`` from the standard library's own text.

    python scripts/demo_model/train.py --minutes 60

The run may be interrupted at any time (SIGTERM, SIGINT) and goes on where it stopped when
started again; its working files are under ``--work``. The number of steps follows from
the measured pace, so that the run fits the minutes asked for, and stays fixed once the learning
rate has begun to fall; ``--steps`` names it instead.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from batches import Packer, encode, pack
from corpus import Corpus, build_corpus, write_texts
from publish import loss_on, publish, single_threads, write_atomically
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from vocabulary import VOCABULARY, train_tokenizer

SEED = 0
LENGTH, LONG_LENGTH = 256, 512  # tokens; one step in LONG_EVERY uses the long windows
LONG_EVERY = 4
STEP_TOKENS, MICRO_TOKENS = 2048, 512
PEAK_LR, WARMUP_STEPS, STABLE = 2.5e-3, 150, 0.5
WEIGHT_DECAY, CLIP = 0.1, 1.0
MEASURED_STEPS, PLAN_EVERY = 12, 200
LOG_EVERY, VALIDATION_TOKENS = 100, 24 * 1024
CHECKPOINT_SECONDS, FIRST_PUBLISH_SECONDS, PUBLISH_SECONDS = 240.0, 480.0, 720.0


@dataclass
class Progress:
    """Where a run stands: steps done, steps planned (0: not fixed yet), seconds spent, log."""

    step: int = 0
    total: int = 0
    seconds: float = 0.0
    log: list[dict[str, float]] = field(default_factory=list)


def build_model() -> LlamaForCausalLM:
    """A Llama with as many key-value heads as heads, 2.9 million parameters."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=160,
        num_hidden_layers=8,
        num_attention_heads=10,
        num_key_value_heads=10,
        head_dim=16,
        intermediate_size=448,
        max_position_embeddings=LONG_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(SEED)
    residual = (2 * config.num_hidden_layers) ** -0.5
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                scale = residual if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
                weight.normal_(0.0, 0.03 * scale, generator=generator)
    return model


def build_optimizer(model: LlamaForCausalLM) -> torch.optim.AdamW:
    """AdamW that decays the matrices of the blocks, and neither norms nor embeddings."""
    named = list(model.named_parameters())
    decayed = [p for n, p in named if p.dim() == 2 and "embed" not in n]
    others = [p for n, p in named if p.dim() != 2 or "embed" in n]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": WEIGHT_DECAY},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=PEAK_LR, betas=(0.9, 0.97), fused=True)


def learning_rate(step: int, total: int) -> float:
    """Warm-up, a plateau until the share STABLE of the run, then a line to zero."""
    if step < WARMUP_STEPS:
        return PEAK_LR * (step + 1) / WARMUP_STEPS
    if total == 0:
        return PEAK_LR
    return PEAK_LR * min(1.0, (1 - step / total) / (1 - STABLE))


def save_state(folder: Path, model: LlamaForCausalLM, optimizer: torch.optim.AdamW, at: Progress) -> None:
    """Weights, optimizer moments and progress as safetensors and JSON."""
    tensors: dict[str, Tensor] = {}
    for name, weight in model.named_parameters():
        tensors[name] = weight.detach()
        for key, value in optimizer.state[weight].items():
            tensors[f"{key}:{name}"] = value
    facts = {"step": at.step, "total": at.total, "seconds": at.seconds, "log": at.log}
    temporary = folder / "state.tmp"
    save_file(tensors, temporary, metadata={"progress": json.dumps(facts)})
    os.replace(temporary, folder / "state.safetensors")
    write_atomically(folder / "progress.json", json.dumps(facts, indent=1))


def load_state(folder: Path, model: LlamaForCausalLM, optimizer: torch.optim.AdamW) -> Progress:
    """Restore what `save_state` wrote; a fresh start where it wrote nothing."""
    path = folder / "state.safetensors"
    if not path.exists():
        return Progress()
    tensors = load_file(path)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(tensors[name])
            keys = ("step", "exp_avg", "exp_avg_sq")
            optimizer.state[weight] = {key: tensors[f"{key}:{name}"] for key in keys}
    return Progress(**json.loads((folder / "progress.json").read_text("utf-8")))


def prepare_tokenizer(work: Path, corpus: Corpus) -> PreTrainedTokenizerFast:
    """The tokenizer of an earlier start of this run, or a new one."""
    folder = work / "tokenizer"
    if not folder.exists():
        train_tokenizer(corpus.train, LONG_LENGTH).save_pretrained(folder)
    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder)
    return tokenizer


def micro_gradients(model: LlamaForCausalLM, x_ST: Tensor, y_ST: Tensor) -> tuple[float, tuple[Tensor, ...]]:
    """Summed loss in nats of one micro-batch and its gradient for every parameter."""
    logits = model(input_ids=x_ST, use_cache=False).logits
    loss = F.cross_entropy(logits.flatten(0, 1), y_ST.flatten(), reduction="sum")
    return loss.item(), torch.autograd.grad(loss, list(model.parameters()))


def train_step(
    model: LlamaForCausalLM,
    optimizer: torch.optim.AdamW,
    packer: Packer,
    at: Progress,
    pool: ThreadPoolExecutor,
) -> float:
    """One update from micro-batches computed side by side; returns the mean loss in nats.

    The gradients are added in the order of the batch, whatever thread ends first.
    """
    length = LONG_LENGTH if at.step % LONG_EVERY == LONG_EVERY - 1 else LENGTH
    inputs, targets = packer.batch(at.step, length, SEED)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(at.step, at.total)
    micro = MICRO_TOKENS // length
    work = partial(micro_gradients, model)
    optimizer.zero_grad(set_to_none=False)
    loss_sum = 0.0
    for loss, gradients in pool.map(work, inputs.split(micro), targets.split(micro)):
        loss_sum += loss
        for weight, gradient in zip(model.parameters(), gradients, strict=True):
            scaled = gradient / inputs.numel()
            weight.grad = scaled if weight.grad is None else weight.grad.add_(scaled)
    torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    optimizer.step()
    return loss_sum / inputs.numel()


class Run:
    """One start of the training script, from the state an earlier one left."""

    def __init__(self, work: Path, minutes: float, steps: int, threads: int) -> None:
        self.work, self.minutes, self.steps = work, minutes, steps
        self.pool = single_threads(threads)
        self.corpus = build_corpus()
        write_texts(self.corpus)
        self.tokenizer = prepare_tokenizer(work, self.corpus)
        ids = encode(self.tokenizer, self.corpus.train)
        count = STEP_TOKENS // LONG_LENGTH
        self.packer = Packer(ids, self.corpus.train, LONG_LENGTH, count)
        heldout = pack(encode(self.tokenizer, self.corpus.heldout), eos=0)
        self.validation = heldout[: VALIDATION_TOKENS + 1]
        self.model = build_model()
        self.optimizer = build_optimizer(self.model)
        self.at = load_state(self.work, self.model, self.optimizer)
        self.stopped = False
        print(f"{self.packer.epoch_tokens:,} tokens an epoch", flush=True)

    def stop(self, *_: object) -> None:
        """Signal handler: finish the step, save, leave."""
        self.stopped = True

    def publish(self) -> None:
        """Put the model as it is now into the package."""
        at = self.at
        facts = {
            "steps": at.step,
            "total": at.total,
            "tokens": at.step * STEP_TOKENS,
            "epochs": at.step / self.packer.epoch_steps,
            "corpus_tokens": self.packer.epoch_tokens,
        }
        publish(self.model, self.tokenizer, self.corpus, at.log, facts, self.work / "staging", self.pool)
        print(f"published step {at.step}", flush=True)

    def record(self, losses: list[float]) -> None:
        """A line of the log: losses in nats, the train one a mean since the line before."""
        at = self.at
        row = {
            "step": at.step,
            "tokens": at.step * STEP_TOKENS,
            "train_loss": round(sum(losses) / len(losses), 4),
            "val_loss": round(loss_on(self.model, self.validation, LENGTH, self.pool), 4),
            "lr": round(learning_rate(at.step, at.total), 6),
            "seconds": round(at.seconds, 1),
        }
        at.log.append(row)
        left = (at.total - at.step) * at.seconds / at.step / 60
        print(json.dumps(row), f"{left:.0f} min left", flush=True)

    def plan(self, durations: list[float]) -> None:
        """Fix the number of steps from the pace so far; adjust it as long as the plateau lasts."""
        at = self.at
        if at.total > 0 and (self.steps > 0 or at.step >= STABLE * at.total):
            return
        pace = sum(durations) / len(durations)
        at.total = self.steps or at.step + max(1, int((self.minutes * 60 - at.seconds) / pace))
        print(f"{pace:.3f} s a step, {at.total} steps", flush=True)

    def train(self) -> None:
        """Steps until the plan is done or a signal comes, with checkpoints along the way."""
        at, losses, durations = self.at, list[float](), list[float]()
        saved = at.seconds
        published = at.seconds - PUBLISH_SECONDS + FIRST_PUBLISH_SECONDS
        while not self.stopped and (at.total == 0 or at.step < at.total):
            began = time.perf_counter()
            losses.append(train_step(self.model, self.optimizer, self.packer, at, self.pool))
            at.step += 1
            durations.append(time.perf_counter() - began)
            if len(durations) % PLAN_EVERY == MEASURED_STEPS:
                self.plan(durations[-PLAN_EVERY:])
            if at.step % LOG_EVERY == 0 or at.step == at.total:
                self.record(losses)
                losses.clear()
            at.seconds += time.perf_counter() - began
            if at.seconds - saved > CHECKPOINT_SECONDS:
                save_state(self.work, self.model, self.optimizer, at)
                saved = at.seconds
            if at.seconds - published > PUBLISH_SECONDS:
                self.publish()
                published = at.seconds
        save_state(self.work, self.model, self.optimizer, at)
        self.publish()


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="wall time to plan for")
    parser.add_argument("--steps", type=int, default=0, help="steps, in place of --minutes")
    parser.add_argument("--work", type=Path, default=Path("build/demo_model"), help="working files")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)  # whole micro-batches run side by side instead
    args.work.mkdir(parents=True, exist_ok=True)
    run = Run(args.work, args.minutes, args.steps, args.threads)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, run.stop)
    run.train()
    if run.stopped:
        sys.exit(130)


if __name__ == "__main__":
    main()
