"""Whether what `prune` has written is the candidate that was scored, and the same as the journal's."""

from collections.abc import Mapping

import torch

from tracenas.errors import UserError
from tracenas.models.checkpoints.loading import dtypes_to_save, load
from tracenas.models.checkpoints.writing import Draft
from tracenas.models.checkpoints.written import check_written
from tracenas.models.functionals.perplexity import perplexity
from tracenas.models.surgery.supernet import Realisation
from tracenas.pipeline.session import Session
from tracenas.reporting.progress import phase
from tracenas.resident import give_back
from tracenas.space.architecture import Architecture

__all__ = ["compare_losses", "stored_dtypes", "verified_loss"]

_TOLERANCE = {"float32": 1e-4, "float16": 1e-3, "bfloat16": 6e-3}
"""Of losses, in nats per token: ten times the noise of two measurements, of which bfloat16 has up to 6e-4."""


def stored_dtypes(session: Session, save_dtype: str) -> Mapping[str, torch.dtype]:
    """What the checkpoint stores the model's tensors in, by name."""
    return dtypes_to_save(save_dtype, session.loaded.source, session.loaded.model)


def verified_loss(
    session: Session,
    arch: Architecture,
    how: Realisation | None,
    draft: Draft,
    expected: float,
    dtype: torch.dtype | None,
) -> float:
    """Calibration loss of a written checkpoint, loaded again from disk, nats per token.

    Before, its tensors are compared with the candidate's in memory, and the base's memory is freed: the session's
    model is of no use afterwards.

    Args:
        how: the candidate's realisation; None if it is plain.
        expected: the candidate's loss.
        dtype: what the weights were asked to be written in.

    Raises:
        CheckFailed: if a tensor is another; UserError: if the loss is.
    """
    loaded, device = session.loaded, str(session.loaded.device)
    net = session.supernet()
    with phase("verify the checkpoint") as steps:
        check_written(net, arch, how, draft, dtype)
        streamed = loaded.streamed
        loaded.release()
        give_back()
        again = load(str(draft.path), device=device, dtype=loaded.dtype_name, keep=loaded.keep, streamed=streamed)
        loss = perplexity(again.model, session.tokens, session.micro_batch, report=steps.report).nll
    candidate = "the scored candidate's" if how is None else "the compensated candidate's"
    compare_losses("the checkpoint's calibration loss", loss, candidate, expected, session.dtype)
    return loss


def compare_losses(what: str, measured: float, other: str, expected: float, dtype: str) -> None:
    """Compare two measurements of a loss within the noise of `dtype`, in float32 relative to a loss above 1.

    Raises:
        UserError: if they differ by more.
    """
    tolerance = _TOLERANCE[dtype] * (max(1.0, abs(expected)) if dtype == "float32" else 1.0)
    if not abs(measured - expected) <= tolerance:
        raise UserError(
            f"{what} is {measured:.6f}, {other} {expected:.6f}: not the model that was scored (has the base model "
            f"changed since the search?); nothing was written"
        )
