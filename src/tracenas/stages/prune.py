"""`tracenas prune`: write the checkpoint of an architecture, exactly as it was scored, and check it."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracenas.config import PruneConfig
from tracenas.data.sources import is_tokens
from tracenas.errors import UserError
from tracenas.models.source import ModelSource, open_source
from tracenas.rundir import provenance, read_json, require_free, write_json
from tracenas.space.architecture import Architecture
from tracenas.stages.compensation import compensate, recorded_loss, scored_as, scored_loss, scored_text, text_of
from tracenas.stages.one_shot import ARCHITECTURE, OneShot, as_method, one_shot
from tracenas.stages.results import Table, print_table, to_plain
from tracenas.stages.run_settings import CONFIG, read_settings
from tracenas.stages.session import CALIBRATION, ORDERING, Session, open_session, options_of, space_of
from tracenas.stages.verification import compare_losses, output_dtypes, verified_loss

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from tracenas.models.checkpoint import Draft
    from tracenas.models.ordering import Key
    from tracenas.models.supernet import Supernet
    from tracenas.stages.compensation import Compensation

__all__ = ["Pruned", "as_searched", "prune", "refitted"]

_OF_THE_RUN = ("channel_quantum", "head_quantum", "kv_groups", "deploy", "saliency", "dtype", "seed", "bos")
_ONE_SHOT = (
    *("method", "params", "tolerance", "saliency", "allocation", "gamma", "kv_groups", "min_depth", "keep_layers"),
    *("channel_quantum", "head_quantum", "deploy", "samples", "seq_len", "text_field", "seed", "dtype", "bos"),
)
"""Settings that decide what a one-shot method keeps."""


@dataclass(frozen=True)
class Pruned:
    """A written checkpoint.

    Args:
        path: its directory.
        params, base_params: parameters of the checkpoint and of the model it was cut from.
        stock: whether transformers loads it without custom code.
        loss: of the reloaded checkpoint on the calibration, nats per token.
        scored_loss: of the candidate as it was scored.
        compensation: method, strength, text and losses of the refit; None if there was none.
        stub_params: those of `params` that are zeros in place of removed attention.
        one_shot: method, saliency, allocation and γ, where the architecture is a one-shot method's.
    """

    path: Path
    params: int
    base_params: int
    stock: bool
    loss: float
    scored_loss: float
    compensation: dict[str, Any] | None = None
    stub_params: int = 0
    one_shot: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        plain: dict[str, Any] = to_plain(vars(self))
        return plain

    def show(self) -> None:
        """A summary on stdout."""
        form = "stock configuration" if self.stock else "heterogeneous, with its code"
        rows = [
            ("checkpoint", str(self.path)),
            ("form", form),
            (
                "parameters",
                f"{self.params:,} of {self.base_params:,} ({100 * self.params / self.base_params:.1f}%)",
            ),
            ("calibration loss, reloaded", f"{self.loss:.6f}"),
            ("calibration loss, as scored", f"{self.scored_loss:.6f}"),
        ]
        if self.stub_params:
            rows.insert(3, ("of these, zeros in place of attention", f"{self.stub_params:,}"))
        if self.one_shot is not None:
            how = self.one_shot
            rows.insert(0, ("method", f"{how['method']} (saliency {how['saliency']}, allocation {how['allocation']})"))
            rows += [("γ", f"{how['gamma']:.4g}")] if "gamma" in how else []
        if (made := self.compensation) is not None:
            text = "other text" if made["separate_text"] else "the calibration itself"
            rows += [
                ("compensation", f"{made['method']}, ridge {made['ridge']:g}, {made['tokens']:,} tokens ({text})"),
                ("calibration loss without it", f"{made['plain_loss']:.6f}"),
            ]
            if made.get("not_refitted"):
                rows.append(("not refitted (fused experts)", ", ".join(made["not_refitted"])))
        print_table(Table("pruned", ("", "value"), rows))


def prune(config: PruneConfig) -> Pruned:
    """Cut the model to the architecture and write it, in `config.out`, as a Hugging Face checkpoint.

    With a run's best.json, the run's calibration and unit order are used: what was scored is what is pruned.
    Before the directory appears, the checkpoint is reloaded and its calibration loss compared with the score's.

    Raises:
        UserError: for wrong input; RuntimeError if the checkpoint does not reproduce the scored loss.
    """
    if config.compensate in ("auto", "none") and (config.ridge or config.compensate_samples):
        raise UserError("ridge and compensate-samples need --compensate ridge or sequential (auto: as it was scored)")
    if (config.arch is None) == (config.method is None):
        raise UserError("give --arch (an architecture) or --method (a one-shot method with --params), one of the two")
    if config.arch is None:
        return _prune_one_shot(as_method(config))
    if others := [name for name in ("params", "allocation", "gamma") if getattr(config, name) is not None]:
        raise UserError(f"{others[0]} goes with --method; the architecture decides it here")
    source = open_source(config.model, decoder_only=_for_decoders(config))
    record = read_json(config.arch)
    run = _run_of(config.arch, record)
    data = config.data
    if run is not None:
        config, data = as_searched(config, run)
    space = space_of(source, config, params=None)
    arch = space.validate(Architecture.from_json(record, where=str(config.arch)), where=str(config.arch))
    require_free(config.out, what="checkpoint directory")
    scored = scored_as(record if run is not None else None)
    expected = recorded_loss(record, config.arch) if run is not None else None
    session = open_session(source, space, config, data=data, run=run)
    made = _realised(config, source, session, arch, scored, expected)
    return _write(config, source, session, arch, made)


def _for_decoders(config: PruneConfig) -> str:
    """What of the settings only decoder-only models can have; empty if nothing."""
    if config.compensate in ("ridge", "sequential"):
        return f"--compensate {config.compensate}"
    return "--stub-removed-attention" if config.stub_removed_attention else ""


def _prune_one_shot(config: PruneConfig) -> Pruned:
    """The checkpoint of what a method makes of the budget."""
    source = open_source(config.model, decoder_only=_for_decoders(config))
    space = space_of(source, config, params=config.params, tolerance=config.tolerance)
    require_free(config.out, what="checkpoint directory")
    session = open_session(source, space, config, data=config.data)
    found = one_shot(session, config)
    made = _realised(config, source, session, found.architecture, ("plain", 0.0), None)
    return _write(config, source, session, found.architecture, made, found)


@dataclass(frozen=True)
class _Realised:
    """What is to be written, beside the cut: its loss in memory, the candidate's as scored, refitted outputs."""

    loss: float
    scored_loss: float
    compensation: "Compensation | None" = None
    outputs: "Mapping[Key, torch.Tensor] | None" = None


