"""One evaluation of Φ against the published procedure and against the floor, interleaved in one run.

    python benchmarks/candidate.py [--tokens 1024 4096] [--rounds 5] [--out FILE]

Model: a random 110M Llama (12 blocks of 768, 12 heads, MLP 2,048, vocabulary 32,000, tied), fp32, rank 64, 40 %
of the widths. `published`: masked weights + peft LoRA. `floor`: a dense model of the pruned sizes, transformers'
forward and loss, input-gradient backward. `products`: the trace's own matrix products alone.
"""

import argparse
import statistics
from typing import Any

import torch
from machine import facts, interleaved, publish, ratio
from published import PublishedScorer
from transformers import LlamaConfig, LlamaForCausalLM

from tracenas.families import Options, family_of
from tracenas.models.ordering import Ordering
from tracenas.models.supernet import Supernet
from tracenas.proxies import PROXIES
from tracenas.saliency.wanda import saliency
from tracenas.scoring.evaluator import Evaluator, Settings
from tracenas.space.search_space import SearchSpace

RANK = 64


def model_of(heads: int, channels: int, *, layers: int = 12) -> Any:
    """A random Llama of the 110M shape with these widths."""
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=768,
        intermediate_size=channels,
        num_hidden_layers=layers,
        num_attention_heads=12,
        num_key_value_heads=12,
        head_dim=64,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    # LlamaConfig wants hidden_size % heads == 0 although head_dim is given: the count is set afterwards.
    config.num_attention_heads = config.num_key_value_heads = heads
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def trace_products(evaluator: Evaluator, arch: Any, tokens: torch.Tensor) -> Any:
    """x Aᵀ and δyᵀ z of every projection, on random matrices of the candidate's shapes."""
    shapes, seen = [], set()
    net = evaluator.net
    for i, (block, layer) in enumerate(zip(net.blocks, arch.layers, strict=True)):
        for sub, (_, kept) in zip(block.sub_blocks, layer.kept, strict=True):
            for p in sub.projections if kept else ():
                rows, columns = (net.cut(sub, p, axis, kept).length for axis in (0, 1))
                shapes.append((rows, columns, (i, p.source) not in seen))
                seen.add((i, p.source))
    count = tokens.shape[1]
    x = {c: torch.randn(count, c) for _, c, _ in shapes}
    a = {c: torch.randn(RANK, c) for _, c, _ in shapes}
    dy = {r: torch.randn(count, r) for r, _, _ in shapes}
    into = {r: torch.zeros(r, RANK) for r, _, _ in shapes}

    def run() -> None:
        for _ in range(tokens.shape[0]):
            z = torch.empty(0)
            for rows, columns, first in shapes:
                if first:
                    z = x[columns] @ a[columns].T
                into[rows].addmm_(dy[rows].T, z)

    return run


def measure(tokens: int, rounds: int) -> dict[str, Any]:
    """Medians and ratios for one number of tokens (sequences of 1,024)."""
    torch.manual_seed(0)
    dense = model_of(12, 2048)
    blocks = family_of(dense.config.to_dict()).blocks(dense.config.to_dict(), Options())
    ids = torch.randint(0, 32000, (tokens // 1024, 1024))
    ordering = Ordering.from_saliency(blocks, saliency(dense, blocks, ids, 1)[0])
    reference = LlamaForCausalLM(dense.config).eval().requires_grad_(False)
    reference.load_state_dict(dense.state_dict())
    space = SearchSpace(
        tuple(b.spec for b in blocks), family_of(dense.config.to_dict()).outside(dense.config.to_dict())
    )
    arch = space.build([[5, 832]] * 12)
    evaluator = Evaluator(Supernet(dense, blocks, ordering), space, ids, PROXIES.get("phi"), Settings(RANK, 0, 1))
    published = PublishedScorer(reference, blocks, ordering, ids, RANK)
    small = model_of(5, 832)

    def floor() -> None:
        for batch in ids.split(1):
            embedded = small.model.embed_tokens(batch).requires_grad_(True)
            small(inputs_embeds=embedded, labels=batch, use_cache=False).loss.backward()

    contestants = {
        "ours": lambda: evaluator.score(arch),
        "published": lambda: published.score(arch),
        "floor": floor,
        "products": trace_products(evaluator, arch, ids),
    }
    seconds = interleaved(contestants, rounds)
    floor_and_products = [f + p for f, p in zip(seconds["floor"], seconds["products"], strict=True)]
    return {
        "tokens": tokens,
        "median_seconds": {k: round(statistics.median(v), 4) for k, v in seconds.items()},
        "published / ours": round(ratio(seconds["published"], seconds["ours"]), 3),
        "ours / floor": round(ratio(seconds["ours"], seconds["floor"]), 3),
        "ours / (floor + products)": round(ratio(seconds["ours"], floor_and_products), 3),
        "products / floor": round(ratio(seconds["products"], seconds["floor"]), 3),
        "rounds": rounds,
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    results = [measure(tokens, args.rounds) for tokens in args.tokens]
    publish({"benchmark": "candidate", "machine": facts(), "results": results}, args.out)


if __name__ == "__main__":
    main()
