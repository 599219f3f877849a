"""`tracenas prune`: write the checkpoint of an architecture, exactly as it was scored, and check it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracenas.config import PruneConfig
from tracenas.errors import UserError
from tracenas.models.source import ModelSource, open_source
from tracenas.rundir import provenance, read_json, require_free
from tracenas.space.architecture import Architecture
from tracenas.stages.compensation import compensate, scored_as, scored_loss, scored_text, text_of
from tracenas.stages.results import Table, print_table, to_plain
from tracenas.stages.run_settings import CONFIG, read_settings
from tracenas.stages.session import CALIBRATION, ORDERING, Session, open_session, options_of, space_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from tracenas.models.checkpoint import Draft
    from tracenas.models.ordering import Key
    from tracenas.models.supernet import Supernet
    from tracenas.stages.compensation import Compensation

__all__ = ["Pruned", "prune"]

_OF_THE_RUN = ("channel_quantum", "head_quantum", "kv_groups", "saliency", "dtype", "seed")
_TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2}


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
    """

    path: Path
    params: int
    base_params: int
    stock: bool
    loss: float
    scored_loss: float
    compensation: dict[str, Any] | None = None

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
        if (made := self.compensation) is not None:
            text = "other text" if made["separate_text"] else "the calibration itself"
            rows += [
                ("compensation", f"{made['method']}, ridge {made['ridge']:g}, {made['tokens']:,} tokens ({text})"),
                ("calibration loss without it", f"{made['plain_loss']:.6f}"),
            ]
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
    source = open_source(config.model)
    record = read_json(config.arch)
    run = _run_of(config.arch, record)
    data = config.data
    if run is not None:
        config, data = _as_searched(config, run)
    space = space_of(source, config, params=None)
    arch = space.validate(Architecture.from_json(record, where=str(config.arch)), where=str(config.arch))
    require_free(config.out, what="checkpoint directory")
    scored = scored_as(record if run is not None else None)
    session = open_session(source, space, config, data=data, run=run)
    expected = record.get("loss") if run is not None else None
    made = _realised(config, source, session, arch, scored, None if expected is None else float(expected))
    return _write(config, source, session, arch, made)


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
        _compare("the candidate's calibration loss", again, "the journal's", expected, _dtype_name(session))
    if method in ("none", "plain"):
        plain = scored_loss(session, net, arch, ("plain", 0.0))
        made, outputs, loss = None, None, plain
    else:
        made = _refitted(config, source, session, net, arch, method, scored[1])
        outputs, loss = in_base_order(net, arch, made.outputs), made.loss
    net.restore()
    return _Realised(loss, again if expected is None else expected, made, outputs)


def _refitted(
    config: PruneConfig,
    source: ModelSource,
    session: Session,
    net: "Supernet",
    arch: Architecture,
    method: str,
    scored_ridge: float,
) -> "Compensation":
    """The candidate compensated: as it was scored (`auto`), or by the method, text and strength that were asked for."""
    stored = _save_dtype(config, source, session)
    if config.compensate == "auto":
        return compensate(session, net, arch, method, scored_text(session), ridge=scored_ridge, stored=stored)
    given = config.data is not None
    text = text_of(session, required=given and session.run is not None, reuse=not given)
    return compensate(session, net, arch, method, text, ridge=config.ridge, stored=stored)


def _write(config: PruneConfig, source: ModelSource, session: Session, arch: Architecture, made: _Realised) -> Pruned:
    from tracenas.models.checkpoint import save_pruned

    blocks = session.loaded.blocks(options_of(config))
    kept = session.ordering.kept(blocks, arch)
    losses = {"scored": made.scored_loss}

    def card(draft: "Draft") -> str:
        losses["reloaded"] = _loss_of(draft.path, config, session)
        what = "the scored candidate's" if made.compensation is None else "the compensated candidate's"
        name = _dtype_name(session)
        _compare("the checkpoint's calibration loss", losses["reloaded"], what, made.loss, name)
        return _card(config, source, session, draft, losses, made)

    draft = save_pruned(
        session.loaded.model,
        session.loaded.tokenizer,
        source.family,
        blocks,
        kept,
        config.out,
        outputs=made.outputs,
        dtype=_save_dtype(config, source, session),
        max_shard_size=config.shard_size,
        card=card,
    )
    base = session.space.parameters(session.space.base)
    predicted = session.space.parameters(arch)
    if draft.parameters != predicted:
        raise RuntimeError(f"the checkpoint has {draft.parameters:,} parameters, {predicted:,} were predicted")
    facts = made.compensation.to_json() if made.compensation is not None else None
    return Pruned(config.out, draft.parameters, base, draft.stock, losses["reloaded"], losses["scored"], facts)


