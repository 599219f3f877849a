"""`tracenas prune`: write the checkpoint of an architecture, exactly as it was scored, and check it."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tracenas.commands.prune.result import Pruned
from tracenas.config import PruneConfig
from tracenas.data.sources import is_tokens
from tracenas.errors import UserError
from tracenas.models.checkpoints.source import ModelSource, open_source
from tracenas.pipeline.calibration import warn_of_tokenizer
from tracenas.pipeline.one_shot import ARCHITECTURE, OneShot, as_method, one_shot
from tracenas.pipeline.refit.choice import WrittenRealisation, choose
from tracenas.pipeline.refit.fitting import recorded_loss, scored_as, scored_loss
from tracenas.pipeline.refit.text import HELD_OUT
from tracenas.pipeline.resume import CONFIG, read_settings
from tracenas.pipeline.session import CALIBRATION, ORDERING, Session, open_session, options_of, space_of
from tracenas.pipeline.verification import compare_losses, output_dtypes, verified_loss
from tracenas.rundir import provenance, read_json, require_free, write_json
from tracenas.space.architecture import Architecture

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from tracenas.models.checkpoints.writing import Draft
    from tracenas.models.surgery.ordering import Key
    from tracenas.models.surgery.supernet import Supernet

__all__ = ["as_searched", "prune", "realisation"]

_OF_THE_RUN = ("channel_quantum", "head_quantum", "kv_groups", "deploy", "saliency", "dtype", "seed", "bos")
_ONE_SHOT = (
    *("method", "params", "tolerance", "saliency", "allocation", "gamma", "kv_groups", "min_depth", "keep_layers"),
    *("channel_quantum", "head_quantum", "deploy", "samples", "seq_len", "text_field", "seed", "dtype", "bos"),
)
"""Settings that decide what a one-shot method keeps."""


def prune(config: PruneConfig) -> Pruned:
    """Cut the model to the architecture and write it, in `config.out`, as a Hugging Face checkpoint.

    With a run's best.json, the run's calibration and unit order are used: what was scored is what is pruned.
    Before the directory appears, the checkpoint is reloaded and its calibration loss compared with the score's.

    Raises:
        UserError: for wrong input; RuntimeError if the checkpoint does not reproduce the scored loss.
    """
    if config.compensate in ("auto", "none") and (config.ridge or config.compensate_samples):
        raise UserError("ridge and compensate-samples need --compensate best, ridge or sequential (auto: as scored)")
    if (config.arch is None) == (config.method is None):
        raise UserError("give --arch (an architecture) or --method (a one-shot method with --params), one of the two")
    if config.arch is None:
        return _prune_one_shot(as_method(config))
    if others := [name for name in ("params", "allocation", "gamma") if getattr(config, name) is not None]:
        raise UserError(f"{others[0]} goes with --method; the architecture decides it here")
    source = open_source(config.model, decoder_only=_for_decoders(config))
    record = read_json(config.arch)
    run = _run_of(config.arch, record)
    where, config = str(config.arch), _refittable(config, source)
    data = config.data
    if run is not None:
        if config.compensate == "best" and data is None and not (run / HELD_OUT).is_file():
            raise UserError(
                f"{run} has no {HELD_OUT}, which --compensate best compares refits on: give --data with text, or "
                f"--compensate auto (as it was scored)"
            )
        config, data = as_searched(config, run)
    space = space_of(source, config, params=None)
    arch = space.validate(Architecture.from_json(record, where=where), where=where)
    require_free(config.out, what="checkpoint directory")
    scored = scored_as(record if run is not None else None)
    expected = recorded_loss(record, config.arch) if run is not None else None
    session = open_session(source, space, config, data=data, run=run)
    made = _realised(config, session, arch, scored, expected)
    return _write(config, source, session, arch, made)


def _for_decoders(config: PruneConfig) -> str:
    """What of the settings only decoder-only models can have; empty if nothing."""
    if config.compensate in ("ridge", "sequential"):
        return f"--compensate {config.compensate}"
    if config.compensate == "best" and (config.ridge or config.compensate_samples):
        return "ridge, compensate-samples"
    return "--stub-removed-attention" if config.stub_removed_attention else ""


def _refittable(config: PruneConfig, source: ModelSource) -> PruneConfig:
    """The settings for the model's kind: encoder–decoder models are not refitted, so `best` is as scored."""
    if config.compensate == "best" and source.family.stacks:
        return config.model_copy(update={"compensate": "auto"})
    return config


