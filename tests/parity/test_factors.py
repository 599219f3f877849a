"""Factors of norms and output projections: what they do in hooks and in tensors, and their gradient, in every family."""

from typing import Any

import numpy as np
import pytest
import torch
from tiny import ENCODER_DECODER, tiny_model

from tracenas.families import FAMILIES, Options, family_of
from tracenas.models.functionals.loss import next_token_nll
from tracenas.models.surgery.ordering import Ordering
from tracenas.models.surgery.supernet import Supernet
from tracenas.pipeline.refit.entries import in_block
from tracenas.refits.factors import FactorTraining, ReplacedRealisation, factor_places, folded, scaling, train_factors
from tracenas.space.architecture import Architecture, Layer

DECODERS = [name for name in FAMILIES.names() if name not in ENCODER_DECODER]


def opened(model_type: str) -> tuple[Supernet, Architecture, str]:
    """A super-network of a tiny model in float64, an architecture without the second block's attention, the last norm."""
    model: Any = tiny_model(model_type).double()
    family = family_of(model.config.to_dict())
    blocks = family.blocks(model.config.to_dict(), Options(channel_quantum=8))
    order = {(i, s.spec.name): np.arange(s.spec.units) for i, b in enumerate(blocks) for s in b.sub_blocks}
    net = Supernet(model, blocks, Ordering(order))
    layers = []
    for index, block in enumerate(blocks):
        kept = {s.spec.name: s.spec.units for s in block.sub_blocks}
        layers.append(Layer(tuple((s.spec.unit, 0 if (index, s.spec.name) == (1, "attention") else kept[s.spec.name]) for s in block.sub_blocks), block.stack))
    return net, Architecture(tuple(layers)), family.final_norm
