"""What a pruning's settings come to, before torch is imported."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from tracenas.config import PruneConfig
from tracenas.config.local_paths import with_absolute_paths
from tracenas.data.sources import is_tokens
from tracenas.errors import UserError
from tracenas.models.checkpoints.source import ModelSource
from tracenas.pipeline.refit.work import at_work, work_directory
from tracenas.pipeline.resume import CONFIG
from tracenas.settings import read_settings

__all__ = ["as_refittable", "as_searched", "decoder_only", "reconstruction_work"]

_OF_THE_RUN = ("channel_quantum", "head_quantum", "kv_groups", "deploy", "exclude", "saliency", "dtype", "seed", "bos")

_NOT_OF_BLOCKS = {"out", "resume", "shard_size", "stub_removed_attention", "trust_remote_code"}
"""Settings that trained blocks do not depend on."""


def reconstruction_work(config: PruneConfig) -> AbstractContextManager[None]:
    """The work directory of a reconstruction, where one is asked for; its blocks are those of all these settings.

    Raises:
        UserError: if it holds the work of other settings, or work that is not to be gone on with.
    """
    if config.reconstruct == "none":
        return nullcontext()
    settings = with_absolute_paths(config).model_dump(mode="json", exclude=_NOT_OF_BLOCKS)
    return at_work(work_directory(config.out), settings, resume=config.resume)


def decoder_only(config: PruneConfig) -> str:
    """What of the settings only decoder-only models can have; empty if nothing."""
    if config.compensate in ("ridge", "sequential"):
        return f"--compensate {config.compensate}"
    if config.compensate == "best" and (config.ridge or config.compensate_samples):
        return "ridge, compensate-samples"
    if config.reconstruct == "blocks":
        return "--reconstruct blocks"
    return "--stub-removed-attention" if config.stub_removed_attention else ""


def as_refittable(config: PruneConfig, source: ModelSource) -> PruneConfig:
    """The settings for the model's kind: encoder–decoder models are not refitted, so `best` is as scored."""
    if config.compensate == "best" and source.is_encoder_decoder:
        return config.model_copy(update={"compensate": "auto"})
    return config


def as_searched(config: PruneConfig, run: Path) -> tuple[PruneConfig, str | None]:
    """The settings that decide which units are kept, and the data (unless given), from the run's config.yaml."""
    stored = read_settings(run / CONFIG)
    for key in (*_OF_THE_RUN, "samples", "seq_len"):
        value = getattr(config, key)
        if config.asks_for(key) and value != "auto" and value != stored.get(key):
            name = key.replace("_", "-")
            raise UserError(f"{name} {value}: {run} was searched with {stored.get(key)}, and decides it; leave it out")
    update = {key: stored[key] for key in _OF_THE_RUN if key in stored}
    if config.data is None:
        update["text_field"] = config.text_field or stored.get("text_field")
    elif is_tokens(config.data):
        update.pop("bos", None)  # token ids are as they are, and say so themselves
    return config.model_copy(update=update), config.data or stored.get("data")
