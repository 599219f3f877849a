"""Sub-blocks that keep their full width, by name.

BLOCKS        all sub-blocks of these blocks: 7, -1 (the last), 0-3, * (every block)
BLOCKS.NAME   one of them, where these blocks have it: 0.attention, 0-3.mlp, *.cross_attention
"""

import re
from collections.abc import Sequence
from dataclasses import replace

from tracenas.errors import UserError
from tracenas.space.sub_block import LayerSpec

__all__ = ["kept_whole", "parse_exclude"]

_NAME = re.compile(r"(?:(?P<all>\*)|(?P<one>-?\d+)|(?P<first>\d+)-(?P<last>\d+))(?:\.(?P<sub>\w+))?")


def parse_exclude(text: str, layers: Sequence[LayerSpec]) -> frozenset[tuple[int, str]]:
    """`0.attention,29.mlp` as (block, sub-block); the empty text names nothing.

    Raises:
        UserError: for what is no such name, and for one that none of the model's sub-blocks has.
    """
    return frozenset(key for part in text.split(",") if part.strip() for key in _named(part.strip(), layers))


def kept_whole(layers: Sequence[LayerSpec], excluded: frozenset[tuple[int, str]]) -> tuple[LayerSpec, ...]:
    """The blocks, the named sub-blocks with no other width than all units."""
    return tuple(
        replace(
            layer,
            sub_blocks=tuple(
                replace(s, quantum=s.units) if (index, s.name) in excluded else s for s in layer.sub_blocks
            ),
        )
        for index, layer in enumerate(layers)
    )


def _named(part: str, layers: Sequence[LayerSpec]) -> list[tuple[int, str]]:
    """What one name stands for."""
    match, depth = _NAME.fullmatch(part), len(layers)
    if match is None:
        raise UserError(f"exclude '{part}': expected BLOCKS or BLOCKS.NAME, such as 3, 0-3, -1.mlp or *.attention")
    if match["all"]:
        blocks = range(depth)
    else:
        first, last = int(match["one"] or match["first"]), int(match["one"] or match["last"])
        if not -depth <= first <= last < depth:
            raise UserError(f"exclude '{part}': the model has {depth} blocks; accepted: {-depth} to {depth - 1}")
        blocks = range(first % depth, last % depth + 1)
    present = [(i, s.name) for i in blocks for s in layers[i].sub_blocks if s.units]
    matching = [key for key in present if match["sub"] in (None, key[1])]
    if not matching:
        names = ", ".join(dict.fromkeys(name for _, name in present)) or "no sub-block (a checkpoint pruned before)"
        raise UserError(f"exclude '{part}': there is {names}")
    return matching
