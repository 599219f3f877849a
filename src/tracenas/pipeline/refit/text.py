"""Text of refits: what they are fitted on, and what they are compared on; candidates are scored on neither."""

import logging
from dataclasses import dataclass

import torch

from tracenas.data.further import further_calibration
from tracenas.data.tokens import load_tokens, save_tokens
from tracenas.data.windows import WindowStart
from tracenas.errors import UserError
from tracenas.pipeline.calibration import text_encoding, window_start
from tracenas.pipeline.refit import (
    COMPARED_TOKENS,
    COMPENSATION,
    DEFAULT_SAMPLES,
    HELD_OUT,
    HELD_OUT_SAMPLES,
    compared_windows,
)
from tracenas.pipeline.session import Calibrated

__all__ = [
    "HeldOut",
    "Text",
    "compensation_text",
    "reserve_held_out",
    "scored_text",
    "stored_held_out",
    "with_held_out",
]

_log = logging.getLogger("tracenas")

_SHARE = 4
"""Of scarce text every fourth sequence is held out."""


@dataclass(frozen=True)
class Text:
    """What a compensation is fitted on.

    Args:
        tokens: int64 [N, L].
        separate: whether it is other text than the one that losses are measured on.
    """

    tokens: torch.Tensor
    separate: bool


@dataclass(frozen=True)
class HeldOut:
    """What refits are compared on.

    Args:
        tokens: int64 [N, L], in no statistics.
        where: what text it is, for the card.
    """

    tokens: torch.Tensor
    where: str

    @property
    def compared(self) -> torch.Tensor:
        """The windows that realisations are compared on: the first ones."""
        return self.tokens[: compared_windows(COMPARED_TOKENS, self.tokens.shape[1])]


def compensation_text(session: Calibrated, *, required: bool = False, reuse: bool = True, keep: bool = False) -> Text:
    """What to fit a compensation on: further text of the calibration's source, none of which losses are measured on.

    Args:
        required: it must be other text. Otherwise the calibration is used where its source cannot be read or
            holds no more, and the number of sequences was not asked for.
        reuse: the text that a search stored in the run directory.
        keep: store it there, so that a resumed search and `prune` fit on the same; without a run directory, take
            what a search of the same settings takes.

    Raises:
        UserError: if there is no such text.
    """
    wanted = session.refit.samples
    stored = session.run / COMPENSATION if session.run is not None else None
    if reuse and stored is not None and stored.is_file():
        tokens = load_tokens(stored)
        if wanted in (None, tokens.shape[0]):
            return Text(tokens, separate=True)
    used = session.tokens
    if (held_out := stored_held_out(session)) is not None:
        used = torch.cat([used, held_out.tokens])
    elif keep and session.run is None and (reserved := _reserved(session)) is not None:
        used = torch.cat([used, reserved])
    try:
        tokens = _further(session, used, wanted or _default_samples(session), fewer=wanted is None)
    except UserError:
        if required or wanted is not None:
            raise
        return Text(session.tokens, separate=False)
    if keep and stored is not None:
        save_tokens(stored, tokens, _origin(session))
    return Text(tokens, separate=True)


