"""The super-network: candidates are prefix views of saliency-ordered weights, run by the family's own forward.

No mask, no copy, nothing to restore but module attributes: the base's tensors are never written.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor, nn

from tracenas.families import Block, Projection, SubBlock, present, within
from tracenas.models.surgery.ordering import Key, Ordering, permutation, take, weight_holder
from tracenas.models.surgery.replacing import (
    Given,
    StandIn,
    replace_module,
    replace_parameter,
    replace_parameters,
    set_attribute,
)
from tracenas.models.surgery.streaming import resident, streamed_blocks
from tracenas.space.architecture import Architecture, Layer

__all__ = ["Cut", "Realisation", "Supernet", "bypass"]


@dataclass(frozen=True)
class Cut:
    """Which indices of an axis a candidate keeps: a prefix (a view) or an index (a gather)."""

    length: int
    index: Tensor | None = None

    def take(self, tensor: Tensor, axis: int) -> Tensor:
        """The kept part of `tensor` along `axis` (of what may be a stack, rows are -2 and columns -1)."""
        if self.index is not None:
            return tensor.index_select(axis, self.index)
        return tensor if tensor.shape[axis] == self.length else tensor.narrow(axis, 0, self.length)


class Realisation:
    """How the weights of an architecture are obtained: views of the base's weights, the published method."""

    def weight(self, net: "Supernet", key: Key, sub: SubBlock, projection: Projection, kept: int) -> Tensor:
        """`W[rows, columns]` of the kept units."""
        weight = net.weight(key, projection)
        return net.cut(sub, projection, 1, kept).take(net.cut(sub, projection, 0, kept).take(weight, -2), -1)

    def given(self, index: int) -> Mapping[str, Tensor]:
        """Tensors that take the place of whatever a block is cut to, by their names in the block: none."""
        return {}

    def outside(self) -> Mapping[str, Tensor]:
        """Tensors that take the place of those outside the blocks, by the model's names: none."""
        return {}


_PERMUTED: WeakSet[Any] = WeakSet()
"""Models whose units are in a super-network's order."""


