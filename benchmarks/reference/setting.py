"""What all rows of a table share: the model, one choice of text, the refit, and the windows that losses are of.

Text by seed: 8 windows of 512 tokens that searches measure candidates on, 48 others for statistics and refits. Units
are ranked on the 48, whatever ranks them. A refit is `sequential` with λ = 0.1 of every channel and a share of the
drift of 0.75, for every row.
"""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tracenas.config import PruneConfig
from tracenas.errors import UserError
from tracenas.models.checkpoints.source import open_source
from tracenas.models.functionals.loss import next_token_nll
from tracenas.models.surgery.supernet import Supernet
from tracenas.pipeline.calibration import calibration_tokens, held_out, window_start
from tracenas.pipeline.loading import load_model
from tracenas.pipeline.method import resolve_method
from tracenas.pipeline.opening import refit_settings
from tracenas.pipeline.refit.text import compensation_text
from tracenas.pipeline.session import Calibrated
from tracenas.pipeline.target import PruningTarget, resolve_target
from tracenas.refits.aim import Aim
from tracenas.refits.penalty import PENALTIES
from tracenas.refits.sequential import SequentialFit
from tracenas.space.architecture import Architecture
from tracenas.threads import set_threads

__all__ = ["AIM", "SAMPLES", "SEQ_LEN", "STATISTICS", "Clock", "Setting"]

SAMPLES, STATISTICS, SEQ_LEN = 8, 48, 512
"""Windows that candidates are measured on, windows of statistics and refits, and their tokens."""
AIM = Aim(0.1, 0.75)
"""λ relative to every channel's second moment, and the share of the drift."""


class Clock:
    """CPU seconds since it was made, and how much else the machine had to do."""

    def __init__(self) -> None:
        self._started = time.process_time()

    @property
    def seconds(self) -> float:
        """Of all threads of this process."""
        return round(time.process_time() - self._started, 1)

    @staticmethod
    def load() -> float:
        """Processes that wanted to run, mean of the last 5 minutes; this one counts."""
        return round(os.getloadavg()[1], 1)


@dataclass
class Setting:
    """One model and one choice of text.

    Args:
        model: as `tracenas prune` takes it.
        data: calibration text.
        texts: held-out texts by name.
        seed: of the choice of text, and of what is random in a method.
        windows, length: of a held-out text.
        work: directory for what methods have selected.
    """

    model: str
    data: str
    texts: Mapping[str, str]
    seed: int
    windows: int
    length: int
    dtype: str
    threads: int
    work: Path
    _windows: dict[str, torch.Tensor] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        set_threads(self.threads)
        self.source = open_source(self.model, decoder_only="a table of rivals")
        config = self.config("uniform", "50%")
        self.loaded = load_model(self.source, config)
        if self.length > self.source.positions:
            raise UserError(f"--length {self.length}: the model has {self.source.positions} positions")
        self.search = calibration_tokens(
            self.loaded, self.data, samples=SAMPLES, seq_len=SEQ_LEN, seed=self.seed, text_field=None
        )
        """int64 [8, 512]"""
        start = window_start(self.loaded, self.data, config.bos)
        target = resolve_target(self.source, config)
        refit = refit_settings(config, self.data)
        calibrated = Calibrated(target, self.loaded, self.search, start, None, self.seed, refit)
        self.statistics = compensation_text(calibrated, required=True).tokens
        """int64 [48, 512]"""

    @property
    def batch(self) -> int:
        """Sequences of calibration per pass."""
        return 4096 // SEQ_LEN

    def config(self, method: str, budget: str) -> PruneConfig:
        """The settings of a one-shot method."""
        asked = PruneConfig(
            model=self.model,
            data=self.data,
            out=Path("unused"),
            method=method,
            params=budget,
            samples=SAMPLES,
            seq_len=SEQ_LEN,
            compensate_samples=STATISTICS,
            seed=self.seed,
            dtype=self.dtype,
            threads=self.threads,
        )
        return resolve_method(asked)

    def target(self, method: str, budget: str) -> PruningTarget:
        """The model in a method's units, under a budget."""
        config = self.config(method, budget)
        return resolve_target(self.source, config, params=budget, tolerance=config.tolerance)

    def refitted(self, net: Supernet, arch: Architecture) -> dict[tuple[int, str], torch.Tensor]:
        """Output projections of a candidate, refitted as those of every row."""
        fitted = SequentialFit(net, arch, self.statistics, self.batch, [AIM], penalty=PENALTIES["channel"]).advance()
        return fitted[AIM]

    def losses(self, model: Any, text: str, report: Callable[[int], None] = lambda done: None) -> list[float]:
        """Mean loss of every window of a held-out text, nats per token."""
        if text not in self._windows:
            self._windows[text] = held_out(self.loaded, self.texts[text], self.length, self.windows)
        found = []
        with torch.no_grad():
            for window in self._windows[text]:
                found.append(round(float(next_token_nll(model, window[None]).mean()), 6))
                report(len(found))
        return found
