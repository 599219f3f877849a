"""Settings of recover."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tracenas.config import fields
from tracenas.config.accepted import Accepts
from tracenas.config.shared import WindowsConfig
from tracenas.config.tracking import TrackedConfig
from tracenas.config.usage import Use
from tracenas.errors import UserError

__all__ = ["RecoverConfig"]


def _reads_text(config: Any) -> bool:
    return bool(config.method != "lora" or config.text is not None)


class RecoverConfig(WindowsConfig, TrackedConfig):
    """Train a pruned model until it is useful again."""

    needed = ("tokens", "max_steps")
    wanted = ("text", "seq_len", "learning_rate", "resume")
    uses = (
        Use(("teacher", "temperature", "top_k", "ce_weight"), "method distill", lambda c: c.method == "distill"),
        Use(("lora_rank", "lora_alpha", "lora_dropout"), "method lora", lambda c: c.method == "lora"),
        Use(("text_field",), "text: data of another method than lora, or text", _reads_text),
        Use(("decay_form",), "a decay of more than 0", lambda c: c.decay > 0),
    )

    @model_validator(mode="before")
    @classmethod
    def _one_length(cls, values: Any) -> Any:
        given = [name for name in ("tokens", "max_steps") if values.get(name) is not None]
        if len(given) > 1 and not values.get("resume"):
            raise UserError("tokens and max-steps are two answers to one question; give one of them")
        if not given and not values.get("resume"):
            raise UserError("'tokens' or 'max-steps' is required: how long to train, such as --tokens 50M")
        return values

    model: Annotated[str, Accepts(file=True)] = Field(description="The checkpoint to recover: a directory or a hub id.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where to train; CUDA_VISIBLE_DEVICES chooses one of several GPUs."
    )
    method: Literal["pretrain", "lora", "distill"] = Field(
        description="How to train: pretrain (on text, as before), lora (instruction tuning) or distill (from the "
        "dense base)."
    )
    data: fields.Text = Field(
        description="Training text, as for `tracenas search`; for lora prompts and responses, or chats, as JSONL, CSV, "
        "Parquet or a data set on the hub."
    )
    out: Path = Field(description="Directory of the recovered checkpoint, its log and the state of the training.")
    tokens: Annotated[str | None, Accepts(metavar="COUNT")] = Field(
        None, description="Number of tokens to train on, such as 50M; this or --max-steps."
    )
    max_steps: int | None = Field(None, ge=1, description="Number of optimizer steps; this or --tokens.")
    resume: bool = Field(False, description="Go on with an interrupted training in the directory.")
    validation: fields.Text | None = Field(
        None,
        description="Data that choose the checkpoint; default: sequences split off the training data and not "
        "trained on.",
    )
    text: fields.Text | None = Field(None, description="Text whose perplexity is reported; it chooses nothing.")
    windows: int | None = Field(
        64, ge=1, description="Number of windows at most, of the validation and of the reported text each."
    )
    seq_len: int | None = Field(
        None, ge=2, description="Tokens per sequence; default: 4096, or the model's positions if fewer."
    )
    text_field: fields.TextField = None
    global_batch: int | None = Field(
        None,
        ge=1,
        description="Sequences per optimizer step, over all processes; default: about 0.5M tokens, or a fiftieth of "
        "--tokens if that is less; for lora 16 sequences.",
    )
    batch: int | None = Field(
        None, ge=1, description="Sequences per forward pass and process; default: what is likely to fit."
    )
    learning_rate: float | None = Field(None, gt=0, le=1000, description="Highest learning rate; default: 1e-4.")
    warmup: float = Field(0.05, ge=0, le=1, description="Share of the steps in which the learning rate rises.")
    decay: float = Field(
        0.30, ge=0, le=1, description="Share of the steps in which it falls; in those between it is constant."
    )
    decay_form: Literal["linear", "cosine"] = Field("linear", description="Form in which the learning rate falls.")
    min_lr_ratio: float = Field(0.0, ge=0, le=1, description="Learning rate at the end, as a share of the highest.")
    weight_decay: float | None = Field(None, ge=0, description="Weight decay of AdamW; default: 0.1, for lora 0.")
    clip: float = Field(1.0, ge=0, description="Largest norm of the gradient; 0: it is not clipped.")
    activation_checkpointing: bool = Field(
        False, description="Compute activations twice instead of keeping them: less memory, more time."
    )
    fsdp: bool = Field(
        False, description="Share model and optimizer out over the GPUs, under torchrun or accelerate launch."
    )
    prefetch: bool = Field(False, description="Prepare the data in a process of its own.")
    save_every: int | None = Field(
        None, ge=1, description="Steps between two checkpoints; default: a tenth of all steps."
    )
    eval_every: int = Field(0, ge=0, description="Steps between two evaluations; 0: with every checkpoint.")
    log_every: int = Field(10, ge=1, description="Steps between two records of log.jsonl.")
    keep_last: int = Field(
        2, ge=1, description="Number of newest checkpoints that are kept while training, beside the best one."
    )
    keep_checkpoints: bool = Field(
        False, description="Keep checkpoints and the optimizer's state when the training has ended."
    )
    peak_tflops: float | None = Field(
        None, gt=0, description="Peak TFLOP/s of one device, for the utilisation in the log; default: known GPUs' own."
    )
    teacher: Annotated[str | None, Accepts(file=True, metavar="MODEL")] = Field(
        None, description="The dense model that distill learns from; default: the base that the checkpoint names."
    )
    temperature: float = Field(1.0, gt=0, description="Temperature that softens both distributions in distill.")
    top_k: int = Field(0, ge=0, description="Number of the teacher's logits per token that distill keeps; 0: all.")
    ce_weight: float = Field(0.0, ge=0, le=1, description="Share of the plain cross-entropy in the loss of distill.")
    lora_rank: int = Field(8, ge=1, description="Rank of the adapters of lora.")
    lora_alpha: float = Field(16.0, gt=0, description="Scale of the adapters of lora, which count alpha / rank.")
    lora_dropout: float = Field(
        0.0, ge=0, lt=1, description="Dropout of what the adapters of lora read, a probability."
    )
    keep_zeros: bool = Field(True, description="Keep the zeros of a checkpoint that `tracenas sparsify` wrote.")
    save_dtype: fields.SaveDtype = "auto"
    shard_size: fields.ShardSize = "5GB"
