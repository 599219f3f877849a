"""The pruning itself: realise the candidate as it was scored, write the checkpoint, and check it."""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from tracenas.commands.prune.card import pruned_card
from tracenas.commands.prune.result import Pruned
from tracenas.config import PruneConfig
from tracenas.models.checkpoints.loading import dtype_to_save
from tracenas.models.checkpoints.writing import Draft, save_pruned
from tracenas.models.surgery.ordering import Key
from tracenas.pipeline.calibration import warn_of_tokenizer
from tracenas.pipeline.one_shot import ARCHITECTURE, OneShot, one_shot
from tracenas.pipeline.opening import open_session
from tracenas.pipeline.refit.choice import WrittenRealisation, choose
from tracenas.pipeline.refit.fitting import candidate_loss, scored_loss
from tracenas.pipeline.refit.record import ScoredRealisation
from tracenas.pipeline.refit.statistics import StoredGrams
from tracenas.pipeline.resume import recorded_base_loss
from tracenas.pipeline.session import Session
from tracenas.pipeline.target import PruningTarget
from tracenas.pipeline.verification import compare_losses, output_dtypes, verified_loss
from tracenas.refits.ridge import in_base_order
from tracenas.reporting.progress import phase
from tracenas.rundir import write_json
from tracenas.space.architecture import Architecture

__all__ = ["prune_by_method", "prune_to", "written_realisation"]


def prune_to(
    target: PruningTarget,
    arch: Architecture,
    config: PruneConfig,
    *,
    data: str | None,
    run: Path | None,
    scored: ScoredRealisation,
    expected: float | None,
) -> Pruned:
    """The checkpoint of an architecture.

    Args:
        data: where calibration text, or text to refit on, comes from.
        run: the run directory whose best architecture this is.
        scored: what the architecture was scored with.
        expected: the loss that it had then, nats per token.
    """
    session = open_session(target, config, data=data, run=run)
    return _write(config, session, arch, _realise(config, session, arch, scored, expected))


def prune_by_method(target: PruningTarget, config: PruneConfig) -> Pruned:
    """The checkpoint of what a one-shot method makes of the budget."""
    with closing(StoredGrams(target.blocks)) as grams:
        kept = grams if config.compensate == "best" else None
        session = open_session(target, config, data=config.data, sensitivity=config.sensitivity, grams=kept)
        return _prune_session(session, config)


def _prune_session(session: Session, config: PruneConfig) -> Pruned:
    outcome = one_shot(session, config)
    realised = _realise(config, session, outcome.architecture, ScoredRealisation(), None)
    if "predicted_rise" in outcome.facts:
        assert realised.base_loss is not None  # there is no run, which would know it
        rise = realised.loss - realised.base_loss
        outcome = replace(outcome, facts={**outcome.facts, "measured_rise": rise})
    return _write(config, session, outcome.architecture, realised, outcome)


@dataclass(frozen=True)
class _Realised:
    """What is to be written, beside the cut: its loss in memory, the candidate's as scored, the base's, refits."""

    loss: float
    scored_loss: float
    base_loss: float | None
    choice: WrittenRealisation
    outputs: Mapping[Key, torch.Tensor] | None = None


def _realise(
    config: PruneConfig, session: Session, arch: Architecture, scored: ScoredRealisation, expected: float | None
) -> _Realised:
    """Check that the candidate's loss as scored is the journal's, then realise it as the settings say.

    Afterwards the loaded model's units are in the base's order again.
    """
    method = config.compensate if config.compensate != "auto" else scored.method
    base_loss = None if session.run is None else recorded_base_loss(session.run)
    if expected is not None and method in ("none", "plain") and scored.method == "plain":
        # The reloaded checkpoint is compared with the journal.
        return _Realised(expected, expected, base_loss, WrittenRealisation("plain"))
    net = session.supernet()
    if base_loss is None:
        base_loss = candidate_loss(session, session.space.base)
    loss = again = scored_loss(session, arch, scored)
    if expected is not None:
        compare_losses("the candidate's calibration loss", again, "the journal's", expected, session.dtype)
    choice = written_realisation(config, session, arch, scored)
    outputs = None
    if choice.compensation is not None:
        outputs, loss = in_base_order(net, arch, choice.compensation.outputs), choice.compensation.loss
    elif scored.method != "plain":
        loss = candidate_loss(session, arch)
    net.restore()
    return _Realised(loss, again if expected is None else expected, base_loss, choice, outputs)


def written_realisation(
    config: PruneConfig, session: Session, arch: Architecture, scored: ScoredRealisation
) -> WrittenRealisation:
    """The candidate as the settings realise it in a checkpoint of its dtypes."""
    stored = output_dtypes(session, config.save_dtype)
    return choose(session, arch, config.compensate, scored, stored, data=config.data is not None)


def _write(
    config: PruneConfig, session: Session, arch: Architecture, realised: _Realised, outcome: OneShot | None = None
) -> Pruned:
    """Write the checkpoint of a realised candidate, checked before its directory appears."""
    loaded, space = session.loaded, session.space
    dtype, refit = dtype_to_save(config.save_dtype), realised.choice.compensation
    reloaded = []

    def card(draft: Draft) -> str:
        refits = None if refit is None else refit.outputs
        reloaded.append(verified_loss(session, arch, refits, draft, realised.loss, dtype))
        if outcome is not None:
            write_json(draft.path / ARCHITECTURE, {"architecture": arch.to_json()})
        losses = {
            **({} if realised.base_loss is None else {"calibration loss of the base": f"{realised.base_loss:.6f}"}),
            "calibration loss as scored, nats per token": f"{realised.scored_loss:.6f}",
            "calibration loss of this checkpoint, reloaded": f"{reloaded[0]:.6f}",
            **realised.choice.facts(),
        }
        return pruned_card(config, session, draft, losses, outcome)

    warn_of_tokenizer(loaded)
    with phase("write the checkpoint"):
        draft = save_pruned(
            loaded.model,
            loaded.files,
            loaded.source.family,
            session.blocks,
            session.ordering.kept(session.blocks, arch),
            config.out,
            tensors=loaded.tensors(),
            outputs=realised.outputs,
            dtype=dtype,
            max_shard_size=config.shard_size,
            stub_attention=config.stub_removed_attention,
            card=card,
        )
    predicted = space.parameters(arch) + draft.stub_parameters
    if draft.parameters != predicted:
        raise RuntimeError(f"the checkpoint has {draft.parameters:,} parameters, {predicted:,} were predicted")
    return Pruned(
        config.out,
        draft.parameters,
        space.parameters(space.base),
        draft.stock,
        reloaded[0],
        realised.scored_loss,
        None if refit is None else refit.to_json(),
        realised.choice.to_json(),
        draft.stub_parameters,
        None if outcome is None else dict(outcome.facts),
    )
