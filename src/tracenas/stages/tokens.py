"""Calibration and held-out tokens for a loaded model: what it can read, no longer than its positions."""

from typing import TYPE_CHECKING, Literal

from tracenas.data.sources import is_tokens
from tracenas.errors import UserError

if TYPE_CHECKING:
    import torch

    from tracenas.models.loading import LoadedModel

__all__ = ["calibration_tokens", "held_out"]


def calibration_tokens(
    loaded: "LoadedModel",
    data: str,
    *,
    samples: int | None,
    seq_len: int | None,
    seed: int,
    text_field: str | None,
    longest: int = 4096,
    fewer: bool = False,
) -> "torch.Tensor":
    """Token ids that everything is measured on, int64 [N, L]; see `tracenas.data.calibration`.

    Args:
        longest: L of text where `seq_len` is None, if the model has so many positions.
        fewer: take what there is where the source holds fewer than `samples`.

    Raises:
        UserError: too few tokens, too long sequences, or text for a model without tokenizer.
    """
    from tracenas.data.calibration import calibration

    source = loaded.source
    _require_tokenizer(loaded, data, "data")
    if seq_len is not None and seq_len > source.positions:
        raise UserError(f"seq-len {seq_len}: the model has {source.positions} positions")
    tokens = calibration(
        data,
        loaded.tokenizer,
        samples=samples,
        seq_len=seq_len,
        seed=seed,
        default_seq_len=min(longest, source.positions),
        eos=source.config.get("eos_token_id"),
        vocab_size=int(source.config["vocab_size"]),
        text_field=text_field,
        fewer=fewer,
    )
    if tokens.shape[1] > source.positions:
        raise UserError(
            f"data {data}: sequences of {tokens.shape[1]} tokens, the model has {source.positions} positions"
        )
    return tokens


def held_out(
    loaded: "LoadedModel",
    text: str,
    seq_len: int,
    limit: int | None,
    text_field: str | None = None,
    *,
    setting: str = "text",
    use: Literal["validation", "held_out"] = "held_out",
) -> "torch.Tensor":
    """The held-out windows for a model's tokenizer, int64 [N, L].

    Args:
        setting: what `text` is called where the user gives it.
        use: which split of a known data set is read.

    Raises:
        UserError: text for a model without tokenizer, or ids beyond its vocabulary.
    """
    from tracenas.data.held_out import windows
    from tracenas.data.tokens import check_vocabulary

    _require_tokenizer(loaded, text, setting)
    eos = loaded.source.config.get("eos_token_id")
    found = windows(text, loaded.tokenizer, seq_len, limit=limit, eos=eos, text_field=text_field, use=use)
    check_vocabulary(found, int(loaded.source.config["vocab_size"]), text)
    return found


def _require_tokenizer(loaded: "LoadedModel", source: str, setting: str) -> None:
    if loaded.tokenizer is None and not is_tokens(source):
        raise UserError(f"model {loaded.source.name} has no tokenizer; give token ids (.safetensors) as {setting}")
