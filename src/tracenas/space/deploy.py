"""What a serving program asks of every block: presets that restrict the search space, so that what is found is served.

gguf               MLP widths in multiples of 256 (or the base's own): k-quants store rows in blocks of 256
vllm-stock         no block that keeps its MLP without attention: vLLM without a plugin has no such layer
tensor-parallel:N  query heads, KV heads and MLP widths divisible by N: each of N devices takes an equal share
"""

import math
from dataclasses import dataclass
from functools import reduce
from operator import and_

from tracenas.errors import UserError
from tracenas.registry import did_you_mean

__all__ = ["PRESETS", "Deploy", "parse_deploy"]


@dataclass(frozen=True)
class Deploy:
    """What blocks must satisfy.

    Args:
        channels: a cut MLP's width is a multiple of it; so is the base's own only where `divides` says so.
        divides: query heads, KV heads and MLP widths are multiples of it, in the base, too.
        keeps: sub-blocks that may only go together with their block.
    """

    channels: int = 1
    divides: int = 1
    keeps: frozenset[str] = frozenset()

    def __and__(self, other: "Deploy") -> "Deploy":
        """Both together."""
        return Deploy(
            math.lcm(self.channels, other.channels), math.lcm(self.divides, other.divides), self.keeps | other.keeps
        )

    @property
    def channel_quantum(self) -> int:
        """Of cut MLPs."""
        return math.lcm(self.channels, self.divides)

    def objection(self, *, heads: int, kv_heads: int, width: int) -> str:
        """Why a block of the base cannot satisfy it; empty if it can.

        Args:
            heads, kv_heads, width: of the block; 0 where attention or MLP was removed already.
        """
        for what, count in (("query heads", heads), ("KV heads", kv_heads), ("MLP channels", width)):
            if count % self.divides:
                return f"it has {count} {what}, not divisible by {self.divides}"
        if 0 < width < self.channel_quantum:
            return f"its MLP has {width} channels, fewer than {self.channel_quantum}: it could not be cut"
        if "attention" in self.keeps and not heads:
            return "it has no attention (a checkpoint pruned before)"
        return ""


_FIXED = {"gguf": Deploy(channels=256), "vllm-stock": Deploy(keeps=frozenset({"attention"}))}
_DEVICES = "tensor-parallel"
PRESETS = (*_FIXED, f"{_DEVICES}:N")


def _preset(text: str) -> Deploy:
    name, _, argument = text.partition(":")
    if name == _DEVICES:
        if not argument.isdigit() or int(argument) < 1:
            raise UserError(f"deploy '{name}:{argument}': expected the number of devices, as tensor-parallel:2")
        return Deploy(divides=int(argument))
    if name not in _FIXED:
        raise UserError(f"unknown deploy preset '{text}': {did_you_mean(text, PRESETS)}")
    if argument:
        raise UserError(f"deploy '{name}:{argument}': {name} takes no number")
    return _FIXED[name]


def parse_deploy(text: str) -> Deploy:
    """`gguf,tensor-parallel:2` as what it asks for; the empty text asks for nothing.

    Raises:
        UserError: for an unknown preset.
    """
    return reduce(and_, (_preset(part) for p in text.split(",") if (part := p.strip())), Deploy())
