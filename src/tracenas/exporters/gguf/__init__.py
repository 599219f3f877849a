"""A checkpoint directory as one GGUF file, which llama.cpp and Ollama read; written tensor by tensor."""

import importlib.util
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracenas.errors import CheckFailed, UserError
from tracenas.models.checkpoints.gguf import GgufFile
from tracenas.models.checkpoints.source import ModelSource
from tracenas.rundir import atomic_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tracenas.exporters.gguf.check import Agreement, Checker
    from tracenas.exporters.gguf.layouts import Draft, Layout
    from tracenas.exporters.gguf.model import Decoder
    from tracenas.exporters.gguf.tokenizer import Vocabulary
    from tracenas.exporters.gguf.weights import StoredWeights

__all__ = ["Exported", "export_gguf"]

_OUTTYPES = ("auto", "f32", "f16", "bf16", "q8_0")
_OF_DTYPE = {"F16": "f16", "BF16": "bf16"}
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
        check: how llama.cpp's logits compare; None if that was not asked for.
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
    check: "Agreement | None" = field(default=None)


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
    _check_request(source, out, outtype)
    checker_python = None
    if check:
        from tracenas.exporters.gguf.check import find_llama

        checker_python = find_llama(llama_python)
    from tracenas.exporters.gguf.layouts import choose
    from tracenas.exporters.gguf.model import decoder_of
    from tracenas.exporters.gguf.tokenizer import vocabulary_of
    from tracenas.exporters.gguf.weights import StoredWeights
    from tracenas.models.checkpoints.dequantised import dequantise
    from tracenas.models.checkpoints.writing import check_checkpoint

    assert source.path is not None
    if source.packed is not None:
        dequantise(source.packed, source.path)
    check_checkpoint(source.path)
    weights = StoredWeights(source.path)
    model = decoder_of(source.family, source.config, weights.shapes)
    chosen = choose(model, layout)
    vocabulary = vocabulary_of(source.path, model.vocab, source.config, pre=pre, use=tokenizer)
    draft = chosen.draft(model, weights)
    job = _Job(source, weights, model, chosen, draft, vocabulary, _resolved(outtype, weights))
    job.check_complete()
    checker = None
    if checker_python is not None:
        checker = _checker(checker_python, ids, model, job.context, threads)
    return job.run(out, checker)


def _check_request(source: ModelSource, out: Path, outtype: str) -> None:
    """What can be refused before torch is imported."""
    if isinstance(source.packed, GgufFile):
        raise UserError(f"model {source.name}: is a GGUF file already; export reads a checkpoint directory")
    if source.path is None:
        raise UserError(f"model {source.name}: export reads a directory; download the model first, or prune it")
    if outtype not in _OUTTYPES:
        hint = " (k-quants: export f16, then llama.cpp's llama-quantize)" if outtype.lower().startswith("q") else ""
        raise UserError(f"outtype '{outtype}': accepted: {', '.join(_OUTTYPES)}{hint}")
    if out.exists():
        raise UserError(f"out {out}: exists; choose another name or remove it")
    if importlib.util.find_spec("gguf") is None:
        raise UserError("--format gguf needs the gguf library: pip install 'tracenas[gguf]'")


def _resolved(outtype: str, weights: "StoredWeights") -> str:
    return _OF_DTYPE.get(weights.dtype or "", "f32") if outtype == "auto" else outtype


def _checker(python: Path, ids: Sequence[int], model: "Decoder", longest: int, threads: int | None) -> "Checker":
    from tracenas.exporters.gguf.check import Checker

    wrong = [i for i in ids if not 0 <= i < model.vocab]
    if wrong:
        raise UserError(f"check-ids: {wrong[0]} is no token id; the model has 0 to {model.vocab - 1}")
    if len(ids) > longest:
        raise UserError(f"check-ids: {len(ids)} tokens, the file's context has {longest}")
    return Checker(python, ids, threads or 1, "gelu" in model.activation)