def _run_of(arch: Path, record: object) -> Path | None:
    """The run directory that `arch` is the best.json of, None for an architecture from elsewhere."""
    directory = arch.parent
    is_best = isinstance(record, dict) and "architecture" in record
    if is_best and (directory / CALIBRATION).is_file() and (directory / ORDERING).is_file():
        return directory
    return None


def _as_searched(config: PruneConfig, run: Path) -> tuple[PruneConfig, str | None]:
    """The settings that decide which units are kept, and the data (unless given), from the run's config.yaml."""
    stored = read_settings(run / CONFIG)
    update = {key: stored[key] for key in _OF_THE_RUN if key in stored}
    if config.data is None:
        update["text_field"] = config.text_field or stored.get("text_field")
    return config.model_copy(update=update), config.data or stored.get("data")


def _dtype_name(session: Session) -> str:
    return str(session.loaded.dtype).removeprefix("torch.")


def _save_dtype(config: PruneConfig, source: ModelSource, session: Session) -> Any:
    """The checkpoint's dtype: as asked, or the base's own."""
    import torch

    if config.save_dtype != "auto":
        return torch.float32 if config.save_dtype == "fp32" else torch.bfloat16
    name = source.config.get("dtype") or source.config.get("torch_dtype")
    stored = getattr(torch, str(name), None) if name else None
    return stored if isinstance(stored, torch.dtype) else session.loaded.dtype


def _loss_of(path: Path, config: PruneConfig, session: Session) -> float:
    """Calibration loss of the written checkpoint, loaded again from disk."""
    from tracenas.evaluation.perplexity import perplexity
    from tracenas.models.loading import load

    dtype = "bf16" if _dtype_name(session) == "bfloat16" else "fp32"
    again = load(str(path), device=str(session.loaded.device), dtype=dtype)
    return perplexity(again.model, session.tokens, session.micro_batch).nll


def _compare(what: str, found: float, whose: str, expected: float, dtype: str) -> None:
    tolerance = _TOLERANCE.get(dtype, 1e-4) * max(1.0, abs(expected))
    if not abs(found - expected) <= tolerance:
        raise UserError(
            f"{what} is {found:.6f}, {whose} {expected:.6f}: not the model that was scored (has the base model "
            f"changed since the search?); nothing was written"
        )


def _card(
    config: PruneConfig,
    source: ModelSource,
    session: Session,
    draft: "Draft",
    losses: dict[str, float],
    made: _Realised,
) -> str:
    from tracenas.models.card import license_of, model_card

    command = ["tracenas", "prune", config.model, "--arch", str(config.arch), "--out", str(config.out)]
    if config.data is not None:
        command += ["--data", config.data]
    if config.compensate != "auto":
        command += ["--compensate", config.compensate]
    if config.compensate_samples is not None:
        command += ["--compensate-samples", str(config.compensate_samples)]
    if config.ridge is not None:
        command += ["--ridge", f"{config.ridge:g}"]
    before = session.space.parameters(session.space.base)
    return model_card(
        config.out.name,
        source.name,
        session.loaded.blocks(options_of(config)),
        draft.layers,
        stock=draft.stock,
        parameters=(before, draft.parameters),
        command=" ".join(command),
        numbers={
            "calibration loss as scored, nats per token": f"{losses['scored']:.6f}",
            "calibration loss of this checkpoint, reloaded": f"{losses['reloaded']:.6f}",
            **(made.compensation.facts() if made.compensation is not None else {"compensation": "none"}),
        },
        license=license_of(source.path) if source.path is not None else None,
        provenance=provenance(seed=config.seed),
    )
