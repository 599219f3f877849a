"""`tracenas select-calibration`: which of K calibration sets prunes to the smallest divergence (NIRVANA §4.3)."""

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tracenas.commands.select_calibration.measuring import SetMeasurer, in_worker, measuring
from tracenas.config import SelectCalibrationConfig
from tracenas.data.calibration import DEFAULT_SAMPLES
from tracenas.data.further import overlaps
from tracenas.data.sources import probe
from tracenas.data.tokens import default_micro_batch, save_tokens
from tracenas.error_log import error_log, log_beside
from tracenas.errors import UserError
from tracenas.locks import locked
from tracenas.models.checkpoints.loading import LoadedModel
from tracenas.models.checkpoints.source import open_source
from tracenas.models.functionals.loss import predicting_states
from tracenas.pipeline.budgets import resolve_budgets
from tracenas.pipeline.calibration import calibration_tokens, held_out, window_start
from tracenas.pipeline.device_memory import streaming
from tracenas.pipeline.host_memory import keeping
from tracenas.pipeline.loading import load_model
from tracenas.pipeline.method import resolve_method
from tracenas.pipeline.target import PruningTarget
from tracenas.pipeline.workers import answering, require_cpu, with_threads, with_workers
from tracenas.reporting.progress import phase
from tracenas.reporting.terminal import Outcome, Table, to_plain
from tracenas.threads import set_threads

__all__ = ["CalibrationSet", "Selected", "select_calibration"]


@dataclass(frozen=True)
class CalibrationSet:
    """One calibration set and what it led to.

    Args:
        number: from 0, in the order in which the sets were drawn.
        kl: KL(dense ‖ pruned) on held-out text of the same source, nats per token.
        second_kl: the same on the second source; None without one.
        params: of the pruned model.
    """

    number: int
    kl: float
    second_kl: float | None
    params: int

    @property
    def score(self) -> float:
        """What decides: the mean over the sources."""
        return self.kl if self.second_kl is None else (self.kl + self.second_kl) / 2


@dataclass(frozen=True)
class Selected(Outcome):
    """The chosen set, and all that were tried.

    Args:
        path: the token file.
        candidates: in the order in which they were drawn.
        settings: method, budget, and sizes of the sets and texts.
    """

    path: Path
    candidates: tuple[CalibrationSet, ...]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def best(self) -> CalibrationSet:
        """The one with the smallest divergence, the first of equals."""
        return min(self.candidates, key=lambda c: c.score)

    def spread(self) -> dict[str, dict[str, float]]:
        """Mean, standard deviation, smallest and largest of the divergences, by text."""
        columns = {"kl": [c.kl for c in self.candidates]}
        if self.best.second_kl is not None:
            columns["second_kl"] = [c.second_kl for c in self.candidates if c.second_kl is not None]
        return {
            name: {
                "mean": statistics.mean(values),
                "std": statistics.stdev(values),
                "min": min(values),
                "max": max(values),
            }
            for name, values in columns.items()
        }

    def records(self) -> list[dict[str, Any]]:
        """Every set that was tried."""
        return [{**vars(c), "score": c.score} for c in self.candidates]

    def to_json(self) -> Any:
        """For `--json`."""
        return to_plain(
            {
                "path": self.path,
                "best": self.best.number,
                "candidates": self.records(),
                **self.spread(),
                **self.settings,
            }
        )

    def tables(self) -> list[Table]:
        """All candidates, and their spread."""
        spread = self.spread()
        rows = [
            (f"{c.number}{' (kept)' if c is self.best else ''}", *(f"{vars(c)[name]:.4f}" for name in spread))
            for c in self.candidates
        ]
        rows += [(key, *(f"{values[key]:.4f}" for values in spread.values())) for key in ("mean", "std", "min", "max")]
        columns = ("calibration set", "held out", "second source")[: 1 + len(spread)]
        s = self.settings
        note = f"kept  {self.path} ({s['samples']} sequences of {s['seq_len']} tokens)"
        size = s["params"] or ", ".join(f"{name} {limit}" for name, limit in s["budgets"].items())
        return [Table(f"KL(dense ‖ {s['method']} at {size}), nats per token", columns, rows, [note])]


def select_calibration(config: SelectCalibrationConfig) -> Selected:
    """Draw K sets, prune with each, keep the one whose pruned model diverges least from the dense one.

    Sets are disjoint windows of one seeded draw. Held-out windows that repeat text of any set are left out.

    Raises:
        UserError: for wrong input; where the data holds fewer sets than asked for, or no held-out text.
    """
    if config.method is None:
        raise UserError("'method' is required: what the candidate sets prune with")
    config = with_threads(with_workers(resolve_method(config)))
    require_cpu(config)
    source = open_source(config.model)
    probe(config.text_field, config.data, config.held_out, config.second)
    _check_out(config.out)
    what, name = f"out {config.out.name} in", f".{config.out.name}.lock"
    with locked(config.out.parent, what=what, name=name), error_log(log_beside(config.out)):
        target = resolve_budgets(source, config)
        return _select(config, target)


