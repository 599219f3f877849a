"""A realisation with other tensors in the place of some of another's: trained, or scaled."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from tracenas.families import Projection, SubBlock
from tracenas.models.surgery.ordering import Key
from tracenas.models.surgery.supernet import Realisation, Supernet

__all__ = ["ReplacedRealisation"]


@dataclass(frozen=True)
class ReplacedRealisation(Realisation):
    """Another realisation, with other tensors in the place of some of its own.

    Args:
        start: the other one.
        blocks: tensors by block and name in it, in the super-network's order of units.
        around: tensors outside the blocks, by the model's names.
    """

    start: Realisation
    blocks: Mapping[int, Mapping[str, Tensor]]
    around: Mapping[str, Tensor] = field(default_factory=dict)

    def weight(self, net: Supernet, key: Key, sub: SubBlock, projection: Projection, kept: int) -> Tensor:
        """As the start has it."""
        return self.start.weight(net, key, sub, projection, kept)

    def given(self, index: int) -> Mapping[str, Tensor]:
        """What the start gives, and what is in its place."""
        return {**self.start.given(index), **self.blocks.get(index, {})}

    def outside(self) -> Mapping[str, Tensor]:
        """What the start gives, and what is in its place."""
        return {**self.start.outside(), **self.around}
