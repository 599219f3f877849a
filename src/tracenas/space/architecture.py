"""A sub-network as data: per block and sub-block, how many units are kept."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tracenas.errors import UserError

__all__ = ["Architecture", "Layer"]

UNITS = ("heads", "kv_heads", "cross_heads", "channels")


@dataclass(frozen=True)
class Layer:
    """Kept units of one block, `(key, count)` in the family's order; all 0 means the block is skipped."""

    kept: tuple[tuple[str, int], ...]
    stack: str = ""

    def __getitem__(self, key: str) -> int:
        return dict(self.kept)[key]

    @property
    def skip(self) -> bool:
        """Whether the whole block is bypassed through the residual stream (d_l = 0, TraceNAS §3.2)."""
        return all(count == 0 for _, count in self.kept)


@dataclass(frozen=True)
class Architecture:
    """(d, κ) of TraceNAS §3.2 in counts of kept units. Frozen, hashable, JSON; knows nothing of torch.

    The JSON of a decoder-only model is `{"layers": [{"heads": 4, "channels": 256}, {"skip": true}]}`; an
    encoder–decoder's is `{"encoder": {"layers": …}, "decoder": {"layers": …}}`. Where whole KV groups are
    the units a layer says `kv_heads` (and `heads`, which follows from it). Unknown keys are errors.
    """

    layers: tuple[Layer, ...]

    @cached_property
    def id(self) -> str:
        """A short stable name: the first 16 hexadecimal digits of the canonical JSON's SHA-256."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """The JSON object; `{"skip": true}` for a skipped block."""
        stacks: dict[str, list[dict[str, Any]]] = {}
        for layer in self.layers:
            entry: dict[str, Any] = {"skip": True} if layer.skip else dict(layer.kept)
            stacks.setdefault(layer.stack, []).append(entry)
        if set(stacks) <= {""}:
            return {"layers": stacks.get("", [])}
        return {name: {"layers": layers} for name, layers in stacks.items()}

    @classmethod
    def from_json(cls, data: object, *, where: str = "architecture") -> "Architecture":
        """Parse `to_json`'s object, or a `best.json` that holds one under `architecture`.

        Skipped layers carry no keys of their own; they take those of the other layers of their stack.

        Raises:
            UserError: on anything that is not such an object, naming the layer and the key.
        """
        while isinstance(data, Mapping) and "architecture" in data:
            data = data["architecture"]
        if not isinstance(data, Mapping):
            raise UserError(f"{where}: expected a JSON object with 'layers', found {type(data).__name__}")
        if "layers" in data:
            unknown = set(data) - {"layers"}
            stacks: dict[str, object] = {"": data["layers"]}
        else:
            unknown = set(data) - {"encoder", "decoder"}
            stacks = {}
            for name in ("encoder", "decoder"):
                if name in data:
                    if not isinstance(data[name], Mapping) or set(data[name]) != {"layers"}:
                        raise UserError(f"{where}: '{name}' must be an object with just 'layers'")
                    stacks[name] = data[name]["layers"]
        if unknown:
            raise UserError(f"{where}: unknown key {sorted(unknown)[0]!r}; accepted: layers, or encoder and decoder")
        if not stacks:
            raise UserError(f"{where}: no 'layers' in it")
        return cls(tuple(layer for name, raw in stacks.items() for layer in _stack(raw, name, where)))


def _stack(raw: object, stack: str, where: str) -> list[Layer]:
    if not isinstance(raw, Sequence) or isinstance(raw, str) or not raw:
        raise UserError(f"{where}: 'layers' must be a non-empty list")
    parsed = [
        _counts(entry, f"{where}: layer {i}" + (f" of the {stack}" if stack else "")) for i, entry in enumerate(raw)
    ]
    keys = tuple(k for k in UNITS if any(k in p for p in parsed if p is not None))
    for i, counts in enumerate(parsed):
        if counts is not None and (missing := [k for k in keys if k not in counts]):
            raise UserError(f"{where}: layer {i} lacks '{missing[0]}', which other layers have")
    if not keys:
        raise UserError(f"{where}: every layer is skipped; at least one must stay")
    return [Layer(tuple((k, 0 if p is None else p[k]) for k in keys), stack) for p in parsed]


def _counts(entry: object, where: str) -> dict[str, int] | None:
    """Counts of one layer, None if it is skipped."""
    if not isinstance(entry, Mapping):
        raise UserError(f"{where}: expected an object, found {type(entry).__name__}")
    if unknown := set(entry) - {*UNITS, "skip"}:
        raise UserError(f"{where}: unknown key {sorted(unknown)[0]!r}; accepted: {', '.join(UNITS)}, skip")
    skip = entry.get("skip", False)
    if not isinstance(skip, bool):
        raise UserError(f"{where}: 'skip' must be true or false")
    counts = {k: v for k, v in entry.items() if k != "skip"}
    for key, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise UserError(f"{where}: '{key}' must be a whole number of at least 0, found {value!r}")
    if skip:
        if any(counts.values()):
            raise UserError(f"{where}: skipped, but keeps units")
        return None
    if not counts:
        raise UserError(f"{where}: neither counts nor skip")
    return None if not any(counts.values()) else counts
