"""Refitting a candidate layer by layer, on the inputs that the already refitted layers give.

For every sub-block in forward order, with X' its output projection's inputs in the pruned model as refitted so far,

    W_k = argmin ‖X' W_kᵀ - T‖² + λ‖W_k - W⁰_k‖²,   W_kᵀ = W⁰_kᵀ + (X'ᵀX' + λI)⁻¹ X'ᵀ(T - X' W⁰_kᵀ),

λ = ridge · mean diagonal of X'ᵀX', or another penalty. The target T is the dense sub-block's output Y on the dense
model's own inputs, plus a share d of what the pruned model's residual stream still lacks in front of the sub-block:
T = Y + d (R - R'). With d = 1 every refit aims at the dense model's hidden states and takes up all errors of those
before it; a smaller share fits less of the noise of short text. Streams of hidden states go forward block by block, the
dense one and one for every aim (λ, d): every dense sub-block and every refitted one runs once.

Where an RMS norm stands behind the sub-block, its output reaches the stream as s g ⊙ Y: a scale s for every token, a
gain g for every feature. With the scales of the dense outputs the problem stays linear, and the target stands behind
the norm: rows are weighted by s, X' → s X', and

    T = s Y + d g ⊙ (R - R') / (g² + 0.01 · mean g²),

so that every token counts as it does in the stream, and a feature of next to no gain does not take up a gap that it
cannot fill.

Were all tokens to count alike, one with a massive activation would count as many thousands of others: the fit would
follow the few sinks of attention that the text holds, and might give other ones no sink at all. So with h_t the dense
stream behind the sub-block, whose error the next norm divides by its size, rows are weighted by

    w_t = min(1, 4 median_s ‖h_s‖² / ‖h_t‖²),    X' → √w X', T → √w T,

and first tokens (`refits.first_tokens`) are among the rows.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from tracenas.errors import UserError
from tracenas.families import SubBlock, within
from tracenas.models.surgery.ordering import Key
from tracenas.models.surgery.replacing import Given, replace_module
from tracenas.models.surgery.stepping import BlockRunner, Stop, watch
from tracenas.models.surgery.streaming import on_device
from tracenas.models.surgery.supernet import Supernet
from tracenas.paging import Keep, in_memory
from tracenas.refits.aim import Aim
from tracenas.refits.dense_stream import ComputedStream, DenseBlock, DenseStream, norm_behind, watching_contributions
from tracenas.refits.first_tokens import embedded_first_tokens
from tracenas.refits.gram_sum import GramSum
from tracenas.refits.ridge import FittedRealisation, Penalty, solve, strength
from tracenas.resident import give_back
from tracenas.space.architecture import Architecture, Layer

__all__ = ["SequentialFit"]

_DAMPING = 0.01
"""Of gains behind a norm, relative to their mean square."""
_LARGE = 4.0
"""Times the median of a stream's squares from which a token counts as if it were no larger."""
_NO_STREAM = 1e-30
"""Added to a stream's mean square."""


class SequentialFit:
    """Output projections of every active sub-block, refitted in forward order, as far as one has come.

    Full-width sub-blocks behind a pruned one are refitted too: their inputs have changed. The dense model runs once for
    all aims. Memory: the hidden states of all tokens five times, and once more per aim, the inputs of one output
    projection for all tokens, and one Gram matrix of the kept columns in float64.

    Args:
        net: the super-network.
        arch: the candidate.
        tokens: int64 [N, L].
        micro_batch: sequences per forward pass.
        aims: each is a refit of its own.
        penalty: λ of a Gram matrix and a ridge.
        keep: where the refitted projections and all that is of all tokens lie.
        stream: makes the dense model's of what enters the first block; None: it is computed on the way.
    """

    def __init__(
        self,
        net: Supernet,
        arch: Architecture,
        tokens: Tensor,
        micro_batch: int,
        aims: Sequence[Aim],
        *,
        penalty: Penalty = strength,
        keep: Keep = in_memory,
        stream: Callable[[Sequence[Tensor]], DenseStream] | None = None,
    ) -> None:
        self.outputs: dict[Aim, dict[Key, Tensor]] = {aim: {} for aim in aims}
        """[rows, kept columns] per (block, sub-block), columns in the super-network's order, in the weights' dtype."""
        self._net, self._layers, self._penalty = net, arch.layers, penalty
        self._runner = BlockRunner(net.model, net.blocks, keep)
        firsts = embedded_first_tokens(self._runner, tokens, micro_batch)
        embedded = [*self._runner.embed(tokens, micro_batch), *firsts]
        self._streams = {aim: list(embedded) for aim in aims}
        self._dense = stream(embedded) if stream is not None else ComputedStream(self._runner, embedded)
        self._done = 0

    def advance(
        self, until: int | None = None, report: Callable[[int, int], None] = lambda done, total: None
    ) -> dict[Aim, dict[Key, Tensor]]:
        """Refit the blocks that are not refitted yet; the `outputs` that there are then.

        Args:
            until: those before it; None: all.
            report: told how many blocks of how many are done.

        Raises:
            UserError: if an activation is not finite.
        """
        layers = self._layers[self._done : until]
        for count, layer in enumerate(layers):
            report(count, len(layers))
            for aim, weights in self._fit_block(self._done, layer).items():
                self.outputs[aim] |= {key: self._runner.keep(weight) for key, weight in weights.items()}
            self._done += 1
            give_back()
        report(len(layers), len(layers))
        return self.outputs

    def only(self, aim: Aim) -> None:
        """Go on with one of the aims alone."""
        self.outputs = {aim: self.outputs[aim]}
        self._streams = {aim: self._streams[aim]}

    def _fit_block(self, index: int, layer: Layer) -> dict[Aim, dict[Key, Tensor]]:
        """Refit a block for every aim, and move their streams over it."""
        net, runner = self._net, self._runner
        dense = self._dense.over(index)
        fitted: dict[Aim, dict[Key, Tensor]] = {}
        if layer.skip:
            return fitted
        weights = _root_weights(net, index, dense)
        for aim, pruned in self._streams.items():
            block = _BlockFit(net, runner, layer, _BlockTargets(index, list(pruned), dense, weights))
            fitted[aim] = {
                (index, sub.spec.name): block.fit(sub, aim, self._penalty)
                for sub, kept in within(net.blocks[index], layer)
                if sub.spec.units and kept and not sub.stacked
            }
            block.advance(pruned)
        return fitted


