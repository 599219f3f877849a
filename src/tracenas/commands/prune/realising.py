"""The candidate as a checkpoint's settings realise it: its refit, and what is trained and scaled after it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from tracenas.config import PruneConfig
from tracenas.models.checkpoints.shards import Entry
from tracenas.models.surgery.supernet import Realisation
from tracenas.pipeline.refit import SCALE_TOKENS, STATISTICS_TOKENS, scale_steps
from tracenas.pipeline.refit.block_files import BlockFiles
from tracenas.pipeline.refit.choice import WrittenRealisation, choose
from tracenas.pipeline.refit.entries import replaced_entries
from tracenas.pipeline.refit.losses import candidate_loss
from tracenas.pipeline.refit.reconstruction import Reconstruction, reconstruct
from tracenas.pipeline.refit.record import ScoredRealisation
from tracenas.pipeline.refit.scales import Scales, fit_scales
from tracenas.pipeline.refit.work import work_directory
from tracenas.pipeline.session import Session
from tracenas.pipeline.verification import stored_dtypes
from tracenas.refits.factors import FactorTraining
from tracenas.refits.reconstruction import BlockTraining
from tracenas.refits.replaced import ReplacedRealisation
from tracenas.refits.ridge import FittedRealisation
from tracenas.space.architecture import Architecture

__all__ = ["WrittenCandidate", "written_candidate"]


@dataclass(frozen=True)
class WrittenCandidate:
    """A candidate as it is written.

    Args:
        arch: the candidate.
        choice: its refit, or the plain cut.
        reconstruction: of its blocks; None: not asked for.
        scales: of its norms, output projections and logits; None: not asked for, or no text to fit them on.
    """

    arch: Architecture
    choice: WrittenRealisation
    reconstruction: Reconstruction | None = None
    scales: Scales | None = None

    @property
    def how(self) -> Realisation | None:
        """Its realisation in the super-network; None: the plain cut."""
        refit, (blocks, around) = self.choice.compensation, self._replaced
        start = None if refit is None else FittedRealisation(refit.outputs)
        if not blocks and not around:
            return start
        return ReplacedRealisation(start or Realisation(), blocks, around)

    @property
    def _replaced(self) -> tuple[Mapping[int, Mapping[str, Tensor]], Mapping[str, Tensor]]:
        """Tensors that are neither cut nor a refit, as `ReplacedRealisation` takes them: trained, then scaled."""
        trained = {} if self.reconstruction is None else self.reconstruction.tensors
        if self.scales is None:
            return trained, {}
        scaled = self.scales.blocks
        indices = trained.keys() | scaled.keys()
        blocks = {index: {**trained.get(index, {}), **scaled.get(index, {})} for index in indices}
        return blocks, self.scales.around

    @property
    def loss(self) -> float | None:
        """On the calibration, nats per token; None: it is the plain cut's."""
        if self.scales is not None and self.scales.factors:
            return self.scales.after
        if self.reconstruction is not None:
            return self.reconstruction.loss
        return None if self.choice.compensation is None else self.choice.compensation.loss

    def replaced(self, session: Session) -> Mapping[str, Entry]:
        """Tensors that are neither cut nor a refit, as `save_pruned` takes them."""
        return replaced_entries(session.supernet(), self.arch, *self._replaced)

    def finish(self, config: PruneConfig) -> None:
        """Give up what was kept of the work, once the candidate is written."""
        if self.reconstruction is not None:
            BlockFiles(work_directory(config.out)).remove()

    def facts(self) -> dict[str, str]:
        """Lines of the model card."""
        trained = {} if self.reconstruction is None else self.reconstruction.facts()
        scaled = {} if self.scales is None else self.scales.facts()
        return {**self.choice.facts(), **trained, **scaled}

    def to_json(self) -> dict[str, Any]:
        """What `--json` says of refit, choice, reconstruction and scales."""
        refit, trained = self.choice.compensation, self.reconstruction
        return {
            "compensation": None if refit is None else refit.to_json(),
            "choice": self.choice.to_json(),
            "reconstruction": None if trained is None else trained.to_json(),
            "scales": None if self.scales is None else self.scales.to_json(),
        }


def written_candidate(
    config: PruneConfig, session: Session, arch: Architecture, scored: ScoredRealisation
) -> WrittenCandidate:
    """The candidate as the settings realise it in a checkpoint of its dtypes.

    Raises:
        UserError: see `choose` and `reconstruct`.
    """
    stored, data = stored_dtypes(session, config.save_dtype), config.data is not None
    names = {
        (index, sub.spec.name): f"{block.path}.{sub.output}.weight"
        for index, block in enumerate(session.blocks)
        for sub in block.sub_blocks
    }
    outputs = {key: stored[name] for key, name in names.items() if name in stored}
    choice = choose(session, arch, config.compensate, scored, outputs, data=data)
    trained = None
    if config.reconstruct != "none":
        training = BlockTraining(config.reconstruct_steps, config.reconstruct_rate, session.seed)
        work = BlockFiles(work_directory(config.out))
        trained = reconstruct(session, arch, choice, training, stored, work, data=data)
    candidate = WrittenCandidate(arch, choice, trained)
    held_out = choice.held_out if trained is None else trained.held_out
    if config.scales == "none" or config.compensate != "best" or held_out is None:
        return candidate
    before, refit = candidate.loss, choice.compensation
    if before is None:
        before = candidate_loss(session, arch)
    steps = scale_steps(STATISTICS_TOKENS if refit is None else refit.text.tokens.numel())
    factors = FactorTraining(steps, SCALE_TOKENS) if config.scales == "fit" else None
    scales = fit_scales(session, arch, candidate.how, before, held_out.tokens, stored, training=factors)
    return replace(candidate, scales=scales)