def _default_samples(session: Calibrated) -> int:
    """Sequences to fit on where no number is asked for."""
    tokens = session.refit.tokens
    return DEFAULT_SAMPLES if tokens is None else -(-tokens // session.tokens.shape[1])


def scored_text(session: Calibrated) -> Text:
    """The text that a search compensated its candidates on.

    Raises:
        UserError: if the run does not hold it.
    """
    if session.run is None:
        raise ValueError("only a run's candidates are scored compensated")
    return Text(load_tokens(session.run / COMPENSATION), separate=True)


def stored_held_out(session: Calibrated) -> HeldOut | None:
    """What a search held out in its run directory, if it did."""
    path = session.run / HELD_OUT if session.run is not None else None
    if path is None or not path.is_file():
        return None
    tokens = load_tokens(path)
    return HeldOut(tokens, f"{_size(tokens)}, in neither calibration nor statistics ({HELD_OUT} of the run)")


def reserve_held_out(session: Calibrated) -> None:
    """Store held-out text in the run directory, before any text is taken for statistics; says so where there is none.

    Where text is scarce, a quarter of what is left beside the calibration is held out, unless the number of
    sequences for statistics was asked for.
    """
    if session.run is None or any((session.run / name).is_file() for name in (HELD_OUT, COMPENSATION)):
        return
    tokens = _reserved(session)
    if tokens is None:
        _log.warning(
            "no %s: '%s' holds no text for it beside calibration and statistics; prune will need --data with more "
            "text for --compensate best",
            HELD_OUT,
            session.refit.data,
        )
        return
    save_tokens(session.run / HELD_OUT, tokens, _origin(session))


def _reserved(session: Calibrated) -> torch.Tensor | None:
    """What a search holds out of its data; None if they hold no text for it."""
    try:
        fit = _further(session, session.tokens, session.refit.samples or _default_samples(session), fewer=True)
    except UserError:
        return None
    return _divided(session, fit)[1]


def with_held_out(session: Calibrated, text: Text) -> tuple[Text, HeldOut | None]:
    """The text to fit on, and the text to compare on: the run's, further text of the source, or a share of the first.

    None where there is a single sequence of text in all.

    Raises:
        UserError: if the number of sequences to fit on was asked for, and no text is left beside them.
    """
    if (stored := stored_held_out(session)) is not None:
        return text, stored
    fit, held = _divided(session, text.tokens)
    if held is None:
        if session.refit.samples is not None:
            raise UserError(
                f"'{session.refit.data}' holds no text beside calibration and the {text.tokens.shape[0]} sequences of "
                f"compensate-samples, and some must be held out to compare on: use more text or fewer samples"
            )
        return text, None
    beside = "in neither calibration nor statistics" if text.separate else "a part of the calibration (no other text)"
    return Text(fit, text.separate), HeldOut(held, f"{_size(held)}, {beside}")


def _divided(session: Calibrated, fit: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What of `fit` stays for statistics, and what is held out: further text, or a quarter of all if that is less."""
    try:
        more = _further(session, torch.cat([session.tokens, fit]), HELD_OUT_SAMPLES, fewer=True)
    except UserError:
        more = fit[:0]
    count = fit.shape[0] + more.shape[0]
    wanted = min(HELD_OUT_SAMPLES, max(1, count // _SHARE)) if count > 1 else 0
    moved = max(0, wanted - more.shape[0]) if session.refit.samples is None else 0
    held = torch.cat([fit[fit.shape[0] - moved :], more])
    return fit[: fit.shape[0] - moved], held if len(held) else None


def _further(session: Calibrated, used: torch.Tensor, samples: int, *, fewer: bool) -> torch.Tensor:
    """Windows of the session's data that share no text with `used`, int64 [samples, L].

    Raises:
        UserError: if there is no data, or too little of it.
    """
    if session.refit.data is None:
        raise UserError("'data' is required: text to fit the compensation on")
    encoding = text_encoding(session.loaded, _start(session), session.refit.text_field)
    return further_calibration(
        session.refit.data, encoding, reference=used, samples=samples, fewer=fewer, seed=session.seed
    )


def _start(session: Calibrated) -> WindowStart:
    """How windows of the session's data begin."""
    assert session.refit.data is not None
    return window_start(session.loaded, session.refit.data, session.refit.bos)


def _origin(session: Calibrated) -> dict[str, str]:
    """Metadata of a token file that the session's data were written to."""
    return {"source": str(session.refit.data), "model": session.loaded.source.name, **_start(session).note}


def _size(tokens: torch.Tensor) -> str:
    count, length = tokens.shape
    return f"{count * length:,} tokens ({count} × {length})"
