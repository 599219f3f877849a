"""What a GGUF file says of its model, read from its header alone: no torch, no tensor data, well under a second.

The layout is that of the GGUF specification, versions 2 and 3: magic, counts, key-value pairs, a table of tensors,
then the aligned data. What is refused here is refused before anything heavy is imported. Every count is held against
what the file has room for before anything is made of it.
"""

import hashlib
import mmap
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from tracenas.errors import UserError
from tracenas.git_lfs import refuse_pointer

__all__ = ["ARCHITECTURES", "BLOCKS", "GgufFile", "GgufTensor", "read_gguf"]

ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""`general.architecture` → `model_type`: those whose every tensor and number transformers carries over."""

# fmt: off
BLOCKS: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136), 29: ("IQ1_M", 256, 56),
    34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
}
"""Tensor types that can be dequantised: number → (name, elements per block, bytes per block)."""
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
# fmt: on
_STRING, _ARRAY = 8, 9
_LONGEST_LIST = 4096
"""Longer lists of numbers (scores and types of the vocabulary) are kept as their length."""
_MOST_PAIRS, _MOST_TENSORS, _MOST_DIMENSIONS = 1 << 14, 1 << 18, 4
_UNQUANTISED = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class GgufTensor:
    """One entry of the tensor table: name, shape (rows first), name of its type, and its bytes in the file."""

    name: str
    shape: tuple[int, ...]
    type: str
    bytes: int


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file's header.

    Args:
        metadata: its key-value pairs; lists of strings and long lists are given as their length.
        identity: hexadecimal; another one where the header, the file's size or its time of modification differs.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: tuple[GgufTensor, ...]
    identity: str = ""

    @property
    def architecture(self) -> str:
        """`general.architecture`."""
        return str(self.metadata["general.architecture"])

    @property
    def license(self) -> str | None:
        """`general.license`, if the file names one."""
        license = self.metadata.get("general.license")
        return license if isinstance(license, str) else None

    @property
    def parameters(self) -> int:
        """Elements of all tensors."""
        return sum(prod(t.shape) for t in self.tensors)

    @property
    def quantised(self) -> bool:
        """Whether any tensor is stored in blocks."""
        return any(t.type not in _UNQUANTISED for t in self.tensors)

    @property
    def dtype(self) -> str:
        """What the weights are kept in once they are read: the file's own type, bfloat16 where it is quantised.

        bfloat16 adds at most 2⁻⁹ relative to each weight, less than any quantisation step, at half of fp32's size.
        """
        matrices = {t.type for t in self.tensors if len(t.shape) > 1}
        if self.quantised or matrices == {"BF16"}:
            return "bfloat16"
        return "float16" if matrices == {"F16"} else "float32"

    @property
    def vector_dtype(self) -> str:
        """The same of norms and biases, which are stored in F32 beside matrices of any type."""
        vectors = {t.type for t in self.tensors if len(t.shape) == 1}
        return "float32" if vectors == {"F32"} else self.dtype

    @property
    def types(self) -> str:
        """How the tensors are stored, such as `210 Q4_1, 61 F32, 1 Q8_0`."""
        return ", ".join(f"{count} {name}" for name, count in Counter(t.type for t in self.tensors).most_common())

    @property
    def origin(self) -> str:
        """One sentence for people: that these are not the published weights but what the file keeps of them."""
        what = f"read from {self.path.name} ({self.types})"
        if not self.quantised:
            return f"weights {what}"
        return f"weights {what}: dequantised to {self.dtype}, not the ones that the file was quantised from"

    def config(self) -> dict[str, Any]:
        """What config.json would say, as far as sizes, budgets and positions need it.

        Raises:
            UserError: for an architecture that cannot be read, or a header that lacks something.
        """
        name = self.architecture
        if name not in ARCHITECTURES:
            raise UserError(f"model {self.path}: GGUF architecture '{name}'; accepted: {', '.join(ARCHITECTURES)}")
        self._refuse_what_would_be_lost()
        heads = self._number("attention.head_count")
        hidden = self._number("embedding_length")
        dim = self._number("attention.key_length", self._number("rope.dimension_count", max(1, hidden // heads)))
        vocabulary = next((t.shape[0] for t in self.tensors if t.name == "token_embd.weight"), None)
        if vocabulary is None:
            raise UserError(f"model {self.path}: the GGUF file has no token embedding")
        blocks = self._number("block_count", bounded=False)
        if blocks != (stored_blocks := len({t.name.split(".")[1] for t in self.tensors if t.name.startswith("blk.")})):
            raise UserError(f"model {self.path}: {blocks:,} blocks by the GGUF header, {stored_blocks:,} in the file")
        stored = {"eos_token_id": "eos_token_id", "bos_token_id": "bos_token_id", "pad_token_id": "padding_token_id"}
        special = {key: self.metadata.get(f"tokenizer.ggml.{other}") for key, other in stored.items()}
        return {
            "model_type": ARCHITECTURES[name],
            "hidden_size": hidden,
            "intermediate_size": self._number("feed_forward_length"),
            "num_hidden_layers": blocks,
            "num_attention_heads": heads,
            "num_key_value_heads": self._number("attention.head_count_kv", heads),
            "head_dim": dim,
            "max_position_embeddings": self._number("context_length", bounded=False),
            "vocab_size": vocabulary,
            "tie_word_embeddings": all(t.name != "output.weight" for t in self.tensors),
            "dtype": self.dtype,
            **{key: value for key, value in special.items() if isinstance(value, int)},
        }

    def _number(self, key: str, default: int | None = None, *, bounded: bool = True) -> int:
        """A count of the header; a `bounded` one is no larger than a side of some tensor.

        A count of 0 stands for the default, as in llama.cpp.
        """
        count = self.metadata.get(f"{self.architecture}.{key}", default) or default
        if isinstance(count, list):
            raise UserError(
                f"model {self.path}: '{key}' differs from layer to layer; only GGUF files of equal layers can be read"
            )
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise UserError(f"model {self.path}: the GGUF header names no '{self.architecture}.{key}'")
        largest = max((side for t in self.tensors for side in t.shape), default=0)
        if bounded and count > largest:
            raise UserError(
                f"model {self.path}: '{self.architecture}.{key}' is {count:,} in the GGUF header, but no tensor has a "
                f"side above {largest:,}"
            )
        return count

    def _refuse_what_would_be_lost(self) -> None:
        """Refuse what transformers' loader leaves out: the model would load and be another one."""
        name, parts = self.architecture, self.metadata.get("split.count")
        if isinstance(parts, int) and parts > 1:
            raise UserError(f"model {self.path}: one of {parts} parts; join them: llama-gguf-split --merge")
        if self.metadata.get(f"{name}.expert_count"):
            raise UserError(
                f"model {self.path}: a mixture of experts of architecture '{name}' cannot be read from GGUF"
            )
        scaling = self.metadata.get(f"{name}.rope.scaling.type")
        if scaling not in (None, "none") or any(t.name == "rope_freqs.weight" for t in self.tensors):
            raise UserError(
                f"model {self.path}: it stretches its rotary positions, which cannot be read from GGUF; "
                "use the model's Hugging Face directory"
            )


