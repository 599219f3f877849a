"""Calibration and held-out tokens for a loaded model: what it can read, how it begins, no longer than its positions."""

import logging
from pathlib import Path
from typing import Literal

import torch

from tracenas.config import MetricSearchConfig, RunConfig, StudyConfig
from tracenas.data import windows
from tracenas.data.calibration import calibration
from tracenas.data.encoding import TextEncoding
from tracenas.data.held_out import windows as held_out_windows
from tracenas.data.sources import is_tokens
from tracenas.data.tokens import load_tokens, save_tokens
from tracenas.data.windows import BosRule, WindowStart
from tracenas.errors import UserError
from tracenas.models.checkpoints.loading import LoadedModel

__all__ = [
    "calibration_tokens",
    "evaluation_windows",
    "held_out",
    "stored_evaluation_windows",
    "text_encoding",
    "warn_of_tokenizer",
    "window_start",
]

_log = logging.getLogger("tracenas")


EvaluationText = RunConfig | StudyConfig | MetricSearchConfig
"""Settings with a text that losses are measured on."""


def calibration_tokens(
    loaded: LoadedModel,
    data: str,
    *,
    samples: int | None,
    seq_len: int | None,
    seed: int,
    text_field: str | None,
    bos: BosRule = "auto",
    longest: int = 4096,
    fewer: bool = False,
) -> torch.Tensor:
    """Token ids that everything is measured on, int64 [N, L]; see `tracenas.data.calibration`.

    Args:
        bos: whether the windows begin with BOS.
        longest: L of text where `seq_len` is None, if the model has so many positions.
        fewer: take what there is where the source holds fewer than `samples`.

    Raises:
        UserError: too few tokens, too long sequences, or as `window_start`.
    """
    source = loaded.source
    start = window_start(loaded, data, bos)
    if seq_len is not None and seq_len > source.positions:
        raise UserError(f"seq-len {seq_len}: the model has {source.positions} positions")
    tokens = calibration(
        data,
        text_encoding(loaded, start, text_field),
        samples=samples,
        seq_len=seq_len,
        seed=seed,
        default_seq_len=min(longest, source.positions),
        fewer=fewer,
    )
    if tokens.shape[1] > source.positions:
        raise UserError(
            f"data {data}: sequences of {tokens.shape[1]} tokens, the model has {source.positions} positions"
        )
    return tokens


def held_out(
    loaded: LoadedModel,
    text: str,
    seq_len: int,
    limit: int | None,
    text_field: str | None = None,
    *,
    bos: BosRule = "auto",
    setting: str = "text",
    use: Literal["validation", "held_out"] = "held_out",
) -> torch.Tensor:
    """The held-out windows for a model's tokenizer, int64 [N, L].

    Args:
        setting: what `text` is called where the user gives it.
        use: which split of a known data set is read.

    Raises:
        UserError: as `window_start`, or ids beyond its vocabulary.
    """
    start = window_start(loaded, text, bos, setting=setting)
    return held_out_windows(text, text_encoding(loaded, start, text_field), seq_len, limit=limit, use=use)


def text_encoding(loaded: LoadedModel, start: WindowStart, text_field: str | None) -> TextEncoding:
    """How a model reads text, with windows that begin as `start` says."""
    config = loaded.source.config
    return TextEncoding(loaded.tokenizer, config.get("eos_token_id"), start.bos, int(config["vocab_size"]), text_field)


def evaluation_windows(loaded: LoadedModel, config: EvaluationText, length: int) -> torch.Tensor:
    """The held-out windows of `text`, int64 [N, `length`].

    Raises:
        UserError: as `held_out`.
    """
    return held_out(
        loaded,
        config.text,
        length,
        config.windows,
        config.text_field,
        bos=config.bos,
        setting="text",
    )


def stored_evaluation_windows(path: Path, loaded: LoadedModel, config: EvaluationText, length: int) -> torch.Tensor:
    """The windows that `path` holds; made and stored there where it is not there yet.

    Raises:
        UserError: as `held_out`.
    """
    if not path.is_file():
        rows = evaluation_windows(loaded, config, length)
        note = window_start(loaded, config.text, config.bos).note
        save_tokens(path, rows, {"source": config.text, "model": config.model, **note})
    return load_tokens(path)


def window_start(loaded: LoadedModel, source: str, bos: BosRule, *, setting: str = "data") -> WindowStart:
    """How windows of a source begin for a model; an encoder-decoder's halves have no BOS.

    Args:
        setting: what `source` is called where the user gives it.

    Raises:
        UserError: text for a model without tokenizer, or a rule that cannot be kept (`tracenas.data.windows`).
    """
    if not is_tokens(source):
        loaded.require_tokenizer(f"give token ids (.safetensors) as {setting}")
    if loaded.source.is_encoder_decoder and not is_tokens(source):
        if bos == "on":
            raise UserError(f"bos on: {loaded.source.name} is an encoder-decoder model, whose windows have none")
        return windows.WindowStart(None, carried=False)
    return windows.window_start(source, loaded.tokenizer, bos, bos=loaded.source.config.get("bos_token_id"))


def warn_of_tokenizer(loaded: LoadedModel) -> None:
    """Say that a tokenizer was not understood whose files go into what is written."""
    if trouble := loaded.tokenizer_trouble:
        name = loaded.source.name
        _log.warning("model %s: the tokenizer's files are copied without having been read: %s", name, trouble)