@dataclass(frozen=True)
class _BlockTargets:
    """One block's part of the problem.

    Args:
        index: of the block.
        inputs: the pruned stream in front of the block, [B, T, D] per micro-batch; first tokens come last.
        dense: the dense stream over it.
        weights: √w of every token behind a sub-block, [B · T, 1] per micro-batch, by its name.
    """

    index: int
    inputs: list[Tensor]
    dense: DenseBlock
    weights: Mapping[str, list[Tensor]]


def _root_weights(net: Supernet, index: int, dense: DenseBlock) -> dict[str, list[Tensor]]:
    """√w of every token behind each sub-block of the dense stream, [B · T, 1] per micro-batch, by its name."""
    squares: dict[str, list[Tensor]] = {}
    for place, entering in enumerate(dense.entering):
        stream = on_device(net.model, entering).flatten(0, -2)
        stream = stream.to(torch.promote_types(stream.dtype, torch.float32))
        for sub in net.blocks[index].sub_blocks:
            if (name := sub.spec.name) in dense.contributions:
                stream = stream + on_device(net.model, dense.contributions[name][place])
                squares.setdefault(name, []).append(stream.square().mean(1, keepdim=True))
    weights = {}
    for name, of_places in squares.items():
        large = _LARGE * torch.cat(of_places).median() + _NO_STREAM
        weights[name] = [(square / large).clamp_min(1).rsqrt() for square in of_places]
    return weights


class _PostNorm:
    """An RMS norm as the linear map y ↦ s g ⊙ y that it is on the dense outputs.

    Args:
        norm: the module; it makes its gain g of a row of ones.
        like: a tensor [D, …] of the norm's dtype and device.
    """

    def __init__(self, norm: nn.Module, like: Tensor) -> None:
        with torch.no_grad():
            self.gain: Tensor = norm(torch.ones_like(like[:, :1].T))[0]

    def scale(self, output: Tensor, contribution: Tensor) -> Tensor:
        """s of every token, [tokens, 1]; 0 where the output is 0."""
        wide = self.gain.to(output.dtype) * output
        size = wide.square().sum(1, keepdim=True)
        return (contribution * wide).sum(1, keepdim=True) / size.where(size > 0, torch.ones_like(size))

    def inverse(self, gap: Tensor) -> Tensor:
        """What has to be added in front of the norm, in units of 1/s, to fill `gap` behind it."""
        gain = self.gain.to(gap.dtype)
        square = gain.square()
        return gap * gain / (square + _DAMPING * square.mean())


