"""The export of a checkpoint: what is asked for is checked, laid out, written and compared with llama.cpp."""

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from tracenas.errors import CheckFailed, UserError
from tracenas.exporters.gguf.check import Agreement, Checker, default_ids, find_llama, first_difference
from tracenas.exporters.gguf.fitting import STUB_WIDTH
from tracenas.exporters.gguf.layouts import FileDraft, Layout, choose
from tracenas.exporters.gguf.model import Decoder, gguf_decoder
from tracenas.exporters.gguf.rounding import check_stored
from tracenas.exporters.gguf.tokenizer import Vocabulary, gguf_vocabulary
from tracenas.exporters.gguf.weights import StoredWeights
from tracenas.exporters.gguf.writer import stored_type, write
from tracenas.models.checkpoints.gguf import GgufFile
from tracenas.models.checkpoints.source import ModelSource
from tracenas.rundir import atomic_path

__all__ = ["OUTTYPES", "Exported", "export_gguf"]

OUTTYPES = ("auto", "f32", "f16", "bf16", "q8_0")
_OUTTYPE_BY_DTYPE = {"F16": "f16", "BF16": "bf16"}
_K_QUANT = 256
_ROUNDED_MUCH = 0.1
_IGNORED = ("rotary_emb.inv_freq",)  # buffers of old checkpoints, which transformers computes anew


@dataclass(frozen=True)
class Exported:
    """A written GGUF file.

    Args:
        layout: how it is laid out: `stock`, `deci`, `openelm` or `padded`.
        arch: its `general.architecture`.
        outtype: what matrices are stored in.
        size: bytes.
        added: parameters of stubs and padding, all zero.
        notes: what its user must know.
        not_quantized: matrices in another type than `outtype`, because their rows are no multiple of 32 wide.
        check: how llama.cpp's logits compare; None where they were not compared.
    """

    path: Path
    layout: str
    arch: str
    outtype: str
    size: int
    parameters: int
    added: int
    notes: tuple[str, ...] = ()
    not_quantized: tuple[str, ...] = ()
    check: Agreement | None = None


def export_gguf(
    source: ModelSource,
    out: Path,
    *,
    outtype: str = "auto",
    layout: str = "auto",
    pre: str = "",
    tokenizer: bool = True,
    check: bool = False,
    llama_python: Path | None = None,
    ids: Sequence[int] = (),
    threads: int | None = None,
) -> Exported:
    """Write a checkpoint directory as a GGUF file; with `check`, only if llama.cpp computes the same from it.

    Args:
        outtype: `auto` (as the checkpoint is stored), `f32`, `f16`, `bf16` or `q8_0`.
        layout: `auto` (the first that holds the model), or one of `LAYOUTS`.
        pre: llama.cpp's name of the pre-tokenizer, where it is not known.
        tokenizer: False for a file of token ids only.
        llama_python: a Python that has llama-cpp-python; this one if None.
        ids: tokens the check reads; those of a text if empty (random ones without a tokenizer).

    Raises:
        UserError: for what cannot be exported, before anything is written.
        CheckFailed: if llama.cpp computes something else; nothing is left.
    """
    from tracenas.models.checkpoints.checking import check_checkpoint
    from tracenas.models.checkpoints.dequantised import dequantise
    from tracenas.models.checkpoints.fetching import fetch

    _check_request(source, out, outtype)
    python = find_llama(llama_python) if check else None
    fetch(source)
    if source.packed is not None:
        dequantise(source.packed, source.path)
    check_checkpoint(source.path)
    weights = StoredWeights(source.path)
    model = gguf_decoder(source.family, source.config, weights.shapes)
    chosen = choose(model, layout)
    vocabulary = gguf_vocabulary(source.path, model.vocab, source.config, pre=pre, use=tokenizer)
    if outtype == "auto":
        outtype = _OUTTYPE_BY_DTYPE.get(weights.dtype or "", "f32")
    job = _Job(source, weights, model, chosen, chosen.draft(model, weights), vocabulary, outtype)
    job.check_complete()
    return job.run(out, None if python is None else job.checker(python, ids, threads))


def _check_request(source: ModelSource, out: Path, outtype: str) -> None:
    """What can be refused before torch is imported."""
    if isinstance(source.packed, GgufFile):
        raise UserError(f"model {source.name}: is a GGUF file already; export reads a checkpoint directory")
    if outtype not in OUTTYPES:
        hint = " (k-quants: export f16, then llama.cpp's llama-quantize)" if outtype.lower().startswith("q") else ""
        raise UserError(f"outtype '{outtype}': accepted: {', '.join(OUTTYPES)}{hint}")
    if out.exists():
        raise UserError(f"out {out}: exists; choose another name or remove it")
    if importlib.util.find_spec("gguf") is None:
        raise UserError("--format gguf needs the gguf library: pip install gguf")


