"""`--deploy` applied to a model: whether its blocks can meet the presets at all, and what it makes of the options."""

import math

from tracenas.config import SpaceConfig
from tracenas.errors import UserError
from tracenas.families import Block, Options
from tracenas.models.checkpoints.source import ModelSource
from tracenas.space.deploy import Deploy, parse_deploy

__all__ = ["check_deploy", "options_of"]


def options_of(config: SpaceConfig) -> Options:
    """How units are cut: as the settings say, and so that the presets are met."""
    deploy = parse_deploy(config.deploy)
    return Options(
        math.lcm(config.channel_quantum, deploy.channel_quantum),
        math.lcm(config.head_quantum, deploy.divides),
        config.kv_groups,
        deploy.divides,
    )


def check_deploy(source: ModelSource, config: SpaceConfig) -> Deploy:
    """The presets, if every block of the base meets them or can be cut so that it does.

    Raises:
        UserError: naming the first block that cannot.
    """
    deploy = parse_deploy(config.deploy)
    if not config.deploy:
        return deploy
    source.require_decoder("--deploy")
    for index, block in enumerate(source.blocks(options_of(config))):
        if reason := deploy.objection(**_counts(block)):
            raise UserError(f"deploy '{config.deploy}': block {index} of {source.name} cannot meet it: {reason}")
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
