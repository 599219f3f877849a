"""Opening a session: the model and its calibration are loaded, the units ranked, or read where a run holds them."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from tracenas.config import CalibrationConfig
from tracenas.data.tokens import load_tokens, save_tokens
from tracenas.data.windows import WindowStart, token_file_start
from tracenas.errors import UserError
from tracenas.families import Block, Key
from tracenas.models.checkpoints.loading import LoadedModel
from tracenas.models.functionals.memory import within_memory
from tracenas.models.surgery.ordering import Ordering
from tracenas.paging import in_memory
from tracenas.pipeline.calibration import calibration_tokens, window_start
from tracenas.pipeline.device_memory import streaming
from tracenas.pipeline.host_memory import FEWER_TOKENS, keeping
from tracenas.pipeline.loading import load_model
from tracenas.pipeline.precision import in_half_precision
from tracenas.pipeline.refit import STATISTICS_TOKENS
from tracenas.pipeline.refit.statistics import StoredGrams
from tracenas.pipeline.refit.text import compensation_text, reserve_held_out
from tracenas.pipeline.run_directory import CALIBRATION, ORDERING
from tracenas.pipeline.sensitivity import run_table
from tracenas.pipeline.session import Calibrated, RefitSettings, Session
from tracenas.pipeline.target import PruningTarget
from tracenas.reporting.progress import phase
from tracenas.saliency import FOR_REFITS, OF_TABLES, PLAIN, PREDICTED_RISES, SALIENCIES
from tracenas.saliency.fisher import as_saliency
from tracenas.scoring.workload import default_micro_batch
from tracenas.threads import set_threads

__all__ = ["RankedUnits", "open_session", "refit_settings", "stored_ordering"]

_log = logging.getLogger("tracenas")


class RankedUnits(NamedTuple):
    """A model's units in an order.

    Args:
        importance: I_l per (block, sub-block) (TraceNAS A.1).
        saliency: by what.
    """

    ordering: Ordering
    importance: Mapping[Key, float]
    saliency: str


def open_session(
    target: PruningTarget,
    config: CalibrationConfig,
    *,
    data: str | None,
    run: Path | None = None,
    hold_out: bool = False,
    sensitivity: Path | None = None,
    grams: StoredGrams | None = None,
    half: bool = False,
    workers: int = 1,
) -> Session:
    """Load the model and its calibration; read `run`'s tokens and unit order where they are there, else make them.

    Args:
        data: where calibration text comes from; None if `run` holds the tokens.
        run: run directory to read `calibration.safetensors` and `ordering.safetensors` from, and to write to.
        hold_out: store text there that refits can be compared on.
        sensitivity: table that saliencies which are predicted rises are read from, in place of measuring one.
        grams: where the pass that measures one puts its Gram matrices aside for refits.
        workers: sub-blocks whose widths are swept at a time.
        half: whether dtype `auto` may come to bf16 on a CPU (`precision`).
    """
    threads = set_threads(config.threads)
    if data is None and (run is None or not (run / CALIBRATION).is_file()):
        raise UserError("'data' is required: calibration text or tokens (the architecture is not a run's best.json)")
    source, keep = target.source, keeping(target.source, config)
    loaded = load_model(source, config, keep, streamed=streaming(source, config))
    with phase("read text"):
        tokens, start = _tokens(loaded, config, data, run)
    if half:
        parameters = target.space.parameters(target.space.base)
        loaded = in_half_precision(source, config, loaded, parameters, tokens)
    micro_batch = config.batch or _micro_batch(target, loaded, tokens.shape[1])
    settings = refit_settings(config, data)
    calibrated = Calibrated(target, loaded, tokens, start, run, config.seed, settings, grams=grams, sweepers=workers)
    if hold_out:
        with phase("hold out text"):
            reserve_held_out(calibrated)
    ranked = _ranked_units(calibrated, config.saliency, micro_batch, sensitivity)
    return Session(**vars(calibrated), **ranked._asdict(), micro_batch=micro_batch, threads=threads)


def _micro_batch(target: PruningTarget, loaded: LoadedModel, length: int) -> int:
    """Sequences per forward pass where the settings say nothing."""
    element, kind = loaded.dtype.itemsize, loaded.device.type
    default = default_micro_batch(target.blocks, target.space.base, target.hidden, length, element, kind)
    short = loaded.keep is not in_memory and kind == "cpu"
    return min(default, max(1, FEWER_TOKENS // length)) if short else default


def refit_settings(config: CalibrationConfig, data: str | None) -> RefitSettings:
    """What refits are told by these settings."""
    tokens = STATISTICS_TOKENS if config.counts_refit_tokens else None
    return RefitSettings(
        data, config.text_field, config.bos, config.compensate_samples, config.ridge, config.refit_scale, tokens
    )


def _tokens(
    loaded: LoadedModel, config: CalibrationConfig, data: str | None, run: Path | None
) -> tuple[torch.Tensor, WindowStart]:
    stored = None if run is None else run / CALIBRATION
    if stored is not None and stored.is_file():
        return load_tokens(stored), token_file_start(stored)
    assert data is not None
    tokens = calibration_tokens(
        loaded,
        data,
        samples=config.samples,
        seq_len=config.seq_len,
        seed=config.seed,
        text_field=config.text_field,
        bos=config.bos,
        longest=config.longest,
    )
    start = window_start(loaded, data, config.bos)
    if stored is not None:
        save_tokens(stored, tokens, {"source": data, "model": loaded.source.name, **start.note})
    return tokens, start


def stored_ordering(path: Path, blocks: Sequence[Block]) -> RankedUnits:
    """The unit order and the importance of sub-blocks that a run keeps.

    Raises:
        UserError: if the file is damaged or of another model.
    """
    ordering, metadata = Ordering.load(path, blocks)
    raw = json.loads(metadata.get("importance", "{}"))
    importance = {(int(k.split(".")[0]), k.split(".")[1]): float(v) for k, v in raw.items()}
    return RankedUnits(ordering, importance, metadata.get("saliency", PLAIN))


def _ranked_units(calibrated: Calibrated, saliency: str, micro_batch: int, sensitivity: Path | None) -> RankedUnits:
    """The run's, where it has them; `auto` is a table's order, or the plain one where no table can be measured.

    What ranks units for a refit is measured on the text that is refitted on.
    """
    path = None if calibrated.run is None else calibrated.run / ORDERING
    if path is not None and path.is_file():
        return stored_ordering(path, calibrated.blocks)
    try:
        named = OF_TABLES if saliency == "auto" else saliency
        ranked = _measured_units(calibrated, named, micro_batch, sensitivity)
    except UserError as error:
        if saliency != "auto" or sensitivity is not None:
            raise
        _log.warning("no sensitivity table, so units are ranked by %s: %s", PLAIN, error)
        ranked = _measured_units(calibrated, PLAIN, micro_batch, None)
    if path is not None:
        written = {f"{i}.{name}": v for (i, name), v in ranked.importance.items()}
        ranked.ordering.save(path, {"saliency": ranked.saliency, "importance": json.dumps(written)})
    return ranked


def _measured_units(calibrated: Calibrated, saliency: str, micro_batch: int, sensitivity: Path | None) -> RankedUnits:
    """The order by a saliency, measured now or read from a table."""
    loaded, blocks = calibrated.loaded, calibrated.blocks
    if saliency in PREDICTED_RISES:
        table = run_table(calibrated, micro_batch, compensated=saliency in FOR_REFITS, file=sensitivity)
        per_unit, importance = as_saliency(table)
    else:
        rank = SALIENCIES.get(saliency)
        tokens = compensation_text(calibrated, keep=True).tokens if saliency in FOR_REFITS else calibrated.tokens
        with phase(f"saliency {saliency}"):
            per_unit, importance = within_memory(
                lambda: rank(loaded.model, blocks, tokens.to(loaded.device), micro_batch),
                lambda count: rank(loaded.model, blocks, tokens[:count].to(loaded.device), count),
                what=f"the base model's pass for the saliency {saliency}",
                micro_batch=min(micro_batch, len(tokens)),
                device=loaded.device,
            )
    return RankedUnits(Ordering.from_saliency(blocks, per_unit), importance, saliency)
