"""What an ablation varies: numbers and lengths of sequences, and ranks. No torch."""

from dataclasses import dataclass

from tracenas.config import AblationConfig, parse_rank
from tracenas.config.study import names
from tracenas.errors import UserError
from tracenas.models.checkpoints.source import ModelSource
from tracenas.proxies import PROXIES
from tracenas.studies.ablation import Setting

__all__ = ["Grid", "make_grid"]

_SAMPLES = 16


@dataclass(frozen=True)
class Grid:
    """Values of each category, ascending; the last is the reference (0 is full rank)."""

    counts: list[int]
    lengths: list[int]
    ranks: list[int]
    samples: int
    length: int
    rank: int

    def settings(self) -> dict[str, list[Setting]]:
        """Category → its settings, the reference last."""
        return {
            "samples": [Setting(n, self.length, self.rank) for n in self.counts],
            "length": [Setting(self.samples, n, self.rank) for n in self.lengths],
            "rank": [Setting(self.samples, self.length, r) for r in self.ranks],
        }


def make_grid(config: AblationConfig, source: ModelSource) -> Grid:
    """The values that the settings name.

    Raises:
        UserError: for none, or sequences that are too long.
    """
    length = config.seq_len or min(4096, source.positions)
    if length > source.positions:
        raise UserError(f"seq-len {length}: the model has {source.positions} positions")
    shares = ",".join(str(length // n) for n in (8, 4, 2, 1) if length // n >= 2)
    lengths = _numbers("lengths", shares if config.lengths is None else config.lengths, 2)
    if lengths[-1] > length:
        raise UserError(f"lengths {lengths[-1]}: more than seq-len {length}")
    ranks = sorted({parse_rank(part) for part in names(config.ranks)}, key=lambda r: r or float("inf"))
    if not ranks:
        raise UserError("ranks is empty; expected numbers or full, such as 2,8,64,full")
    counts = _numbers("sample-counts", config.sample_counts, 1)
    traced = "trace" in PROXIES.get(config.proxy).needs
    return Grid(counts, lengths, ranks if traced else [], config.samples or _SAMPLES, length, config.trace_rank)


def _numbers(name: str, text: str, least: int) -> list[int]:
    parts = names(text)
    if not parts or not all(part.isdigit() and int(part) >= least for part in parts):
        raise UserError(f"{name} '{text}': expected whole numbers from {least} up, separated by commas")
    return sorted(int(part) for part in parts)
