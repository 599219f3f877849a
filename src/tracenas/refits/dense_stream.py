"""The dense model's hidden states in front of every block, and what its sub-blocks make of them: what refits aim at.

Shapes: B sequences of a micro-batch, T tokens, D hidden.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from tracenas.families import Block, SubBlock
from tracenas.models.surgery.stepping import BlockRunner, watch

__all__ = [
    "ComputedStream",
    "DenseBlock",
    "DenseStream",
    "StreamRecorder",
    "norm_behind",
    "refitted",
    "watching_contributions",
    "watching_outputs",
]


@dataclass(frozen=True)
class DenseBlock:
    """The stream over one block; lists have an entry per micro-batch.

    Args:
        entering: what enters it, [B, T, D].
        outputs: of every refitted sub-block's output projection, [B · T, D].
        contributions: what these add to the stream: the same, or what the norm behind them makes of it.
    """

    entering: Sequence[Tensor]
    outputs: dict[str, list[Tensor]]
    contributions: dict[str, list[Tensor]]


class DenseStream(Protocol):
    """The stream over one text, block after block."""

    def over(self, index: int) -> DenseBlock:
        """The next block, which is `index`."""


class StreamRecorder(Protocol):
    """Puts the stream aside while another pass makes it."""

    def recording(self, model: Any, index: int) -> AbstractContextManager[None]:
        """Sees what the sub-blocks of block `index` give while it runs, once for all tokens in their order."""

    def left(self, index: int, states: Sequence[Tensor]) -> None:
        """Is given what has left block `index`, [B, T, D] per micro-batch, in the order of the tokens."""


class ComputedStream:
    """The stream as the dense model makes it on the way.

    Args:
        runner: of the dense model, which has seen these micro-batches.
        embedded: what enters the first block, [B, T, D] per micro-batch.
    """

    def __init__(self, runner: BlockRunner, embedded: Sequence[Tensor]) -> None:
        self._runner, self._states = runner, list(embedded)

    def over(self, index: int) -> DenseBlock:
        """The next block, which is `index`, run."""
        runner, block, keep = self._runner, self._runner.blocks[index], self._runner.keep
        entering = list(self._states)
        subs = refitted(block)
        contributions: dict[str, list[Tensor]] = {sub.spec.name: [] for sub in subs}
        outputs = {sub.spec.name: [] if sub.post_norm else contributions[sub.spec.name] for sub in subs}
        with (
            watching_contributions(runner.model, block, subs, lambda n, value: contributions[n].append(keep(value))),
            watching_outputs(runner.model, block, subs, lambda n, value: outputs[n].append(keep(value))),
        ):
            runner.advance(index, self._states)
        return DenseBlock(entering, outputs, contributions)


def refitted(block: Block) -> list[SubBlock]:
    """Sub-blocks of a block whose output projections are refitted: all with units but fused experts."""
    return [sub for sub in block.sub_blocks if sub.spec.units and not sub.stacked]


def norm_behind(model: Any, block: Block, sub: SubBlock) -> nn.Module | None:
    """The norm behind a sub-block, if there is one."""
    norm: nn.Module | None = model.get_submodule(f"{block.path}.{sub.post_norm}") if sub.post_norm else None
    return norm


@contextmanager
def watching_contributions(
    model: Any, block: Block, subs: Sequence[SubBlock], see: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Call `see(sub-block, what it adds to the stream)` for every one of `subs` whose last module runs."""
    with ExitStack() as watching:
        for sub in subs:
            module = norm_behind(model, block, sub) or model.get_submodule(f"{block.path}.{sub.output}")
            watching.enter_context(watch(module, lambda _, value, name=sub.spec.name: see(name, value)))  # type: ignore[misc]
        yield


@contextmanager
def watching_outputs(
    model: Any, block: Block, subs: Sequence[SubBlock], see: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Call `see(sub-block, output of its output projection)` for those of `subs` that have a norm behind them."""
    with ExitStack() as watching:
        for sub in subs:
            if sub.post_norm:
                module = model.get_submodule(f"{block.path}.{sub.output}")
                watching.enter_context(watch(module, lambda _, value, name=sub.spec.name: see(name, value)))  # type: ignore[misc]
        yield