def _realised(
    config: PruneConfig,
    source: ModelSource,
    session: Session,
    arch: Architecture,
    scored: tuple[str, float],
    expected: float | None,
) -> _Realised:
    """Realise the candidate as asked, and check that its loss as scored is the journal's.

    Afterwards the loaded model's units are in the base's order again.
    """
    method = config.compensate if config.compensate != "auto" else scored[0]
    if expected is not None and method in ("none", "plain") and scored[0] == "plain":
        return _Realised(expected, expected)  # the reloaded checkpoint is compared with the journal itself
    from tracenas.models.refit import in_base_order

    net = session.supernet()
    again = scored_loss(session, net, arch, scored)
    if expected is not None:
        compare_losses("the candidate's calibration loss", again, "the journal's", expected, session.dtype)
    if method in ("none", "plain"):
        plain = scored_loss(session, net, arch, ("plain", 0.0))
        made, outputs, loss = None, None, plain
    else:
        made = refitted(config, source, session, net, arch, method, scored[1])
        outputs, loss = in_base_order(net, arch, made.outputs), made.loss
    net.restore()
    return _Realised(loss, again if expected is None else expected, made, outputs)


def refitted(
    config: PruneConfig,
    source: ModelSource,
    session: Session,
    net: "Supernet",
    arch: Architecture,
    method: str,
    scored_ridge: float,
) -> "Compensation":
    """The candidate compensated: as it was scored (`auto`), or by the method, text and strength that were asked for."""
    stored = output_dtypes(session, net.blocks, config.save_dtype)
    if config.compensate == "auto":
        return compensate(session, net, arch, method, scored_text(session), ridge=scored_ridge, stored=stored)
    given = config.data is not None
    text = text_of(session, required=given and session.run is not None, reuse=not given)
    return compensate(session, net, arch, method, text, ridge=config.ridge, stored=stored)


def _write(
    config: PruneConfig,
    source: ModelSource,
    session: Session,
    arch: Architecture,
    made: _Realised,
    found: OneShot | None = None,
) -> Pruned:
    from tracenas.models.checkpoint import save_pruned
    from tracenas.models.loading import dtype_to_save

    blocks = session.loaded.blocks(options_of(config))
    kept = session.ordering.kept(blocks, arch)
    losses = {"scored": made.scored_loss}
    dtype = dtype_to_save(config.save_dtype)

    def card(draft: "Draft") -> str:
        refits = None if made.compensation is None else made.compensation.outputs
        losses["reloaded"] = verified_loss(session, blocks, arch, refits, draft, made.loss, dtype)
        if found is not None:
            write_json(draft.path / ARCHITECTURE, {"architecture": arch.to_json()})
        return _card(config, source, session, draft, losses, made, found)

    draft = save_pruned(
        session.loaded.model,
        session.loaded.tokenizer,
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
    facts = made.compensation.to_json() if made.compensation is not None else None
    how = None if found is None else dict(found.facts)
    made_of = (config.out, draft.parameters, base, draft.stock)
    return Pruned(*made_of, losses["reloaded"], losses["scored"], facts, draft.stub_parameters, how)


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
    from tracenas.models.card import license_of, model_card
    from tracenas.stages.serving import serving

    command = ["tracenas", "prune", config.model, "--out", str(config.out)]
    if found is None:
        command += ["--arch", str(config.arch)]
    else:
        given = {name: getattr(config, name) for name in _ONE_SHOT if name in config.model_fields_set}
        command += [f"{name}={value}" for name, value in given.items() if value is not None]
    if config.data is not None:
        command += ["--data", config.data]
    if config.compensate != "auto":
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
            **(made.compensation.facts() if made.compensation is not None else {"compensation": "none"}),
            **(found.card() if found is not None else {}),
        },
        license=license_of(session.loaded.source.path),
        origin=source.origin,
        provenance=provenance(seed=config.seed),
    )