def _select(config: SelectCalibrationConfig, target: PruningTarget) -> Selected:
    threads = set_threads(config.threads)
    source = target.source
    loaded = load_model(source, config, keeping(source, config), streamed=streaming(source, config))
    with phase("read text"):
        sets, texts = _texts(config, loaded)
    measured = _measure(config, target, loaded, sets, texts, threads)
    settings = {
        "method": config.method,
        "params": config.params,
        "budgets": config.budgets,
        "samples": sets[0].shape[0],
        "seq_len": sets[0].shape[1],
        "held_out_sequences": [text.shape[0] for text in texts],
        "seed": config.seed,
    }
    outcome = Selected(config.out, tuple(measured), settings)
    best = outcome.best
    facts = {"source": str(config.data), "model": source.name, "seed": str(config.seed)}
    facts |= window_start(loaded, str(config.data), config.bos).note
    chosen = {"candidate": f"{best.number} of {config.candidates}", "kl": f"{best.score:.6f}"}
    save_tokens(config.out, sets[best.number], {**facts, **chosen, "method": str(config.method)})
    return outcome


def _check_out(path: Path) -> None:
    """Refuse what cannot be written before any work is done."""
    if path.suffix != ".safetensors":
        raise UserError(f"out {path}: a token file ends in .safetensors")
    if path.exists():
        raise UserError(f"out {path}: exists; choose another or remove it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UserError(f"out {path}: {error.strerror or error}") from error


def _texts(config: SelectCalibrationConfig, loaded: LoadedModel) -> tuple[tuple[torch.Tensor, ...], list[torch.Tensor]]:
    """The candidate sets, [samples, L] each, and the held-out windows of one or two sources."""
    samples = config.samples or DEFAULT_SAMPLES
    wanted = samples * config.candidates
    assert config.data is not None
    drawn = calibration_tokens(
        loaded,
        config.data,
        samples=wanted + (2 * config.held_out_samples if config.held_out is None else 0),
        seq_len=config.seq_len,
        longest=config.longest,
        seed=config.seed,
        text_field=config.text_field,
        bos=config.bos,
        fewer=True,
    )
    count, length = drawn.shape
    if count < samples:
        raise UserError(
            f"'{config.data}' gives {count} sequences of {length} tokens, {samples} were asked for (samples)"
        )
    if count < wanted:
        raise UserError(
            f"'{config.data}' gives {count} sequences of {length} tokens: {count // samples} sets of {samples}, "
            f"{config.candidates} were asked for (candidates)"
        )
    sets, rest = drawn[:wanted], drawn[wanted:]
    bos = window_start(loaded, config.data, config.bos).bos
    texts = [_held_out(config, loaded, config.held_out, sets, rest, bos)]
    if config.second is not None:
        texts.append(_held_out(config, loaded, config.second, sets, rest, bos))
    return sets.split(samples), texts


def _held_out(
    config: SelectCalibrationConfig,
    loaded: LoadedModel,
    text: str | None,
    sets: torch.Tensor,
    rest: torch.Tensor,
    bos: int | None,
) -> torch.Tensor:
    """Windows of a text (None: the rest of the data) that repeat nothing of the candidate sets."""
    if text is not None:
        rest = held_out(loaded, text, sets.shape[1], 4 * config.held_out_samples, config.text_field, bos=config.bos)
    run = min(32, max(1, sets.shape[1] // 2))
    windows = rest[~overlaps(rest, sets, run, bos=bos)][: config.held_out_samples] if len(rest) else rest
    if not len(windows):
        raise UserError(
            f"'{text or config.data}' holds no text beside the {config.candidates} candidate sets to measure the "
            "divergence on: fewer candidates or samples, or another text as held-out"
        )
    return windows


def _measure(
    config: SelectCalibrationConfig,
    target: PruningTarget,
    loaded: LoadedModel,
    sets: Sequence[torch.Tensor],
    texts: list[torch.Tensor],
    threads: int,
) -> list[CalibrationSet]:
    """Prune with every set, and measure."""
    assert config.allocation is not None and config.workers != "auto"
    batch = config.batch or default_micro_batch(sets[0].shape[1])
    with phase("base pass"):
        dense = [predicting_states(loaded.model, text, batch) for text in texts]
    measurer = SetMeasurer(target, loaded, config.saliency, config.allocation, config.gamma, sets, texts, dense, batch)
    build = measuring if config.workers == 1 else in_worker
    measured = []
    with (
        phase("calibration sets", len(sets)) as steps,
        answering(f"{build.__module__}:{build.__name__}", measurer, config.workers, threads) as answers,
    ):
        for number, found in enumerate(answers(list(range(len(sets))))):
            if "refused" in found:
                raise UserError(found["refused"])
            second = found["kls"][1] if len(found["kls"]) > 1 else None
            measured.append(CalibrationSet(number, found["kls"][0], second, found["params"]))
            steps.advance()
    return measured