@dataclass(frozen=True)
class _Job:
    source: ModelSource
    weights: StoredWeights
    model: Decoder
    layout: Layout
    draft: FileDraft
    vocabulary: Vocabulary
    outtype: str

    @property
    def context(self) -> int:
        """The longest sequence that the file is made for."""
        return int(self.draft.metadata[f"{self.draft.arch}.context_length"])

    def checker(self, python: Path, ids: Sequence[int], threads: int | None) -> Checker:
        """Asks llama.cpp for the logits of these tokens.

        Raises:
            UserError: if the model cannot read them.
        """
        wrong = [i for i in ids if not 0 <= i < self.model.vocab]
        if wrong:
            raise UserError(f"check-ids: {wrong[0]} is no token id; the model has 0 to {self.model.vocab - 1}")
        if len(ids) > self.context:
            raise UserError(f"check-ids: {len(ids)} tokens, the file's context has {self.context}")
        return Checker(python, ids, threads or 1, "gelu" in self.model.activation)

    def run(self, out: Path, checker: Checker | None) -> Exported:
        """Write the file beside its place, check it where there is a checker, and put it there."""
        agreement = None
        with atomic_path(out) as temporary:
            write(temporary, self.draft, self._metadata, self.outtype)
            if checker is not None:
                agreement = self._agreement(temporary, checker)
        tensors = self.draft.tensors
        odd = [t.name for t in tensors if len(t.shape) > 1 and stored_type(t.shape, self.outtype) != self.outtype]
        remarks = () if agreement is None else _remarks(agreement, self.outtype)
        return Exported(
            path=out,
            layout=self.layout.name,
            arch=self.draft.arch,
            outtype=self.outtype,
            size=out.stat().st_size,
            parameters=sum(prod(t.shape) for t in tensors),
            added=self.draft.added,
            notes=(*self.draft.notes, *self.vocabulary.notes, *self._k_quants(), *remarks),
            not_quantized=tuple(odd),
            check=agreement,
        )

    def check_complete(self) -> None:
        """Every tensor of the checkpoint must be in the file.

        Raises:
            UserError: naming one that the layout has no place for.
        """
        used = {name for tensor in self.draft.tensors for name in tensor.sources}
        spare = [n for n in self.weights.shapes if n not in used and not n.endswith(_IGNORED)]
        spare = [n for n in spare if not (n == "lm_head.weight" and self.model.tied)]
        if spare:
            raise UserError(
                f"layout {self.layout.name} has no place for {len(spare)} tensors of the checkpoint, first: {spare[0]}"
            )

    @property
    def _metadata(self) -> dict[str, Any]:
        return {"general.name": Path(self.source.repo or self.source.name).resolve().name, **self.vocabulary.metadata}

    def _k_quants(self) -> tuple[str, ...]:
        """Said where k-quants will fall back: rows must be a multiple of 256 wide."""
        odd = {t.name: t.shape[-1] for t in self.draft.tensors if len(t.shape) > 1 and t.shape[-1] % _K_QUANT}
        if not odd:
            return ()
        narrow = any("ffn_down" in name and width != STUB_WIDTH for name, width in odd.items())
        return (
            f"{len(odd)} matrices have rows that are no multiple of 256 wide: llama-quantize stores these in a larger "
            "type than the k-quant asked for" + (" (--deploy gguf keeps MLP widths that fit)" if narrow else ""),
        )

    def _agreement(self, file: Path, checker: Checker) -> Agreement:
        """Compare the file's logits (its f32 twin's, if it is of a smaller type) with the checkpoint's.

        Raises:
            CheckFailed: if they differ by more than the tolerance.
        """
        from tracenas.models.checkpoints.loading import load

        check_stored(file, self.draft.tensors)
        loaded = load(self.source, device="cpu", dtype="fp32")
        tokenizer = loaded.tokenizer if self.vocabulary.text else None
        if not checker.ids:
            checker = replace(checker, ids=default_ids(self.model.vocab, self.context, tokenizer))
        path = file.with_name(f"{file.name}.f32")

        def twin(draft: FileDraft) -> Path:
            write(path, draft, self._metadata, "f32")
            return path

        def first(count: int) -> Path:
            return twin(self.layout.draft(self.model.first(count), self.weights))

        try:
            full = file if self.outtype == "f32" else twin(self.draft)
            agreement = checker.compare(full, loaded.model, tokenizer)
            if self.outtype != "f32":
                agreement = replace(agreement, stored=checker.compare(file, loaded.model, rounded=True))
            if agreement.ok and (agreement.stored is None or agreement.stored.ok):
                return agreement
            if agreement.ok:
                where = f"as {self.outtype} only, not in f32"
            else:
                where = first_difference(checker, loaded.model, len(self.model.blocks), first)
        finally:
            path.unlink(missing_ok=True)
        difference = f"{agreement.describe()}; {where}"
        raise CheckFailed(f"llama.cpp computes something else from the GGUF, which was deleted: {difference}")


def _remarks(agreement: Agreement, outtype: str) -> Iterator[str]:
    """What the check says that is no error of the file."""
    if agreement.texts is not None and agreement.texts[0] != agreement.texts[1]:
        same, texts = agreement.texts
        yield f"llama.cpp gives other tokens than the tokenizer to {texts - same} of {texts} sample texts"
    stored = agreement.stored
    if stored is not None and stored.relative > _ROUNDED_MUCH:
        yield (
            f"stored in {outtype} the logits move by {100 * stored.relative:.0f}% of their spread, and "
            f"{100 * stored.same_token:.0f}% of the most likely tokens stay: this model does not bear the "
            "rounding well (recover it first, or store it in f16)"
        )
