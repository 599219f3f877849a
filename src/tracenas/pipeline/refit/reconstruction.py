"""Reconstruction of a candidate's blocks as `prune` asks for it: text, decision, and what became of it."""

import hashlib
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from tracenas.errors import UserError
from tracenas.models.surgery.supernet import Realisation
from tracenas.pipeline.refit import STEP_TOKENS
from tracenas.pipeline.refit.block_files import BlockFiles
from tracenas.pipeline.refit.choice import WrittenRealisation
from tracenas.pipeline.refit.losses import candidate_loss, held_out_loss
from tracenas.pipeline.refit.text import HeldOut, Text, compensation_text, with_held_out
from tracenas.pipeline.session import Session
from tracenas.pipeline.verification import compare_losses
from tracenas.refits.reconstruction import BlockTraining, TrainedBlock, reconstruct_blocks
from tracenas.refits.replaced import ReplacedRealisation
from tracenas.refits.ridge import FittedRealisation
from tracenas.reporting.progress import phase
from tracenas.space.architecture import Architecture

__all__ = ["Reconstruction", "reconstruct"]

_log = logging.getLogger("tracenas")


@dataclass(frozen=True)
class Reconstruction:
    """What became of a candidate's blocks.

    Args:
        kept: whether the candidate is written as trained: its loss on held-out text is lower.
        training: how they were trained.
        text, held_out: on what they were trained and judged.
        blocks: by index; a skipped block has none.
        start: the refit that they were trained from.
        losses: of the candidate on the held-out text, before and after, nats per token.
        loss: on the calibration, as written.
    """

    kept: bool
    training: BlockTraining
    text: Text
    held_out: HeldOut
    blocks: Mapping[int, TrainedBlock]
    start: str
    losses: tuple[float, float]
    loss: float

    @property
    def tensors(self) -> Mapping[int, Mapping[str, torch.Tensor]]:
        """What is written of the trained blocks, by block and name in it."""
        return _tensors(self.blocks) if self.kept else {}

    def to_json(self) -> dict[str, Any]:
        """Everything but the tensors."""
        before, after = (loss if math.isfinite(loss) else None for loss in self.losses)
        return {
            "written": self.kept,
            "start": self.start,
            "steps": self.training.steps,
            "learning_rate": self.training.learning_rate,
            "drift": self.training.drift,
            "tokens": self.text.tokens.numel(),
            "separate_text": self.text.separate,
            "held_out_tokens": self.held_out.tokens.numel(),
            "losses": {"before": before, "after": after},
            "loss": self.loss,
            "blocks": [block.to_json() for block in self.blocks.values()],
        }

    def facts(self) -> dict[str, str]:
        """Lines of the model card."""
        used = sum(block.kept for block in self.blocks.values())
        before, after = self.losses
        how = f"{self.training.steps} steps of AdamW (peak {self.training.learning_rate:g}) per block"
        written = f"{used} of {len(self.blocks)} blocks as trained" if self.kept else "not written"
        return {
            "reconstruction": f"every block trained to the dense block's output from {self.start}: {how}, "
            f"{self.text.tokens.numel():,} tokens; {written}",
            "loss on held-out text before and after the reconstruction": f"{before:.4f}, {after:.4f}",
        }


def reconstruct(
    session: Session,
    arch: Architecture,
    choice: WrittenRealisation,
    training: BlockTraining,
    stored: Mapping[str, torch.dtype],
    work: BlockFiles,
    *,
    data: bool,
) -> Reconstruction:
    """Train the blocks of a candidate, from its refit on.

    Args:
        choice: the refit.
        stored: dtypes of the checkpoint's tensors, by the model's names.
        work: blocks that are finished already, and where others are kept.
        data: whether the user gave text for it, which then is used in place of the run's.

    Raises:
        UserError: if there is too little text, or the work is of another candidate.
    """
    net, text, held_out = session.supernet(), *_texts(session, choice, data)
    start = Realisation() if choice.compensation is None else FittedRealisation(choice.compensation.outputs)
    before = held_out_loss(session, arch, held_out.tokens, start)
    began = work.begin(_facts(arch, text, held_out, choice.written), before)
    compare_losses("the refitted candidate's held-out loss", before, "the interrupted one's", began, session.dtype)
    batch = max(1, STEP_TOKENS // text.tokens.shape[1])
    with phase("train blocks", len(arch.layers) * training.steps) as steps:
        blocks = reconstruct_blocks(
            net,
            arch,
            start,
            text.tokens,
            held_out.tokens,
            batch,
            training,
            stored=stored,
            finished=work,
            report=steps.report,
        )
    trained = ReplacedRealisation(start, _tensors(blocks))
    after = held_out_loss(session, arch, held_out.tokens, trained)
    if not (kept := after < before):
        _log.warning(
            "--reconstruct blocks: %.4f nats per token on held-out text, %.4f without it: written without it",
            after,
            before,
        )
    loss = candidate_loss(session, arch, trained if kept else start)
    return Reconstruction(kept, training, text, held_out, blocks, choice.written, (before, after), loss)


def _tensors(blocks: Mapping[int, TrainedBlock]) -> dict[int, Mapping[str, torch.Tensor]]:
    """Of the blocks that stay as trained; the others have none."""
    return {index: block.tensors for index, block in blocks.items()}


def _texts(session: Session, choice: WrittenRealisation, data: bool) -> tuple[Text, HeldOut]:
    """What the refit was fitted and judged on, or what it would have been."""
    if choice.compensation is not None:
        text = choice.compensation.text
    else:
        text = compensation_text(session, required=data and session.run is not None, reuse=not data)
    if choice.compensation is not None and choice.held_out is not None:
        return text, choice.held_out
    text, held_out = with_held_out(session, text)
    if held_out is None:
        raise UserError(
            "--reconstruct blocks: the data hold one sequence of text in all, and some must be held out to decide "
            "whether trained blocks are kept: give more text, or a smaller --seq-len"
        )
    return text, held_out


def _facts(arch: Architecture, text: Text, held_out: HeldOut, start: str) -> dict[str, Any]:
    """What blocks that are finished must have been trained from and on."""
    digests = [_digest(text.tokens), _digest(held_out.tokens)]
    return {"architecture": arch.to_json(), "text": digests, "refit": start}


def _digest(tokens: torch.Tensor) -> str:
    return hashlib.sha256(tokens.cpu().contiguous().numpy().tobytes()).hexdigest()