class _BlockFit:
    """A block of the pruned stream while its sub-blocks are refitted, in forward order.

    Each of them runs once, up to its output projection; what it gives as refitted is known from then on.

    Args:
        layer: its widths.
        targets: what is aimed at.
    """

    def __init__(self, net: Supernet, runner: BlockRunner, layer: Layer, targets: _BlockTargets) -> None:
        self.net, self.runner, self.layer, self.targets = net, runner, layer, targets
        self._fitted: dict[Key, Tensor] = {}
        self._known: dict[str, list[Tensor]] = {}
        self._place = 0

    def fit(self, sub: SubBlock, aim: Aim, penalty: Penalty) -> Tensor:
        """W_k of a sub-block behind those that were fitted before."""
        key = index, name = self.targets.index, sub.spec.name
        inputs: list[Tensor] = []
        with self._running():
            module = self.net.linear(key, sub.output_projection)
            problem = _Problem(module.weight.detach(), norm_behind(self.net.model, self.net.blocks[index], sub))
            subs = [s for s in self.net.blocks[index].sub_blocks if s.spec.name in self.targets.dense.contributions]
            earlier = subs[: subs.index(sub)]
            normed = [s for s in earlier if s.post_norm]
            seen: dict[str, Tensor] = {}

            def see(x: Tensor, output: Tensor) -> None:
                place = self._place
                inputs.append(self.runner.keep(x))
                problem.add(
                    x,
                    output,
                    self._here(self.targets.dense.outputs[name][place]),
                    self._here(self.targets.dense.contributions[name][place]),
                    self._lacking(earlier, seen, aim),
                    self.targets.weights[name][place],
                )
                raise Stop

            with (
                watching_contributions(self.net.model, self.net.blocks[index], normed, seen.__setitem__),
                watch(module, see),
            ):
                for place, states in enumerate(self.targets.inputs):
                    self._place = place
                    seen.clear()
                    with suppress(Stop):
                        self.runner(index, states)
        products, cross = problem.gram.total(), problem.cross
        if not torch.isfinite(products.diagonal().sum() + cross.sum()):
            raise UserError(f"block {index}, {name}: the activations are not finite; try dtype=fp32")
        fitted = problem.start.double() + solve(products, cross, penalty(products, aim.ridge)).T
        self._fitted[key] = weight = fitted.to(problem.start.dtype)
        bias = getattr(module, "bias", None)
        bias = None if bias is None else self._here(bias)
        shapes = [(*states.shape[:-1], -1) for states in self.targets.inputs]
        keep = self.runner.keep
        of_places = zip(inputs, shapes, strict=True)
        self._known[name] = [keep(linear(self._here(x).view(shape), weight, bias)) for x, shape in of_places]
        return weight

    def _here(self, tensor: Tensor) -> Tensor:
        """What may wait on the CPU, where the model computes."""
        return on_device(self.net.model, tensor)

    def advance(self, states: list[Tensor]) -> None:
        """Every micro-batch of the stream to the end of the block, in place."""
        with self._running():
            for place, hidden in enumerate(self.targets.inputs):
                self._place = place
                states[place] = self.runner.keep(self.runner(self.targets.index, hidden))

    @contextmanager
    def _running(self) -> Iterator[None]:
        """The block as far as it is fitted, with what is known in place of what was computed before."""
        net, index = self.net, self.targets.index
        with net.realise_block(index, self.layer, FittedRealisation(self._fitted)), ExitStack() as undo:
            for sub in net.blocks[index].sub_blocks:
                if sub.spec.name in self._known:
                    stub = Given(sub.outputs, lambda _, name=sub.spec.name: self._here(self._known[name][self._place]))  # type: ignore[misc]
                    replace_module(net.model, f"{net.blocks[index].path}.{sub.module}", stub, undo)
            yield

    def _lacking(self, earlier: list[SubBlock], seen: dict[str, Tensor], aim: Aim) -> Tensor | None:
        """d times what the pruned stream lacks in front of a sub-block, [B · T, D]; None if d is 0."""
        if not aim.drift:
            return None
        here, place = self._here, self._place
        gap = (here(self.targets.dense.entering[place]) - here(self.targets.inputs[place])).flatten(0, -2)
        gap = gap.to(torch.promote_types(gap.dtype, torch.float32))
        for sub in earlier:
            name = sub.spec.name
            before = here(self._known[name][place]).flatten(0, -2) if name in self._known else 0
            gap = gap + here(self.targets.dense.contributions[name][place]) - seen.get(name, before)
        return aim.drift * gap


class _Problem:
    """Sums of one least-squares problem.

    Args:
        start: W⁰_k.
        norm: behind the sub-block, if there is one.
    """

    def __init__(self, start: Tensor, norm: nn.Module | None) -> None:
        self.start = start
        self.behind = None if norm is None else _PostNorm(norm, start)
        self.gram = GramSum(start.shape[1], start.device)
        self.cross = torch.zeros(start.shape[1], start.shape[0], dtype=torch.float64, device=start.device)

    def add(
        self,
        x: Tensor,
        output: Tensor,
        target: Tensor,
        contribution: Tensor,
        gap: Tensor | None,
        weights: Tensor,
    ) -> None:
        """Add a micro-batch: X', X' W⁰ᵀ, Y, what Y adds to the dense stream, d (R - R'), and √w [B · T, 1]."""
        rows = x.to(torch.promote_types(x.dtype, torch.float32))
        target = target.to(rows.dtype)
        missing, gap = target - output, None if gap is None else gap.to(rows.dtype)
        if self.behind is not None:
            scale = self.behind.scale(target, contribution.to(rows.dtype))
            rows, missing, gap = scale * rows, scale * missing, None if gap is None else self.behind.inverse(gap)
        right = missing if gap is None else missing + gap
        rows, right = weights * rows, weights * right
        self.gram.add(rows)
        self.cross += rows.T @ right
