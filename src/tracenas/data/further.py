"""More text of the same source: for what must not be fitted on the text that candidates are scored on."""

import torch

from tracenas.data.calibration import calibration
from tracenas.data.encoding import TextEncoding
from tracenas.data.windows import text_tokens
from tracenas.errors import UserError

__all__ = ["Repeats", "further_calibration", "overlaps"]

_RUN = 32
_SHARE = 0.125


def overlaps(rows: torch.Tensor, reference: torch.Tensor, run: int = _RUN, *, bos: int | None = None) -> torch.Tensor:
    """Which rows repeat text of `reference`: more than 1/8 of their runs of 32 tokens stand there, too.

    Args:
        rows: int64 [N, L].
        reference: int64 [M, K].
        run: tokens that are compared at a time; the shorter, the less a short row may share.
        bos: a BOS that all of `rows` or of `reference` begin with, which is no text.

    Returns:
        bool [N].
    """
    rows = text_tokens(rows, bos)
    return Repeats(text_tokens(reference, bos), min(run, rows.shape[1]))(rows)


class Repeats:
    """`overlaps` with windows that are hashed once, for rows that come one by one.

    Args:
        known: int64 [M, K].
        run: tokens that are compared at a time; no more than a row has.
    """

    def __init__(self, reference: torch.Tensor, run: int = _RUN) -> None:
        self._run = min(run, reference.shape[1])
        self._hashes = _hashes(reference, self._run).unique()

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Which rows repeat text, bool [N]."""
        hashes = _hashes(rows, self._run)
        places = torch.searchsorted(self._hashes, hashes).clamp_(max=len(self._hashes) - 1)
        shared: torch.Tensor = (self._hashes[places] == hashes).float().mean(dim=1)
        return shared > _SHARE


def further_calibration(
    source: str,
    encoding: TextEncoding,
    *,
    reference: torch.Tensor,
    samples: int,
    fewer: bool = False,
    seed: int = 0,
) -> torch.Tensor:
    """Windows of `source` that share no text with `reference`, int64 [samples, L], L as in `reference`.

    Drawn as `calibration` draws them; windows that overlap with `reference` are left out (`overlaps`).

    Args:
        reference: int64 [M, L], windows of the same source or of another one, which begin as these do.
        samples: how many are wanted.
        fewer: accept fewer, if the source holds no more.

    Raises:
        UserError: if the source cannot be read or holds too few such windows (with `fewer`: none).
    """
    # A window of `known` overlaps with at most two of the same grid laid elsewhere.
    count, length = reference.shape
    drawn = calibration(source, encoding, samples=samples + 2 * count, seq_len=length, seed=seed, fewer=True)
    rows = drawn[~overlaps(drawn, reference, bos=encoding.bos)][:samples]
    if len(rows) < (1 if fewer else samples):
        raise UserError(
            f"'{source}' holds {len(rows)} sequences of {length} tokens beside the {count} that "
            f"candidates are scored on, {samples} were asked for (compensate-samples): use more text or fewer samples"
        )
    return rows


def _hashes(rows: torch.Tensor, length: int) -> torch.Tensor:
    """A number per run of `length` tokens, int64 [N, L - length + 1] (arithmetic modulo 2⁶⁴)."""
    generator = torch.Generator().manual_seed(length)
    factors = torch.randint(-(1 << 62), 1 << 62, (length,), generator=generator)
    ids = rows.cpu() + 1
    total = torch.zeros(rows.shape[0], rows.shape[1] - length + 1, dtype=torch.int64)
    for i in range(length):
        total += ids[:, i : i + total.shape[1]] * factors[i]
    return total