def read_gguf(path: Path) -> GgufFile:
    """Read a GGUF file's header, and check that its tensors are there and can be dequantised.

    Raises:
        UserError: if it is no GGUF file, is cut short, or holds tensors of a type that cannot be dequantised.
    """
    try:
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                refuse_pointer(path)
                raise UserError(f"model {path}: not a GGUF file (it does not begin with the letters GGUF)")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Reader(path, data).read()
    except OSError as error:
        raise UserError(f"model {path}: {error.strerror or error}") from error


class _Reader:
    """Walks over the header; every position is checked by what `struct` and slices refuse."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at = path, data, 4

    def read(self) -> GgufFile:
        try:
            version, tensors, pairs = self._unpack("IQQ")
            if version not in (2, 3):
                raise UserError(f"model {self.path}: GGUF version {version}; accepted: 2 and 3 (little-endian)")
            if pairs > _MOST_PAIRS or tensors > _MOST_TENSORS:
                raise UserError(
                    f"model {self.path}: {pairs:,} key-value pairs and {tensors:,} tensors in the GGUF header; "
                    f"accepted: up to {_MOST_PAIRS:,} and {_MOST_TENSORS:,}"
                )
            metadata = dict(self._pair() for _ in range(pairs))
            table = [self._tensor() for _ in range(tensors)]
        except (struct.error, UnicodeDecodeError, KeyError, MemoryError, OverflowError) as error:
            raise UserError(
                f"model {self.path}: the GGUF header is cut short or damaged at byte {self.at:,}"
            ) from error
        if not isinstance(metadata.get("general.architecture"), str):
            raise UserError(f"model {self.path}: the GGUF header names no architecture")
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or isinstance(alignment, bool) or alignment < 1:
            raise UserError(f"model {self.path}: the GGUF header's alignment is {alignment!r}")
        start = -(-self.at // alignment) * alignment
        ends = (start + offset + tensor.bytes for tensor, offset in table)
        end = max(*ends, start + sum(tensor.bytes for tensor, _ in table), start)
        if end > len(self.data):
            raise UserError(
                f"model {self.path}: the GGUF file is cut short: {end:,} bytes announced, {len(self.data):,} found"
            )
        return GgufFile(self.path, metadata, tuple(tensor for tensor, _ in table), self._identity())

    def _identity(self) -> str:
        state = self.path.stat()
        digest = hashlib.sha256(self.data[: self.at])
        digest.update(f"{state.st_size} {state.st_mtime_ns}".encode())
        return digest.hexdigest()

    def _unpack(self, kinds: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + kinds, self.data, self.at)
        self.at += struct.calcsize("<" + kinds)
        return values

    def _skip(self, count: int) -> None:
        if count > len(self.data) - self.at:
            raise struct.error
        self.at += count

    def _string(self) -> str:
        (length,) = self._unpack("Q")
        start = self.at
        self._skip(length)
        return self.data[start : self.at].decode("utf-8")

    def _pair(self) -> tuple[str, Any]:
        key = self._string()
        (kind,) = self._unpack("I")
        return key, self._value(kind)

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._unpack(_NUMBERS[kind])[0]
        inner, count = self._unpack("IQ")
        if inner == _STRING:
            for _ in range(count):
                (length,) = self._unpack("Q")
                self._skip(length)
            return count
        if count > _LONGEST_LIST:
            self._skip(count * struct.calcsize("<" + _NUMBERS[inner]))
            return count
        return list(self._unpack(f"{count}{_NUMBERS[inner]}"))

    def _tensor(self) -> tuple[GgufTensor, int]:
        name = self._string()
        (dimensions,) = self._unpack("I")
        if dimensions > _MOST_DIMENSIONS:
            raise struct.error
        shape = tuple(reversed(self._unpack(f"{dimensions}Q")))
        kind, offset = self._unpack("IQ")
        if not all(shape):
            raise UserError(f"model {self.path}: tensor {name} has no elements")
        if kind not in BLOCKS:
            accepted = ", ".join(sorted(name for name, _, _ in BLOCKS.values()))
            raise UserError(
                f"model {self.path}: tensor {name} is of GGUF type number {kind}, which cannot be dequantised; "
                f"accepted: {accepted}"
            )
        type_name, elements, size = BLOCKS[kind]
        return GgufTensor(name, shape, type_name, -(-prod(shape) // elements) * size), offset
