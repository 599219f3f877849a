"""Bytes of the GGUF file that `tracenas export --outtype …` writes.

Names grow with the number of blocks, headers are aligned, and blocks that are all alike need fewer lists: what adds up
over sub-blocks is an upper bound, by less than a kilobyte or two. `exact` counts the file of one architecture to the
byte; where its directory is called otherwise than the model's, its name is as much longer or shorter.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tracenas.budgets.kind import Counted, Kind, SubBlocks, found, matrices, sub_blocks
from tracenas.budgets.unwritten import head_dim, unwritten
from tracenas.errors import UserError
from tracenas.exporters.gguf.layouts import FileDraft, choose
from tracenas.exporters.gguf.layouts.layout import ATTENTION_NAMES, MLP_NAMES
from tracenas.exporters.gguf.model import FAMILIES
from tracenas.exporters.gguf.size import aligned, file_size, tensor_bytes, tensor_entry
from tracenas.exporters.gguf.tokenizer import gguf_vocabulary
from tracenas.families.decoder import LlamaLike
from tracenas.space.architecture import Architecture, Layer
from tracenas.space.costs import Cost
from tracenas.space.sub_block import SubBlockSpec

__all__ = ["FILE"]

_NAMES = {**ATTENTION_NAMES, **MLP_NAMES}
_NORM = "post_attention_norm"
"""The longest name of a norm."""
_ADDITIVE = ("deci", "openelm")
"""Layouts that hold every block as it is."""
_SLACK = 31
"""Bytes at most that align the tensors behind the header."""


@dataclass(frozen=True)
class _Blocks:
    """What the tensors of a block take in the file; its name is as long as the last block's.

    Args:
        norm: parameters of a norm.
    """

    family: LlamaLike
    depth: int
    norm: int
    head_dim: int
    stored: str
    known: SubBlocks

    def of(self, spec: SubBlockSpec, kept: int) -> int:
        """Of a sub-block at a width."""
        if not kept:
            return 0
        attention = spec.name == "attention"
        norms = self.family.attention_norms if attention else self.family.mlp_norms
        size = len(norms) * self._tensor(f"{_NORM}.weight", (self.norm,))
        if attention and self.family.qk_norm:
            size += 2 * self._tensor("attn_q_norm.weight", (self.head_dim,))
        for matrix, rows, columns in matrices(found(spec, self.known), kept):
            size += self._tensor(f"{_NAMES[matrix.path]}.weight", (rows, columns))
            size += self._tensor(f"{_NAMES[matrix.path]}.bias", (rows,)) if matrix.bias else 0
        return size

    def _tensor(self, name: str, shape: tuple[int, ...]) -> int:
        entry = tensor_entry(f"blk.{self.depth - 1}.{name}", len(shape))
        return entry + aligned(tensor_bytes(shape, self.stored))


def _file(model: Counted) -> Cost:
    config, stored = model.source.config, model.serving.stored
    blocks = _Blocks(
        _family(model),
        len(model.blocks),
        int(config["hidden_size"]),
        head_dim(config),
        stored,
        sub_blocks(model.blocks),
    )
    draft = _differing(model)
    outer = tuple(tensor for tensor in draft.tensors if not tensor.name.startswith("blk."))
    outside = file_size(replace(draft, tensors=outer), _metadata(model), stored) + _SLACK
    return Cost("file", "bytes of GGUF file", outside, blocks.of)


def _exact(model: Counted, arch: Architecture) -> int:
    decoder, shapes = unwritten(model, arch)
    return file_size(choose(decoder).draft(decoder, shapes), _metadata(model), model.serving.stored)


def _family(model: Counted) -> LlamaLike:
    """The family, whose layout of blocks that differ adds up.

    Raises:
        UserError: if llama.cpp has no such layout for it, or its own checkpoint has blocks that the file fills up.
    """
    family, name = model.source.family, model.source.name
    if family.model_type not in FAMILIES:
        accepted = ", ".join(FAMILIES)
        raise UserError(f"budget file: no GGUF layout for the family '{family.model_type}'; accepted: {accepted}")
    if any(not sub.spec.units for block in model.blocks for sub in block.sub_blocks):
        raise UserError(f"budget file: {name} has blocks without attention or MLP, where the file may have zeros")
    _differing(model)
    assert isinstance(family, LlamaLike)
    return family


def _differing(model: Counted) -> FileDraft:
    """The base in the layout of blocks that differ.

    Raises:
        UserError: if there is none that adds up.
    """
    base = Architecture(tuple(Layer(tuple((s.unit, s.units) for s in b.spec.sub_blocks)) for b in model.blocks))
    decoder, shapes = unwritten(model, base)
    first = decoder.blocks[0]
    odd = (replace(first, width=first.width + 32), *decoder.blocks)
    layout = choose(replace(decoder, blocks=odd))
    if layout.name not in _ADDITIVE:
        raise UserError(
            f"budget file: llama.cpp has no layout of blocks that differ for {model.source.family.model_type}; every "
            "block is filled up to the widest, so widths do not add up; accepted: memory, params"
        )
    return layout.draft(decoder, shapes)


def _metadata(model: Counted) -> dict[str, Any]:
    """The file's name and tokenizer, as `export` writes them."""
    source = model.source
    elsewhere = source.commit or source.packed is not None
    if elsewhere and not (source.path / "tokenizer.json").is_file():
        raise UserError(f"budget file: the tokenizer of {source.name}, which is part of the file, is not here yet")
    try:
        vocabulary = gguf_vocabulary(source.path, int(source.config["vocab_size"]), source.config)
    except UserError as error:  # what it names are options of the export
        raise UserError(f"budget file: as of `tracenas export`: {error}; accepted here: memory, params") from error
    return {"general.name": Path(source.repo or source.name).resolve().name, **vocabulary.metadata}


FILE = Kind(_file, "GGUF file", bytes=True, reads=("outtype",), blockwise=True, exact=_exact)
