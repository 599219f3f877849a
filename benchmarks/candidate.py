"""One evaluation of Φ against the published procedure and against the floor, interleaved in one run.

    python benchmarks/candidate.py [--tokens 1024 4096] [--rounds 5] [--out FILE]

Model: a random 110M Llama (12 blocks of 768, 12 heads, MLP 2,048, vocabulary 32,000, tied), fp32, rank 64, 40 %
of the widths. `published`: masked weights + peft LoRA. `floor`: a dense model of the pruned sizes, transformers'
forward and loss, input-gradient backward. `products`: the trace's own matrix products alone.
"""

import argparse
import statistics
from dataclasses import dataclass
from typing import Any

import torch
from floor import input_gradients, trace_products
from machine import facts, interleaved, publish, ratio
from published import PublishedScorer
from transformers import LlamaConfig, LlamaForCausalLM

from tracenas.families import Block, Options, config_family
from tracenas.models.surgery.ordering import Ordering
from tracenas.models.surgery.supernet import Supernet
from tracenas.proxies import PROXIES
from tracenas.saliency.wanda import saliency
from tracenas.scoring.evaluator import Evaluator, ScoringSettings
from tracenas.space.search_space import SearchSpace

RANK = 64


def model_of(heads: int, channels: int, *, layers: int = 12, **changes: Any) -> Any:
    """A random Llama of the 110M shape with these widths."""
    shape: dict[str, Any] = {
        "vocab_size": 32000,
        "hidden_size": 768,
        "intermediate_size": channels,
        "num_hidden_layers": layers,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
        "head_dim": 64,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
    }
    config = LlamaConfig(**{**shape, **changes})
    # LlamaConfig wants hidden_size % heads == 0 although head_dim is given: the count is set afterwards.
    config.num_attention_heads = config.num_key_value_heads = heads
    return LlamaForCausalLM(config).eval().requires_grad_(False)


@dataclass(frozen=True)
class Sides:
    """A random dense model and a copy of it for the published procedure, what is cut, and the tokens."""

    dense: Any
    reference: Any
    blocks: tuple[Block, ...]
    ordering: Ordering
    ids: torch.Tensor

    @classmethod
    def of(cls, sequences: int, length: int, *, layers: int = 12) -> "Sides":
        """Of the 110M shape, on random sequences."""
        torch.manual_seed(0)
        dense = model_of(12, 2048, layers=layers)
        config = dense.config.to_dict()
        blocks = config_family(config).blocks(config, Options())
        ids = torch.randint(0, 32000, (sequences, length))
        ordering = Ordering.from_saliency(blocks, saliency(dense, blocks, ids, 1)[0])
        reference = LlamaForCausalLM(dense.config).eval().requires_grad_(False)
        reference.load_state_dict(dense.state_dict())
        return cls(dense, reference, blocks, ordering, ids)

    def space(self) -> SearchSpace:
        """All architectures, without a budget."""
        config = self.dense.config.to_dict()
        return SearchSpace(tuple(b.spec for b in self.blocks), config_family(config).outside(config))

    def evaluator(self, space: SearchSpace) -> Evaluator:
        """Φ by slicing and traces."""
        net = Supernet(self.dense, self.blocks, self.ordering)
        return Evaluator(net, space, self.ids, PROXIES.get("phi"), ScoringSettings(RANK, 0, 1))

    def published(self) -> PublishedScorer:
        """Φ by masks and adapters."""
        return PublishedScorer(self.reference, self.blocks, self.ordering, self.ids, RANK)


def measure(tokens: int, rounds: int) -> dict[str, Any]:
    """Medians and ratios for one number of tokens (sequences of 1,024)."""
    sides = Sides.of(tokens // 1024, 1024)
    space, ids = sides.space(), sides.ids
    arch = space.build([[5, 832]] * 12)
    evaluator, published = sides.evaluator(space), sides.published()
    small = model_of(5, 832)
    contestants = {
        "ours": lambda: evaluator.score(arch),
        "published": lambda: published.score(arch),
        "floor": lambda: input_gradients(small, ids.split(1)),
        "products": trace_products(evaluator.net, arch, ids.shape[1], RANK, passes=ids.shape[0]),
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
