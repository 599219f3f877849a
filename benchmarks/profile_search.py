"""Where a search's time goes, part by part, each beside its share of the arithmetic; and how far it is from the floor.

    python benchmarks/profile_search.py MODEL --data TEXT [--proxy loss_compensated phi] [--params 75%]
        [--population 4 --iterations 2] [--samples 1 --seq-len 512] [--clock wall|cpu] [--floor 3] [--out FILE]

A small evolution is run for every proxy. Parts: embedding and head (with the loss and its gradient), attention and MLP
(forward and backward), trace (x Aᵀ and δyᵀz), compensation (refits), the rest of an evaluation (norms,
residual stream, realising), and what is outside evaluations (ask, tell). With `--clock cpu` and one thread, processor
time is counted: what other programs on the machine do does not enter.
`--floor N`: N interleaved rounds of one evaluation against a dense model of the pruned sizes doing the same passes.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from floor import against_floor
from machine import CLOCKS, facts, memory, publish

from tracenas.config import ScoreConfig
from tracenas.models.checkpoints.source import open_source
from tracenas.models.functionals import loss as loss_module
from tracenas.pipeline.opening import open_session
from tracenas.pipeline.scoring import make_evaluator
from tracenas.pipeline.target import resolve_target
from tracenas.proxies import PROXIES
from tracenas.proxies import trace as trace_module
from tracenas.space.architecture import Architecture
from tracenas.strategies import STRATEGIES, SearchSettings

RANK = 64


class Parts:
    """Seconds by part; the innermost part that is open gets them."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock, self.seconds, self.open = clock, defaultdict[str, float](float), list[str]()
        self.since = clock()

    def _book(self) -> None:
        now = self.clock()
        self.seconds[self.open[-1] if self.open else "outside evaluations"] += now - self.since
        self.since = now

    def push(self, name: str) -> None:
        """A part begins."""
        self._book()
        self.open.append(name)

    def pop(self) -> None:
        """It ends."""
        self._book()
        if self.open:
            self.open.pop()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A part as a block; parts that a backward pass left open inside are closed with it."""
        self.push(name)
        depth = len(self.open)
        try:
            yield
        finally:
            self._book()
            del self.open[depth - 1 :]


class _Stamp(torch.autograd.Function):
    """Identity that calls `action` when the backward pass comes by."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, action: Callable[[], None]) -> torch.Tensor:
        ctx.action = action
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        ctx.action()
        return gradients[0], None


def _watch_module(module: torch.nn.Module, name: str, parts: Parts) -> list[Any]:
    def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        parts.push(name)
        if args and isinstance(args[0], torch.Tensor) and args[0].requires_grad:
            args = (_Stamp.apply(args[0], parts.pop), *args[1:])
        elif "hidden_states" in kwargs and kwargs["hidden_states"].requires_grad:
            kwargs = {**kwargs, "hidden_states": _Stamp.apply(kwargs["hidden_states"], parts.pop)}
        return args, kwargs

    def after(_: Any, __: Any, output: Any) -> Any:
        parts.pop()
        first = output[0] if isinstance(output, tuple) else output
        if not first.requires_grad:
            return output
        first = _Stamp.apply(first, lambda: parts.push(name))
        return (first, *output[1:]) if isinstance(output, tuple) else first

    return [module.register_forward_pre_hook(before, with_kwargs=True), module.register_forward_hook(after)]


@contextmanager
def watched(net: Any, realisation: Any, parts: Parts) -> Iterator[None]:
    """Books what the super-network, the trace, the loss and the compensation do."""
    with ExitStack() as undo:
        for block in net.blocks:
            for sub in block.sub_blocks:
                module = net.model.get_submodule(f"{block.path}.{sub.module}")
                for handle in _watch_module(module, sub.spec.name, parts):
                    undo.callback(handle.remove)
        for handle in _watch_module(net.model.get_input_embeddings(), "embedding and head", parts):
            undo.callback(handle.remove)

        def wrap(owner: Any, attribute: str, name: str) -> None:
            original = getattr(owner, attribute)

            def timed(*args: Any, **kwargs: Any) -> Any:
                with parts.part(name):
                    return original(*args, **kwargs)

            setattr(owner, attribute, timed)
            undo.callback(setattr, owner, attribute, original)

        wrap(loss_module, "token_nll", "embedding and head")
        wrap(trace_module, "_add_product", "trace")
        original = trace_module._hook

        def hook(*args: Any) -> Any:
            forward = original(*args)

            def timed(*inner: Any) -> Any:
                with parts.part("trace"):
                    return forward(*inner)

            return timed

        trace_module._hook = hook
        undo.callback(setattr, trace_module, "_hook", original)
        if realisation.__class__.__name__ == "CompensatedRealisation":
            wrap(realisation, "weight", "compensation")
        yield


