"""`tracenas export`: a checkpoint in the form that a serving program reads."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tracenas.config import ExportConfig
from tracenas.formats import data_size
from tracenas.models.checkpoints.source import ModelSource, open_source
from tracenas.reporting.progress import START, phase
from tracenas.reporting.terminal import Outcome, Table, to_plain

__all__ = ["FORMATS", "ExportOutcome", "export"]


@dataclass(frozen=True)
class ExportOutcome(Outcome):
    """What was written.

    Args:
        rows: for people.
        facts: for scripts.
        notes: what the file's user must know.
    """

    path: Path
    rows: tuple[tuple[str, str], ...]
    facts: dict[str, Any]
    notes: tuple[str, ...] = ()

    def to_json(self) -> Any:
        """For `--json`."""
        return to_plain({"path": self.path, **self.facts, "notes": self.notes})

    def tables(self) -> list[Table]:
        """A summary, and every note."""
        rows = [("file", str(self.path)), *self.rows]
        return [Table("exported", ("", "value"), rows, [f"note: {note}" for note in self.notes])]


def _gguf(config: ExportConfig, source: ModelSource) -> ExportOutcome:
    with phase(START):
        from tracenas.exporters.gguf import export_gguf

    with phase("export and check" if config.check else "export"):
        exported = export_gguf(
            source,
            config.out,
            outtype=config.outtype,
            layout=config.layout,
            pre=config.pre,
            tokenizer=config.tokenizer == "auto",
            check=config.check,
            llama_python=config.llama_python,
            ids=config.ids,
            threads=config.threads,
        )
    rows = [
        ("layout", f"{exported.layout} (architecture {exported.arch})"),
        (
            "stored in",
            exported.outtype + (f", {len(exported.not_quantized)} matrices in f16" if exported.not_quantized else ""),
        ),
        (
            "parameters",
            f"{exported.parameters:,}" + (f", {exported.added:,} of them zeros that fill up" if exported.added else ""),
        ),
        ("size", data_size(exported.size)),
    ]
    if exported.check is None:
        rows.append(("checked in llama.cpp", "no (--check)"))
    else:
        rows.append(("checked in llama.cpp", replace(exported.check, stored=None).describe()))
        if exported.check.stored is not None:
            rows.append((f"the same in {exported.outtype}", exported.check.stored.describe()))
    facts = {
        "layout": exported.layout,
        "arch": exported.arch,
        "outtype": exported.outtype,
        "bytes": exported.size,
        "parameters": exported.parameters,
        "added_parameters": exported.added,
        "not_quantized": exported.not_quantized,
        "check": None if exported.check is None else exported.check.to_json(),
    }
    return ExportOutcome(exported.path, tuple(rows), facts, exported.notes)


FORMATS: dict[str, Callable[[ExportConfig, ModelSource], ExportOutcome]] = {
    "gguf": _gguf,
}


def export(config: ExportConfig) -> ExportOutcome:
    """Write `config.model` in `config.format`.

    Raises:
        UserError: for what cannot be exported, before anything is written.
        CheckFailed: if the serving program computes something else from the result, of which nothing is left.
    """
    return FORMATS[config.format](config, open_source(config.model, decoder_only="export"))
