"""The search space, without torch: architectures, what they cost, and moving them into a budget."""

from tracenas.space.architecture import Architecture, Layer
from tracenas.space.constraints import Budget, parse_size
from tracenas.space.search_space import SearchSpace
from tracenas.space.sub_block import LayerSpec, SubBlockSpec

__all__ = ["Architecture", "Budget", "Layer", "LayerSpec", "SearchSpace", "SubBlockSpec", "parse_size"]
