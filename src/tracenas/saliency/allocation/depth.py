"""Depth pruning (ShortGPT, arXiv:2403.03853): whole blocks go, those with the lowest importance first.

Blocks go until the budget is met. The last of them then comes back as wide as the budget allows, so that an
architecture of exactly this size is compared; where not even its smallest width fits, all blocks are cut a little.
"""

from tracenas.errors import UserError
from tracenas.saliency.allocation.ranked import Allocated, Ranked

__all__ = ["allocate"]

_NARROW = 1e-9


def allocate(ranked: Ranked, gamma: float | None) -> Allocated:
    """The architecture, and in which order blocks went.

    Raises:
        UserError: if protected blocks or the minimum depth are in the way.
    """
    space = ranked.space
    by_block = [
        [ranked.importance[i, s.name] for s in layer.sub_blocks if s.units] for i, layer in enumerate(space.layers)
    ]
    means = [sum(values) / len(values) if values else 0.0 for values in by_block]
    order = sorted(range(len(means)), key=lambda i: (means[i], i))
    last = {space.layers[i].stack: i for i in order}  # the most important block of every stack stays
    free = [i for i in order if i not in space.protected and i not in last.values()]
    free = free[: len(space.layers) - space.min_depth]
    full = space.counts(space.base)
    for removed_count in range(len(free) + 1):
        dropped = set(free[:removed_count])
        rows = [[0] * len(row) if i in dropped else row for i, row in enumerate(full)]
        if not space.fits(space.build(rows)):
            continue
        marginal = free[removed_count - 1] if removed_count else None
        for narrow in (marginal, None):
            architecture = space.from_ratios(
                [[_NARROW if i == narrow else 0.0 if i in dropped else 1.0] * len(row) for i, row in enumerate(full)]
            )
            if architecture is not None:
                removed = [i for i in free[:removed_count] if i != narrow]
                return Allocated(architecture, {"removed_blocks": removed, "narrowed_block": narrow})
        break
    raise UserError(
        f"budget of {space.window_said} cannot be met by removing whole blocks: "
        f"{len(free)} of {len(space.layers)} may go (min-depth {space.min_depth}); lower min-depth or choose another "
        "allocation"
    )