class Supernet:
    """A model whose units are in saliency order, and the candidates inside it.

    Args:
        model: a transformers causal language model; its weights are permuted in place, once.
        blocks: where its units live.
        ordering: the ranking to permute by.

    Raises:
        ValueError: if the model is a super-network already that was not restored.
    """

    def __init__(self, model: Any, blocks: Sequence[Block], ordering: Ordering) -> None:
        if model in _PERMUTED:
            raise ValueError("the model's units are in the order of another super-network: restore that first")
        self.model = model
        self.blocks = tuple(blocks)
        self.ordering = ordering
        ordering.apply(model, blocks)
        _PERMUTED.add(model)
        model.eval().requires_grad_(False)
        self._cuts: dict[tuple[SubBlock, str, int, int], Cut] = {}
        self._linears = {
            (key[0], p.path): weight_holder(model, blocks[key[0]], p)[0]
            for key, sub in present(blocks)
            for p in (*sub.projections, *sub.width_norms)
        }

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = next(iter(self.model.parameters())).device
        return device

    def restore(self) -> None:
        """Put the model's units back into the base's order, bit for bit; the super-network is of no use afterwards."""
        if self.restored:
            raise ValueError("the model's units are in the base's order already")
        self.ordering.inverse().apply(self.model, self.blocks)
        _PERMUTED.discard(self.model)

    @property
    def restored(self) -> bool:
        """Whether the model's units are in the base's order again."""
        return self.model not in _PERMUTED

    def linear(self, key: Key, projection: Projection) -> nn.Linear:
        """The module of a projection (where matrices are stacked: the experts')."""
        return cast(nn.Linear, self._linears[key[0], projection.path])

    def weight(self, key: Key, projection: Projection) -> nn.Parameter:
        """The weight of a projection as it is now, [rows, columns] or [stack, rows, columns]."""
        weight: nn.Parameter = getattr(self._linears[key[0], projection.path], projection.parameter[1])
        return weight

    def cut(self, sub: SubBlock, projection: Projection, axis: int, kept: int) -> Cut:
        """Which rows (axis 0) or columns (axis 1) of the ordered weight a width keeps."""
        name = (sub, projection.path, axis, kept)
        if name not in self._cuts:
            self._cuts[name] = self._make_cut(sub, projection, axis, kept)
        return self._cuts[name]

    def base_order(self, key: Key, sub: SubBlock, projection: Projection, axis: int, kept: int) -> Tensor | None:
        """What puts the kept rows (axis 0) or columns (1) of a width into the base's order, as `take`'s index.

        None where no unit lies on the axis.
        """
        order = permutation(projection, axis, self.ordering.ranking[key])
        if order is None:
            return None
        return self.cut(sub, projection, axis, kept).take(torch.from_numpy(order).to(self.device), -1).argsort(-1)

    def in_base_order(self, key: Key, sub: SubBlock, projection: Projection, kept: int, tensor: Tensor) -> Tensor:
        """The kept part of a projection's weight, or of its bias, with its units in the base's order."""
        for axis in range(1 if tensor.dim() == 1 else 2):
            order = self.base_order(key, sub, projection, axis, kept) if sub.spec.units else None
            if order is not None:
                tensor = take(tensor, axis, order.to(tensor.device))
        return tensor

    def _make_cut(self, sub: SubBlock, projection: Projection, axis: int, kept: int) -> Cut:
        if not projection.segments(axis) or kept == sub.spec.units:
            return Cut(projection.length(axis))
        owner = projection.matrix_unit_ids(axis, sub.spec.units // (projection.stack or 1))
        in_group = sub.spec.units // sub.groups
        kept_ids = np.flatnonzero((owner < 0) | (owner % in_group < kept // sub.groups))
        if kept_ids[-1] == len(kept_ids) - 1:
            return Cut(len(kept_ids))
        return Cut(len(kept_ids), torch.from_numpy(kept_ids).to(self.device))

    @contextmanager
    def realise(self, arch: Architecture, realisation: Realisation | None = None) -> Iterator[Any]:
        """The model as `arch`, until the block ends (also by an exception); base tensors are never written.

        Yields the transformers model itself: its own forward runs, with sliced weights, stubs for bypassed
        sub-blocks and pass-through modules for skipped blocks. Of a model whose blocks are streamed every block is the
        base's but while it runs: what is asked of its weights is asked within `realise_block`.
        """
        how, streamed = realisation or Realisation(), streamed_blocks(self.model)
        with ExitStack() as undo:
            for index, layer in enumerate(arch.layers):
                if streamed is None or layer.skip:
                    self._realise_block(index, layer, how, undo)
                else:
                    undo.enter_context(streamed.running_in(index, partial(self.realise_block, index, layer, how)))
            yield undo.enter_context(self.realise_outside(how))

    @contextmanager
    def realise_block(self, index: int, layer: Layer, realisation: Realisation | None = None) -> Iterator[nn.Module]:
        """One block as `layer`, the others as they are, until the context ends; yields the block's module."""
        with ExitStack() as undo:
            self._realise_block(index, layer, realisation or Realisation(), undo)
            yield self.model.get_submodule(self.blocks[index].path)

    @contextmanager
    def realise_outside(self, realisation: Realisation) -> Iterator[Any]:
        """What a realisation has outside the blocks, these as they are, until the context ends; yields the model."""
        with ExitStack() as undo:
            self._replace(self.model, realisation.outside(), undo)
            yield self.model

    def _realise_block(self, index: int, layer: Layer, how: Realisation, undo: ExitStack) -> None:
        block = self.blocks[index]
        if layer.skip:
            bypass(self.model, block, None, undo)
            return
        undo.enter_context(resident(self.model, block.path))
        for sub, kept in within(block, layer):
            if not sub.spec.units:
                continue
            if kept == 0:
                bypass(self.model, block, sub, undo)
            else:
                self._slice((index, sub.spec.name), sub, kept, how, undo)
        self._replace(self.model.get_submodule(block.path), how.given(index), undo)

    def _replace(self, module: nn.Module, given: Mapping[str, Tensor], undo: ExitStack) -> None:
        replace_parameters(module, {name: tensor.to(self.device) for name, tensor in given.items()}, undo)

    def _slice(self, key: Key, sub: SubBlock, kept: int, how: Realisation, undo: ExitStack) -> None:
        if not sub.spec.feasible(kept):
            raise ValueError(
                f"block {key[0]}, {sub.spec.name}: {kept} of {sub.spec.units} {sub.spec.unit} cannot be kept"
            )
        if kept == sub.spec.units and type(how) is Realisation:
            return
        for projection in sub.projections:
            module = self.linear(key, projection)
            weight = how.weight(self, key, sub, projection, kept)
            if weight is not self.weight(key, projection):
                replace_parameter(module, projection.parameter[1], weight, undo)
            if projection.bias:
                bias = self.cut(sub, projection, 0, kept).take(module.bias, 0)
                replace_parameter(module, "bias", bias, undo)
        for norm in sub.width_norms:
            module = self.linear(key, norm)
            replace_parameter(module, "weight", self.cut(sub, norm, 0, kept).take(module.weight, 0), undo)
        block = self.model.get_submodule(self.blocks[key[0]].path)
        for attribute in sub.attributes:
            set_attribute(block, attribute.path, attribute.value(kept), undo)
        if sub.position_bias is not None and sub.position_bias.table:
            path, in_group = f"{sub.module}.bias_heads", sub.spec.units // sub.groups
            heads = block.get_submodule(sub.module).bias_heads
            kept_heads = tuple(h for at, h in enumerate(heads) if at % in_group < kept // sub.groups)
            set_attribute(block, path, kept_heads, undo)


class _PassThrough(StandIn):
    """A skipped block: the residual stream passes.

    Args:
        hands_on: arguments that the block returns behind the hidden states.
    """

    def __init__(self, original: nn.Module, hands_on: tuple[str, ...]) -> None:
        super().__init__(original)
        self.__dict__["_hands_on"] = hands_on

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The hidden states as they came, and what the block hands on."""
        names = self.__dict__["_hands_on"]
        if not names:
            return hidden_states
        signature = inspect.signature(self.__dict__["_original"].forward)
        arguments = signature.bind(hidden_states, *args, **kwargs).arguments
        return hidden_states, *(arguments.get(name) for name in names)


def bypass(model: nn.Module, block: Block, sub: SubBlock | None, undo: ExitStack) -> None:
    """Replace a block (`sub` None) or a sub-block by nothing until `undo` closes.

    A sub-block adds zero to the residual stream; its norms are bypassed with it.
    """
    path = block.path if sub is None else f"{block.path}.{sub.module}"
    original = model.get_submodule(path)
    stub = _PassThrough(original, block.hands_on) if sub is None else Given(sub.outputs, torch.zeros_like)
    replace_module(model, path, stub, undo)
    for norm in sub.norms if sub is not None else ():
        replace_module(model, f"{block.path}.{norm}", nn.Identity(), undo)
