"""The config.json of a pruned encoder–decoder model: the family's own where its keys can say it, else with layers."""

from collections.abc import Mapping, Sequence
from typing import Any

from tracenas.errors import UserError
from tracenas.families import Block, Family
from tracenas.families.description import IntArray
from tracenas.models.checkpoints.written_config import heterogeneous_keys, stock_keys
from tracenas.space.architecture import Layer

__all__ = ["stacked_candidates", "with_untied_head"]

_DEPTH = {"encoder": "num_layers", "decoder": "num_decoder_layers"}


def with_untied_head(model: Any) -> dict[str, Any]:
    """A model's configuration; `tie_word_embeddings` is false where its head is a matrix of its own.

    transformers 5 sets it to true in every T5 configuration, and unties what a file holds twice.
    """
    config: dict[str, Any] = model.config.to_diff_dict()
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if config.get("is_encoder_decoder") and head.weight is not embeddings.weight:
        config["tie_word_embeddings"] = False
    return config


def stacked_candidates(
    base: Mapping[str, Any],
    common: Mapping[str, Any],
    family: Family,
    blocks: Sequence[Block],
    layers: Sequence[Layer],
    kept: Mapping[tuple[int, str], IntArray | None],
) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """`(stock configuration or None, heterogeneous one)` of an encoder–decoder model cut to `kept`.

    A stock one has the same widths in all blocks of both stacks and every head of the original model, whose table
    of position biases has a column for each; and no more blocks in the decoder than in the encoder, whose number
    transformers' `generate` takes for the decoder's.

    Args:
        base: the pruned model's own configuration.
        common: `base` without the keys that only heterogeneous checkpoints have.
        layers: counts per block of the base.

    Raises:
        UserError: if a stack has no block left.
    """
    written: dict[str, dict[str, dict[str, Any]]] = {stack: {} for stack in family.stacks}
    for index, (block, layer) in enumerate(zip(blocks, layers, strict=True)):
        if layer.skip:
            continue
        entry = family.layer_overrides(base, index, block, layer)
        for sub in block.sub_blocks:
            ids = kept.get((index, sub.spec.name))
            if sub.position_bias is not None and sub.position_bias.table and ids is not None:
                entry["bias_heads"] = [sub.position_bias.heads[i] for i in ids]
        written[block.stack][str(len(written[block.stack]))] = entry
    if empty := [stack for stack, left in written.items() if not left]:
        raise UserError(f"every block of the {empty[0]} is skipped; at least one must stay")
    common = {**common, **{_DEPTH[stack]: len(left) for stack, left in written.items()}}
    ours = {**common, **heterogeneous_keys(family.model_type), "tracenas_layers": written}
    return _stock(common, family.model_type, written), ours


def _stock(
    common: Mapping[str, Any], model_type: str, written: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> dict[str, Any] | None:
    every = [entry for left in written.values() for entry in left.values()]
    heads, widths = int(common["num_heads"]), {entry["d_ff"] for entry in every}
    uncut = all(e["num_heads"] == e.get("num_cross_heads", heads) == heads and "skip" not in e for e in every)
    if not uncut or len(widths) > 1 or len(written["decoder"]) > len(written["encoder"]):
        return None
    return {**common, "d_ff": widths.pop(), **stock_keys(model_type)}
