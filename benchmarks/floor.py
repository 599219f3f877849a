"""One evaluation of a candidate against the least it could cost: a dense model of the same sizes, the same passes."""

import statistics
from collections.abc import Callable, Iterable
from typing import Any

import torch
from machine import interleaved, ratio
from transformers import AutoConfig, AutoModelForCausalLM


def equal_widths(session: Any) -> tuple[Any, dict[str, int]]:
    """The architecture of equal widths in all blocks that comes nearest to the budget from below, and its widths."""
    space, limit = session.space, session.space.window[1]
    best: tuple[int, Any, list[int]] | None = None
    first = space.layers[0].sub_blocks
    for heads in first[0].choices():
        for channels in first[1].choices():
            arch = space.build([[heads, channels]] * len(space.layers))
            size = space.parameters(arch)
            # heads and channels in the same proportion, as near as they come
            apart = abs(heads / first[0].units - channels / first[1].units)
            if size <= limit and apart < 0.1 and (best is None or size > best[0]):
                best = (size, arch, [heads, channels])
    assert best is not None
    return best[1], {"heads": best[2][0], "channels": best[2][1]}


def dense_of(session: Any, widths: dict[str, int]) -> Any:
    """A random dense model of these widths, transformers' own."""
    config = dict(session.loaded.model.config.to_dict())
    for key in ("dtype", "torch_dtype", "_name_or_path", "transformers_version"):
        config.pop(key, None)
    config["intermediate_size"] = widths["channels"]
    built = AutoConfig.for_model(**config)
    built.num_attention_heads = widths["heads"]
    return AutoModelForCausalLM.from_config(built).eval().requires_grad_(False)


def input_gradients(model: Any, batches: Iterable[torch.Tensor]) -> None:
    """Forward, loss and the gradient of the inputs, by transformers' own code."""
    for ids in batches:
        embedded = model.get_input_embeddings()(ids).requires_grad_(True)
        model(inputs_embeds=embedded, labels=ids, use_cache=False).loss.backward()


def trace_products(net: Any, arch: Any, count: int, rank: int, passes: int = 1) -> Callable[[], None]:
    """x Aᵀ and δyᵀ z of every projection, on random matrices of the candidate's shapes: `passes` of `count` tokens."""
    shapes, seen = [], set()
    for i, (block, layer) in enumerate(zip(net.blocks, arch.layers, strict=True)):
        for sub, (_, kept) in zip(block.sub_blocks, layer.kept, strict=True):
            for p in sub.projections if kept else ():
                rows, columns = (net.cut(sub, p, axis, kept).length for axis in (0, 1))
                shapes.append((rows, columns, (i, p.source) not in seen))
                seen.add((i, p.source))
    x = {c: torch.randn(count, c) for _, c, _ in shapes}
    a = {c: torch.randn(rank, c) for _, c, _ in shapes}
    dy = {r: torch.randn(count, r) for r, _, _ in shapes}
    into = {r: torch.zeros(r, rank) for r, _, _ in shapes}

    def run() -> None:
        for _ in range(passes):
            z = torch.empty(0)
            for rows, columns, first in shapes:
                if first:
                    z = x[columns] @ a[columns].T
                into[rows].addmm_(dy[rows].T, z)

    return run


def against_floor(
    session: Any, net: Any, proxy: str, rank: int, rounds: int, clock: Callable[[], float]
) -> dict[str, Any]:
    """Medians of interleaved rounds: an evaluation, its floor, and for traces the products on top of it."""
    from tracenas.pipeline.scoring import make_evaluator
    from tracenas.proxies import PROXIES

    evaluator = make_evaluator(session, proxy, rank)
    traced = "trace" in PROXIES.get(proxy).needs
    arch, widths = equal_widths(session)
    small, batch = dense_of(session, widths), session.micro_batch

    def floor() -> None:
        if traced:
            return input_gradients(small, session.tokens.split(batch))
        with torch.no_grad():
            for ids in session.tokens.split(batch):
                small(input_ids=ids, labels=ids, use_cache=False)

    contestants: dict[str, Callable[[], Any]] = {"ours": lambda: evaluator.score(arch), "floor": floor}
    if traced:
        contestants["products"] = trace_products(net, arch, session.tokens.numel(), rank)
    seconds = interleaved(contestants, rounds, clock=clock)
    least = [f + p for f, p in zip(seconds["floor"], seconds.get("products", [0.0] * rounds), strict=True)]
    return {
        "widths": widths,
        "median_seconds": {k: round(statistics.median(v), 4) for k, v in seconds.items()},
        "ours / floor": round(ratio(seconds["ours"], seconds["floor"]), 3),
        "ours / (floor + products)": round(ratio(seconds["ours"], least), 3),
    }
