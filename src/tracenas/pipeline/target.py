"""What is cut, resolved once before torch is imported: model, units, space under the budget, and the proxy."""

import math
from dataclasses import dataclass, replace

from tracenas.config import SpaceConfig
from tracenas.errors import UserError
from tracenas.families import Block, Options
from tracenas.models.checkpoints.source import ModelSource
from tracenas.proxies.combination import choose
from tracenas.space.constraints import Budget, parse_size
from tracenas.space.deploy import Deploy, parse_deploy
from tracenas.space.exclusion import kept_whole, parse_exclude
from tracenas.space.search_space import SearchSpace

__all__ = ["RECOMMENDED", "PruningTarget", "check_deploy", "resolve_proxy", "resolve_target", "unit_options"]

RECOMMENDED = "loss_compensated"
"""What `--proxy auto` stands for: the evidence is in docs/study.md."""


@dataclass(frozen=True)
class PruningTarget:
    """A model and what may be cut of it.

    Args:
        blocks: the model's, in the units that the settings name.
        space: its architectures, of the budget where there is one.
    """

    source: ModelSource
    blocks: tuple[Block, ...]
    space: SearchSpace

    @property
    def hidden(self) -> int:
        """Width of the residual stream."""
        return int(self.source.config["hidden_size"])


def resolve_target(
    source: ModelSource, config: SpaceConfig, *, params: str | None = None, tolerance: float = 0.01
) -> PruningTarget:
    """The model's units and the search space under the budget, refused here if it is infeasible.

    Args:
        params: the budget; None: every architecture of the space.

    Raises:
        UserError: for a budget or settings that the model cannot meet.
    """
    options = unit_options(config)
    blocks = source.blocks(options)
    deploy = check_deploy(source, blocks, config.deploy)
    space = source.space(
        options,
        granularity=config.depth_granularity,
        min_depth=config.min_depth if config.min_depth is not None else max(1, len(blocks) // 2),
        keep_layers=config.protected,
    )
    excluded = parse_exclude(config.exclude or "", space.layers)
    space = replace(space, layers=kept_whole(space.layers, excluded), keeps=deploy.keeps, excluded=excluded)
    if params is not None:
        space = replace(space, budget=Budget(parse_size(params, space.parameters(space.base)), tolerance))
        space.check_budget()
    return PruningTarget(source, blocks, space)


def resolve_proxy(proxy: str, source: ModelSource) -> str:
    """The proxy, `auto` as the recommended one; Φ where the model's kind cannot be compensated.

    Raises:
        UserError: for an unknown proxy, or one that needs what the model's kind has not.
    """
    if proxy == "auto":
        return "phi" if source.is_encoder_decoder else RECOMMENDED
    if choose(proxy).compensated:
        source.require_decoder(f"proxy {proxy}")
    return proxy


def unit_options(config: SpaceConfig) -> Options:
    """How units are cut: as the settings say, and so that the presets of `deploy` are met."""
    deploy = parse_deploy(config.deploy)
    return Options(
        math.lcm(config.channel_quantum, deploy.channel_quantum),
        math.lcm(config.head_quantum, deploy.divides),
        config.kv_groups,
        deploy.divides,
    )


def check_deploy(source: ModelSource, blocks: tuple[Block, ...], presets: str) -> Deploy:
    """The presets, if every block of the base meets them or can be cut so that it does.

    Raises:
        UserError: naming the first block that cannot.
    """
    deploy = parse_deploy(presets)
    if not presets:
        return deploy
    source.require_decoder("--deploy")
    for index, block in enumerate(blocks):
        if reason := deploy.objection(**_counts(block)):
            raise UserError(f"deploy '{presets}': block {index} of {source.name} cannot meet it: {reason}")
    return deploy


def _counts(block: Block) -> dict[str, int]:
    """Query heads, KV heads, and the MLP's width (of one expert) of a block."""
    heads = kv_heads = width = 0
    for sub in block.sub_blocks:
        spec = sub.spec
        if spec.name == "mlp":
            width = spec.units // sub.groups
        elif spec.name == "attention":
            heads = spec.units * spec.heads_per_unit
            shared = spec.units > 0 and not spec.cache_per_unit  # K and V stay whatever heads are kept
            kv_heads = sub.groups if shared else spec.units
    return {"heads": heads, "kv_heads": kv_heads, "width": width}
