"""Settings of recover."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from tracenas.config import fields
from tracenas.config.shared import WindowsConfig
from tracenas.config.usage import Use

__all__ = ["RecoverConfig"]


def _reads_text(config: Any) -> bool:
    return bool(config.method != "lora" or config.eval_text is not None)


class RecoverConfig(WindowsConfig):
    """Train a pruned model until it is useful again."""

    uses = (
        Use(("teacher", "temperature", "top_k", "ce_weight"), "method distill", lambda c: c.method == "distill"),
        Use(("lora_rank", "lora_alpha", "lora_dropout"), "method lora", lambda c: c.method == "lora"),
        Use(("text_field",), "text: data of another method than lora, or eval-text", _reads_text),
        Use(("run_name",), "report-to", lambda c: bool(c.report_to)),
        Use(("decay_form",), "a decay of more than 0", lambda c: c.decay > 0),
    )

    model: str = Field(description="Checkpoint to recover: a directory or hub id.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto, cpu or cuda (one of several by CUDA_VISIBLE_DEVICES)."
    )
    method: Literal["pretrain", "lora", "distill"] = Field(
        description="pretrain (continued, on text), lora (instruction tuning) or distill (from the dense base)."
    )
    data: str = Field(
        description="Text or tokens as in search; for lora prompts and responses or chats (JSONL, CSV, Parquet, hub)."
    )
    out: Path = Field(description="Directory of the recovered checkpoint; log and training state are in it, too.")
    max_steps: int = Field(ge=1, description="Optimizer steps.")
    resume: bool = Field(False, description="Go on with an interrupted run.")
    validation: str | None = Field(
        None, description="Data that choose the checkpoint; default: sequences split off the data and not trained on."
    )
    eval_text: str | None = Field(None, description="Text whose perplexity is reported; it chooses nothing.")
    eval_windows: int | None = Field(64, ge=1, description="Use no more than this many windows of each of the two.")
    seq_len: int | None = Field(None, ge=2, description="Tokens per sequence; default min(4096, positions).")
    text_field: fields.TextField = None
    global_batch: int = Field(1024, ge=1, description="Sequences per step, over all processes.")
    micro_batch: int | None = Field(None, ge=1, description="Sequences per forward pass and process.")
    learning_rate: float | None = Field(None, gt=0, description="Peak; default 1e-4.")
    warmup: float = Field(0.05, ge=0, le=1, description="Share of the steps.")
    decay: float = Field(0.30, ge=0, le=1, description="Share of the steps; those between are stable.")
    decay_form: Literal["linear", "cosine"] = Field("linear", description="Of the decay.")
    min_lr_ratio: float = Field(0.0, ge=0, le=1, description="Learning rate at the end, share of the peak.")
    weight_decay: float | None = Field(None, ge=0, description="AdamW's; default 0.1, lora 0.")
    clip: float = Field(1.0, ge=0, description="Largest norm of the gradient; 0: no clipping.")
    activation_checkpointing: bool = Field(False, description="Compute activations again instead of keeping them.")
    fsdp: bool = Field(False, description="Shard model and optimizer (GPUs, under torchrun or accelerate launch).")
    prefetch: bool = Field(False, description="Prepare data in a process of its own.")
    save_every: int | None = Field(None, ge=1, description="Steps between checkpoints; default a tenth of max_steps.")
    eval_every: int = Field(0, ge=0, description="Steps between evaluations; 0: with every checkpoint.")
    log_every: int = Field(10, ge=1, description="Steps between records of log.jsonl.")
    keep_last: int = Field(2, ge=1, description="Newest checkpoints kept while training, beside the best one.")
    keep_checkpoints: bool = Field(False, description="Keep checkpoints and optimizer when training has ended.")
    report_to: str = Field("", description="Also log to tensorboard, wandb, trackio (several: separated by commas).")
    run_name: str | None = Field(None, description="Name of the run there.")
    peak_tflops: float | None = Field(None, gt=0, description="Of one device, for the MFU; default: known GPUs' own.")
    teacher: str | None = Field(None, description="distill: the dense model; default: what the card names.")
    temperature: float = Field(1.0, gt=0, description="distill: softens both distributions.")
    top_k: int = Field(0, ge=0, description="distill: keep this many of the teacher's logits; 0: all.")
    ce_weight: float = Field(0.0, ge=0, le=1, description="distill: share of the plain cross-entropy.")
    lora_rank: int = Field(8, ge=1, description="lora: r.")
    lora_alpha: float = Field(16, gt=0, description="lora: alpha; adapters are scaled by alpha / r.")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="lora: dropout of the adapters' input.")
    keep_zeros: bool = Field(True, description="Keep the zeros of an unstructured sparse checkpoint (sparsity.json).")
    save_dtype: fields.Dtype = Field("auto", description="Of the written weights; auto: each as it was stored.")
    shard_size: fields.ShardSize = "5GB"
