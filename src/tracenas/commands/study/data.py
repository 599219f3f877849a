"""A study's text: held-out windows, and training sequences that share nothing with what architectures are judged on."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tracenas.config import StudyConfig
from tracenas.errors import UserError

if TYPE_CHECKING:
    import torch

    from tracenas.pipeline.session import Session

__all__ = ["HELD_OUT", "TRAINING", "held_out_windows", "orders", "training_rows"]

HELD_OUT, TRAINING = "heldout.safetensors", "training.safetensors"
_DEFAULT_LENGTH = 128
_STREAM = 0x4F524452


def held_out_windows(session: "Session", config: StudyConfig, out: Path) -> "torch.Tensor":
    """Windows as long as the calibration's, int64 [N, L]; those that the study has stored, if it has."""
    from tracenas.pipeline.calibration import stored_evaluation_windows

    return stored_evaluation_windows(out / HELD_OUT, session.loaded, config, session.tokens.shape[1])


def training_rows(
    session: "Session", config: StudyConfig, out: Path, needed: int, known: "Sequence[torch.Tensor]"
) -> "torch.Tensor":
    """Sequences of the data that overlap with nothing in `known`, int64 [M, L].

    Args:
        needed: sequences of one recovery; up to `config.seeds` times as many are kept, where there are so many, so
            that orders of the data differ in their content, too.
        known: tokens that are used elsewhere: calibration, compensation, held-out windows.

    Raises:
        UserError: if the data holds fewer.
    """
    from tracenas.data.calibration import calibration
    from tracenas.data.further import overlaps
    from tracenas.data.sources import is_tokens
    from tracenas.data.tokens import load_tokens, save_tokens
    from tracenas.pipeline.calibration import window_start

    path = out / TRAINING
    if path.is_file():
        return load_tokens(path)
    limit = session.tokens.shape[1]
    length = config.recover_seq_len or (limit if is_tokens(config.data) else min(_DEFAULT_LENGTH, limit))
    if length > session.loaded.source.positions:
        raise UserError(f"recover-seq-len {length}: the model has {session.loaded.source.positions} positions")
    start = window_start(session.loaded, config.data, config.bos)
    wanted = needed * config.seeds
    beside = sum(rows.numel() // length + 2 * len(rows) for rows in known)
    drawn = calibration(
        config.data,
        session.loaded.tokenizer,
        samples=wanted + beside,
        seq_len=length,
        seed=config.seed + 1,
        eos=session.loaded.source.config.get("eos_token_id"),
        vocab_size=int(session.loaded.source.config["vocab_size"]),
        bos=start.bos,
        text_field=config.text_field,
        fewer=True,
    )
    for rows in known:
        drawn = drawn[~overlaps(drawn, rows.cpu(), bos=start.bos)]
    found = drawn[:wanted].contiguous()
    if len(found) < needed:
        raise UserError(
            f"data {config.data}: {len(found)} sequences of {length} tokens beside calibration, compensation and "
            f"held-out text, recovery needs {needed}: use more text, fewer steps, a smaller recover-batch or a "
            "shorter recover-seq-len"
        )
    save_tokens(path, found, {"source": config.data, "model": config.model, **start.note})
    return found


def orders(rows: "torch.Tensor", batch: int, steps: int, seed: int) -> "Callable[[int], list[torch.Tensor]]":
    """Training batches per order: every architecture sees the same ones, int64 [batch, L] per step."""

    def batches(order: int) -> "list[torch.Tensor]":
        import torch

        places = np.random.default_rng([seed, order, _STREAM]).permutation(len(rows))[: batch * steps]
        return list(rows[torch.from_numpy(places).to(rows.device)].split(batch))

    return batches
