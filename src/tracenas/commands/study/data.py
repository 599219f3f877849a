"""A study's text: held-out windows, and training sequences that share nothing with what architectures are judged on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tracenas.config import StudyConfig
from tracenas.data.further import overlaps
from tracenas.data.sources import is_tokens
from tracenas.data.tokens import load_tokens, save_tokens
from tracenas.errors import UserError
from tracenas.pipeline.calibration import calibration_tokens, window_start
from tracenas.pipeline.session import Session

__all__ = ["HELD_OUT", "TRAINING", "TrainingOrders", "training_rows"]

HELD_OUT, TRAINING = "heldout.safetensors", "training.safetensors"
_DEFAULT_LENGTH = 128
_STREAM = 0x4F524452


def training_rows(session: Session, config: StudyConfig, needed: int, used: Sequence[Tensor]) -> Tensor:
    """Sequences of the data that overlap with nothing in `used`, int64 [M, L].

    Args:
        needed: sequences of one recovery; up to `config.seeds` times as many are kept, where there are so many, so
            that orders of the data differ in their content, too.
        used: tokens that are used elsewhere: calibration, compensation, held-out windows.

    Raises:
        UserError: if the data holds fewer.
    """
    path, loaded = config.out / TRAINING, session.loaded
    if path.is_file():
        return load_tokens(path)
    limit = session.tokens.shape[1]
    length = config.recover_seq_len or (limit if is_tokens(config.data) else min(_DEFAULT_LENGTH, limit))
    if length > loaded.source.positions:
        raise UserError(f"recover-seq-len {length}: the model has {loaded.source.positions} positions")
    start = window_start(loaded, config.data, config.bos)
    most = needed * config.seeds
    overlapping = sum(rows.numel() // length + 2 * len(rows) for rows in used)
    drawn = calibration_tokens(
        loaded,
        config.data,
        samples=most + overlapping,
        seq_len=length,
        seed=config.seed + 1,
        text_field=config.text_field,
        bos=config.bos,
        fewer=True,
    )
    for rows in used:
        drawn = drawn[~overlaps(drawn, rows.cpu(), bos=start.bos)]
    training = drawn[:most].contiguous()
    if len(training) < needed:
        raise UserError(
            f"data {config.data}: {len(training)} sequences of {length} tokens beside calibration, compensation and "
            f"held-out text, recovery needs {needed}: use more text, fewer steps, a smaller recover-batch or a "
            "shorter recover-seq-len"
        )
    save_tokens(path, training, {"source": config.data, "model": config.model, **start.note})
    return training


@dataclass(frozen=True)
class TrainingOrders:
    """Training batches per order: every architecture sees the same ones.

    Args:
        rows: sequences, int64 [M, L].
        batch: sequences per step.
    """

    rows: Tensor
    batch: int
    steps: int
    seed: int

    def __call__(self, order: int) -> list[Tensor]:
        """int64 [batch, L] per step."""
        places = np.random.default_rng([self.seed, order, _STREAM]).permutation(len(self.rows))
        chosen = torch.from_numpy(places[: self.batch * self.steps]).to(self.rows.device)
        return list(self.rows[chosen].split(self.batch))