def _prune_one_shot(config: PruneConfig) -> Pruned:
    """The checkpoint of what a method makes of the budget."""
    source = open_source(config.model, decoder_only=_for_decoders(config))
    config = _refittable(config, source)
    space = space_of(source, config, params=config.params, tolerance=config.tolerance)
    require_free(config.out, what="checkpoint directory")
    session = open_session(source, space, config, data=config.data)
    found = one_shot(session, config)
    made = _realised(config, session, found.architecture, ("plain", 0.0), None)
    return _write(config, source, session, found.architecture, made, found)


@dataclass(frozen=True)
class _Realised:
    """What is to be written, beside the cut: its loss in memory, the candidate's as scored, refitted outputs."""

    loss: float
    scored_loss: float
    choice: WrittenRealisation
    outputs: "Mapping[Key, torch.Tensor] | None" = None


def _realised(
    config: PruneConfig,
    session: Session,
    arch: Architecture,
    scored: tuple[str, float],
    expected: float | None,
) -> _Realised:
    """Check that the candidate's loss as scored is the journal's, then realise it as the settings say.

    Afterwards the loaded model's units are in the base's order again.
    """
    method = config.compensate if config.compensate != "auto" else scored[0]
    if expected is not None and method in ("none", "plain") and scored[0] == "plain":
        return _Realised(
            expected, expected, WrittenRealisation("plain")
        )  # the reloaded checkpoint is compared with the journal
    from tracenas.refits.ridge import in_base_order

    net = session.supernet()
    again = scored_loss(session, net, arch, scored)
    if expected is not None:
        compare_losses("the candidate's calibration loss", again, "the journal's", expected, session.dtype)
    choice = realisation(config, session, net, arch, scored)
    if choice.compensation is None:
        outputs, loss = None, scored_loss(session, net, arch, ("plain", 0.0))
    else:
        outputs, loss = in_base_order(net, arch, choice.compensation.outputs), choice.compensation.loss
    net.restore()
    return _Realised(loss, again if expected is None else expected, choice, outputs)


def realisation(
    config: PruneConfig,
    session: Session,
    net: "Supernet",
    arch: Architecture,
    scored: tuple[str, float],
) -> WrittenRealisation:
    """The candidate as the settings realise it in a checkpoint of its dtypes."""
    return choose(config, session, net, arch, scored, output_dtypes(session, net.blocks, config.save_dtype))


def _write(
    config: PruneConfig,
    source: ModelSource,
    session: Session,
    arch: Architecture,
    made: _Realised,
    found: OneShot | None = None,
) -> Pruned:
    from tracenas.models.checkpoints.loading import dtype_to_save
    from tracenas.models.checkpoints.writing import save_pruned

    blocks = session.loaded.blocks(options_of(config))
    kept = session.ordering.kept(blocks, arch)
    losses = {"scored": made.scored_loss}
    dtype = dtype_to_save(config.save_dtype)

    def card(draft: "Draft") -> str:
        refits = None if made.choice.compensation is None else made.choice.compensation.outputs
        losses["reloaded"] = verified_loss(session, blocks, arch, refits, draft, made.loss, dtype)
        if found is not None:
            write_json(draft.path / ARCHITECTURE, {"architecture": arch.to_json()})
        return _card(config, source, session, draft, losses, made, found)

    warn_of_tokenizer(session.loaded)
    draft = save_pruned(
        session.loaded.model,
        session.loaded.files,
        source.family,
        blocks,
        kept,
        config.out,
        tensors=session.loaded.tensors(),
        outputs=made.outputs,
        dtype=dtype,
        max_shard_size=config.shard_size,
        stub_attention=config.stub_removed_attention,
        card=card,
    )
    base = session.space.parameters(session.space.base)
    predicted = session.space.parameters(arch) + draft.stub_parameters
    if draft.parameters != predicted:
        raise RuntimeError(f"the checkpoint has {draft.parameters:,} parameters, {predicted:,} were predicted")
    refit = made.choice.compensation
    return Pruned(
        config.out,
        draft.parameters,
        base,
        draft.stock,
        losses["reloaded"],
        losses["scored"],
        None if refit is None else refit.to_json(),
        made.choice.to_json(),
        draft.stub_parameters,
        None if found is None else dict(found.facts),
    )