@dataclass(frozen=True)
class _Job:
    source: ModelSource
    weights: "StoredWeights"
    model: "Decoder"
    layout: "Layout"
    draft: "Draft"
    vocabulary: "Vocabulary"
    outtype: str

    @property
    def context(self) -> int:
        """The longest sequence that the file is made for."""
        return int(self.draft.metadata[f"{self.draft.arch}.context_length"])

    def run(self, out: Path, checker: "Checker | None") -> Exported:
        """Write the file beside its place, check it if asked, and put it there."""
        from tracenas.exporters.gguf.writer import stored_type, write

        draft, found = self.draft, None
        with atomic_path(out) as temporary:
            write(temporary, draft, self._metadata(), self.outtype)
            if checker is not None:
                found = self._agreement(temporary, checker)
        matrices = [t for t in draft.tensors if len(t.shape) > 1]
        return Exported(
            out,
            self.layout.name,
            draft.arch,
            self.outtype,
            out.stat().st_size,
            sum(prod(t.shape) for t in draft.tensors),
            draft.added,
            (*draft.notes, *self.vocabulary.notes, *self._k_quants(draft), *_remarks(found, self.outtype)),
            tuple(t.name for t in matrices if stored_type(t, self.outtype) != self.outtype),
            found,
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

    def _metadata(self) -> dict[str, Any]:
        assert self.source.path is not None
        return {"general.name": Path(self.source.name).resolve().name, **self.vocabulary.metadata}

    def _k_quants(self, draft: "Draft") -> tuple[str, ...]:
        """Said where k-quants will fall back: rows must be a multiple of 256 wide."""
        from tracenas.exporters.gguf.fitting import STUB_WIDTH

        odd = {t.name: t.shape[-1] for t in draft.tensors if len(t.shape) > 1 and t.shape[-1] % _K_QUANT}
        if not odd:
            return ()
        narrow = any("ffn_down" in name and width != STUB_WIDTH for name, width in odd.items())
        return (
            f"{len(odd)} matrices have rows that are no multiple of 256 wide: llama-quantize stores these in a larger "
            "type than the k-quant asked for" + (" (--deploy gguf keeps MLP widths that fit)" if narrow else ""),
        )

    def _agreement(self, file: Path, checker: "Checker") -> "Agreement":
        """Compare the file's logits (its f32 twin's, if it is of a smaller type) with the checkpoint's."""
        from tracenas.exporters.gguf.check import default_ids, first_differing
        from tracenas.exporters.gguf.rounding import check_stored
        from tracenas.models.checkpoints.loading import load

        check_stored(file, self.draft.tensors)
        loaded = load(self.source, device="cpu", dtype="fp32")
        tokenizer = loaded.tokenizer if self.vocabulary.text else None
        if not checker.ids:
            checker = replace(checker, ids=default_ids(self.model.vocab, self.context, tokenizer))
        with self._twin(file) as twin:
            whole = file if self.outtype == "f32" else twin(None)
            found = checker.compare(whole, loaded.model, tokenizer)
            if self.outtype != "f32":
                found = replace(found, stored=checker.compare(file, loaded.model, rounded=True))
            if found.ok and (found.stored is None or found.stored.ok):
                return found
            where = None if found.ok else first_differing(checker, loaded.model, len(self.model.blocks), twin)
        if found.ok:
            told = f"as {self.outtype} only, not in f32"
        elif where is None:
            told = "which layer differs first cannot be told (llama.cpp does not run the first blocks alone)"
        else:
            around = " (or what stands around the blocks)" if where[0] == 0 else ""
            told = f"the first layer that differs is {where[0]}{around}: {where[1].told()}"
        raise CheckFailed(f"llama.cpp computes something else from the GGUF, which was deleted: {found.told()}; {told}")

    @contextmanager
    def _twin(self, beside: Path) -> "Iterator[Callable[[int | None], Path]]":
        """What writes the model, or its first n blocks, in f32 beside the file; removed in the end."""
        from tracenas.exporters.gguf.writer import write

        path = beside.with_name(f"{beside.name}.f32")

        def twin(count: int | None) -> Path:
            draft = self.draft if count is None else self.layout.draft(self.model.first(count), self.weights)
            write(path, draft, self._metadata(), "f32")
            return path

        try:
            yield twin
        finally:
            path.unlink(missing_ok=True)


def _remarks(found: "Agreement | None", outtype: str) -> tuple[str, ...]:
    """What the check found that is no error of the file."""
    if found is None:
        return ()
    told: tuple[str, ...] = ()
    if found.texts is not None and found.texts[0] != found.texts[1]:
        same, every = found.texts
        told += (f"llama.cpp gives other tokens than the tokenizer to {every - same} of {every} sample texts",)
    if found.stored is not None and found.stored.relative > _ROUNDED_MUCH:
        told += (
            f"stored in {outtype} the logits move by {100 * found.stored.relative:.0f}% of their spread, and "
            f"{100 * found.stored.same_token:.0f}% of the most likely tokens stay: this model does not bear the "
            "rounding well (recover it first, or store it in f16)",
        )
    return told
