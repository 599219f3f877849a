"""The pruning itself: realise the candidate as it was scored, write the checkpoint, and check it."""

from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from tracenas.commands.prune.card import pruned_card
from tracenas.commands.prune.realising import WrittenCandidate, written_candidate
from tracenas.commands.prune.result import Pruned
from tracenas.config import PruneConfig
from tracenas.models.checkpoints.loading import dtype_to_save
from tracenas.models.checkpoints.writing import Draft, save_pruned
from tracenas.pipeline.calibration import warn_of_tokenizer
from tracenas.pipeline.one_shot import ARCHITECTURE, OneShot, one_shot
from tracenas.pipeline.opening import open_session
from tracenas.pipeline.refit.choice import WrittenRealisation
from tracenas.pipeline.refit.fitting import scored_loss
from tracenas.pipeline.refit.losses import candidate_loss, candidate_losses, measured_rise
from tracenas.pipeline.refit.record import ScoredRealisation
from tracenas.pipeline.refit.statistics import StoredGrams
from tracenas.pipeline.refit.stream import StoredStream
from tracenas.pipeline.resume import recorded_base_loss
from tracenas.pipeline.session import Session
from tracenas.pipeline.target import PruningTarget
from tracenas.pipeline.verification import compare_losses, verified_loss
from tracenas.refits.ridge import in_base_order
from tracenas.reporting.progress import phase
from tracenas.resident import give_back
from tracenas.rundir import write_json
from tracenas.saliency import PREDICTED_RISES
from tracenas.space.architecture import Architecture

__all__ = ["prune_by_method", "prune_to"]


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
    with closing(_aside(target, config)) as grams:
        session = open_session(target, config, data=data, run=run, grams=grams)
        return _write(config, session, arch, _realise(config, session, arch, scored, expected))


def prune_by_method(target: PruningTarget, config: PruneConfig) -> Pruned:
    """The checkpoint of what a one-shot method makes of the budget."""
    with closing(_aside(target, config)) as grams:
        kept = grams if config.compensate == "best" else None
        half = config.saliency in PREDICTED_RISES
        session = open_session(target, config, data=config.data, sensitivity=config.sensitivity, grams=kept, half=half)
        return _prune_session(session, config)


def _aside(target: PruningTarget, config: PruneConfig) -> StoredGrams:
    """Takes what a pass over the text of refits has made; hidden states where sequential refits may aim at them."""
    return StoredGrams(target.blocks, StoredStream(target.blocks) if config.compensate == "best" else None)


def _prune_session(session: Session, config: PruneConfig) -> Pruned:
    outcome = one_shot(session, config)
    realised = _realise(config, session, outcome.architecture, ScoredRealisation(), None)
    if "predicted_rise" in outcome.facts:
        refit = realised.candidate.choice.compensation  # the prediction is the refit's, and knows of nothing behind it
        losses = candidate_losses(session, outcome.architecture) if refit is None else refit.window_losses
        found = measured_rise(session, losses)
        outcome = replace(outcome, facts={**outcome.facts, **found})
    return _write(config, session, outcome.architecture, realised, outcome)


@dataclass(frozen=True)
class _Realised:
    """What is to be written: its loss in memory, the candidate's as scored, the base's, and how it is realised."""

    loss: float
    scored_loss: float
    base_loss: float | None
    candidate: WrittenCandidate


def _realise(
    config: PruneConfig, session: Session, arch: Architecture, scored: ScoredRealisation, expected: float | None
) -> _Realised:
    """Check that the candidate's loss as scored is the journal's, then realise it as the settings say."""
    method = config.compensate if config.compensate != "auto" else scored.method
    base_loss = None if session.run is None else recorded_base_loss(session.run)
    untouched = method in ("none", "plain") and scored.method == "plain" and config.reconstruct == "none"
    if expected is not None and untouched:
        # The reloaded checkpoint is compared with the journal.
        return _Realised(expected, expected, base_loss, WrittenCandidate(arch, WrittenRealisation("plain")))
    if base_loss is None:
        base_loss = candidate_loss(session, session.space.base)
    loss = again = scored_loss(session, arch, scored)
    if expected is not None:
        compare_losses("the candidate's calibration loss", again, "the journal's", expected, session.dtype)
    candidate = written_candidate(config, session, arch, scored)
    if candidate.loss is not None:
        loss = candidate.loss
    elif scored.method != "plain":
        loss = candidate_loss(session, arch)
    return _Realised(loss, again if expected is None else expected, base_loss, candidate)


def _write(
    config: PruneConfig, session: Session, arch: Architecture, realised: _Realised, outcome: OneShot | None = None
) -> Pruned:
    """Write the checkpoint of a realised candidate, checked before its directory appears."""
    loaded, space, candidate = session.loaded, session.space, realised.candidate
    dtype, refit, reloaded = dtype_to_save(config.save_dtype), candidate.choice.compensation, list[float]()

    def card(draft: Draft) -> str:
        reloaded.append(verified_loss(session, arch, candidate.how, draft, realised.loss, dtype))
        if outcome is not None:
            write_json(draft.path / ARCHITECTURE, {"architecture": arch.to_json()})
        losses = {
            **({} if realised.base_loss is None else {"calibration loss of the base": f"{realised.base_loss:.6f}"}),
            "calibration loss as scored, nats per token": f"{realised.scored_loss:.6f}",
            "calibration loss of this checkpoint, reloaded": f"{reloaded[0]:.6f}",
            **candidate.facts(),
        }
        return pruned_card(config, session, draft, losses, outcome)

    net = session.supernet()
    outputs = None if refit is None else in_base_order(net, arch, refit.outputs)
    replaced = candidate.replaced(session)
    net.restore()  # what is cut is in the base's order
    warn_of_tokenizer(loaded)
    give_back()
    with phase("write the checkpoint"):
        draft = save_pruned(
            loaded.model,
            loaded.files,
            loaded.source.family,
            session.blocks,
            session.ordering.kept(session.blocks, arch),
            config.out,
            tensors=loaded.tensors(),
            outputs=outputs,
            trained=replaced,
            dtype=dtype,
            max_shard_size=config.shard_size,
            stub_attention=config.stub_removed_attention,
            card=card,
        )
    predicted = space.parameters(arch) + draft.stub_parameters
    if draft.parameters != predicted:
        raise RuntimeError(f"the checkpoint has {draft.parameters:,} parameters, {predicted:,} were predicted")
    candidate.finish(config)
    return Pruned(
        config.out,
        draft.parameters,
        space.parameters(space.base),
        draft.stock,
        reloaded[0],
        realised.scored_loss,
        stub_params=draft.stub_parameters,
        one_shot=None if outcome is None else dict(outcome.facts),
        **candidate.to_json(),
    )