def _run_of(arch: Path, record: object) -> Path | None:
    """The run directory that `arch` is the best.json of, None for an architecture from elsewhere."""
    directory = arch.parent
    is_best = isinstance(record, dict) and "architecture" in record
    if is_best and (directory / CALIBRATION).is_file() and (directory / ORDERING).is_file():
        return directory
    return None


def as_searched(config: PruneConfig, run: Path) -> tuple[PruneConfig, str | None]:
    """The settings that decide which units are kept, and the data (unless given), from the run's config.yaml."""
    stored = read_settings(run / CONFIG)
    for key in (*_OF_THE_RUN, "samples", "seq_len"):
        asked = getattr(config, key)
        if config.asks_for(key) and asked != "auto" and asked != stored.get(key):
            name = key.replace("_", "-")
            raise UserError(f"{name} {asked}: {run} was searched with {stored.get(key)}, and decides it; leave it out")
    update = {key: stored[key] for key in _OF_THE_RUN if key in stored}
    if config.data is None:
        update["text_field"] = config.text_field or stored.get("text_field")
    elif is_tokens(config.data):
        update.pop("bos", None)  # token ids are as they are, and say so themselves
    return config.model_copy(update=update), config.data or stored.get("data")


def _card(
    config: PruneConfig,
    source: ModelSource,
    session: Session,
    draft: "Draft",
    losses: dict[str, float],
    made: _Realised,
    found: OneShot | None,
) -> str:
    from tracenas.models.checkpoints.card import license_of, model_card
    from tracenas.models.checkpoints.published import published
    from tracenas.pipeline.serving import serving

    command = ["tracenas", "prune", published(config.model), "--out", config.out.name]
    if found is None:
        command += ["--arch", published(str(config.arch))]
    else:
        given = {name: getattr(config, name) for name in _ONE_SHOT if name in config.model_fields_set}
        command += [f"{name}={value}" for name, value in given.items() if value is not None]
    if config.data is not None:
        command += ["--data", published(config.data)]
    if config.compensate != "best":
        command += ["--compensate", config.compensate]
    if config.compensate_samples is not None:
        command += ["--compensate-samples", str(config.compensate_samples)]
    if config.ridge is not None:
        command += ["--ridge", f"{config.ridge:g}"]
    if config.stub_removed_attention:
        command.append("--stub-removed-attention")
    if found is None and session.run is None and config.bos != "auto":
        command += ["--bos", config.bos]
    before, (count, length) = session.space.parameters(session.space.base), session.tokens.shape
    return model_card(
        config.out.name,
        source.name,
        session.loaded.blocks(options_of(config)),
        draft.layers,
        serving=serving(config.out.name, source.family, draft.config),
        parameters=(before, draft.parameters),
        stubs=draft.stub_parameters,
        pipeline="text2text-generation" if draft.config.get("is_encoder_decoder") else "text-generation",
        command=shlex.join(command),
        numbers={
            "calibration windows": f"{count} of {length} tokens, {session.start}",
            "calibration loss as scored, nats per token": f"{losses['scored']:.6f}",
            "calibration loss of this checkpoint, reloaded": f"{losses['reloaded']:.6f}",
            **made.choice.facts(),
            **(found.card() if found is not None else {}),
        },
        license=license_of(session.loaded.source.path),
        origin=source.origin,
        provenance=provenance(seed=config.seed),
    )