def arithmetic(net: Any, arch: Architecture, head: int, tokens: int, length: int, proxy: Any) -> dict[str, float]:
    """Floating-point operations of one evaluation by part: forward, and with a trace the input gradients, too."""
    traced = "trace" in proxy.needs
    passes = 2 if traced else 1
    flops = defaultdict[str, float](float)
    flops["embedding and head"] = 2.0 * passes * head * tokens
    for i, (block, layer) in enumerate(zip(net.blocks, arch.layers, strict=True)):
        for sub, (_, kept) in zip(block.sub_blocks, layer.kept, strict=True):
            seen: set[tuple[int, str]] = set()
            for p in sub.projections if kept else ():
                rows, columns = (net.cut(sub, p, axis, kept).length for axis in (0, 1))
                flops[sub.spec.name] += 2.0 * passes * rows * columns * tokens
                if p.path == sub.output and sub.spec.unit == "heads":
                    flops[sub.spec.name] += 4.0 * (3 if traced else 1) * columns * length * tokens
                if traced:
                    flops["trace"] += 2.0 * RANK * rows * tokens
                    flops["trace"] += 2.0 * RANK * columns * tokens * ((i, p.source) not in seen)
                    seen.add((i, p.source))
                if "compensated" in proxy.needs and p.path == sub.output and kept < sub.spec.units:
                    flops["compensation"] += 2.0 * columns * min(columns, p.columns - columns) * rows
    return dict(flops)


def profile(args: argparse.Namespace, session: Any, net: Any, name: str) -> dict[str, Any]:
    """One small search by one proxy."""
    proxy, clock = PROXIES.get(name), CLOCKS[args.clock]
    started = clock()
    evaluator = make_evaluator(session, name, RANK)
    prepared = clock() - started
    sizes = {"population": args.population, "elites": max(1, args.population // 3), "iterations": args.iterations}
    strategy = STRATEGIES.get("evolution")(session.space, SearchSettings(**sizes, init="uniform", seed=0))
    parts, done = Parts(clock), list[Architecture]()
    with watched(net, evaluator.realisation, parts):
        while (batch := strategy.ask()) is not None:
            scores = []
            for proposal in batch.proposals:
                with parts.part("rest of an evaluation"):
                    scores.append(evaluator.score(proposal.candidate).score)
                done.append(proposal.candidate)
            strategy.tell(batch, scores)
        parts.push("end")
    head = session.loaded.source.family.head_weights(session.loaded.source.config)
    tokens, length = session.tokens.numel(), session.tokens.shape[1]
    flops = defaultdict[str, float](float)
    for arch in done:
        for key, value in arithmetic(net, arch, head, tokens, length, proxy).items():
            flops[key] += value
    total, work = sum(parts.seconds.values()), sum(flops.values())
    rows = {
        key: {
            "seconds": round(value, 3),
            "share of time": round(value / total, 4),
            "share of arithmetic": round(flops[key] / work, 4),
            "GFLOP/s": round(flops[key] / value / 1e9, 1) if flops[key] and value else None,
        }
        for key, value in sorted(parts.seconds.items(), key=lambda item: -item[1])
    }
    out = {"evaluations": len(done), "seconds": round(total, 3), "before the first candidate": round(prepared, 3)}
    return {**out, "seconds per evaluation": round(total / len(done), 3), "parts": rows}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--proxy", nargs="+", default=["loss_compensated", "phi"])
    parser.add_argument("--params", default="75%")
    parser.add_argument("--population", type=int, default=4)
    parser.add_argument("--iterations", type=int, default=2)
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--compensate-samples", type=int, default=4)
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    parser.add_argument("--floor", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    config = ScoreConfig(
        model=args.model,
        arch=Path("-"),
        data=args.data,
        samples=args.samples,
        seq_len=args.seq_len,
        compensate_samples=args.compensate_samples,
    )
    source = open_source(args.model)
    session = open_session(resolve_target(source, config, params=args.params), config, data=args.data)
    weights = sum(p.numel() * p.element_size() for p in session.loaded.model.parameters())
    net = session.supernet()
    result = {name: profile(args, session, net, name) for name in args.proxy}
    peak = memory("VmHWM")
    record = {
        "benchmark": "profile_search",
        "model": Path(args.model).name,
        "machine": facts(),
        "settings": {k: v for k, v in vars(args).items() if k not in ("model", "data", "out")},
        "base weights, MiB": round(weights / 2**20),
        "peak above base weights, libraries included, MiB": round((peak - weights) / 2**20),
        "proxies": result,
    }
    if args.floor:
        record["floor"] = {n: against_floor(session, net, n, RANK, args.floor, CLOCKS[args.clock]) for n in args.proxy}
    publish(record, args.out)


if __name__ == "__main__":
    main()
