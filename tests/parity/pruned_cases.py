"""Tiny dense models of every family, cut at random, beside the masked models that the cuts must equal."""

import copy
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from masked_reference import KeptWidth
from tiny import ENCODER_DECODER, SHAPE, auto_class, capping, tiny_config
from transformers import AutoModelForCausalLM

from tracenas.families import FAMILIES, Options, config_family
from tracenas.models.checkpoints.writing import Draft, save_pruned

TINY = SHAPE
# Families whose own configuration cannot say another number of heads.
FIXED_HEADS = {"gpt_neox", "t5"}
DECODERS = [name for name in FAMILIES.names() if name not in ENCODER_DECODER]
"""Families of one stack; what encoder–decoders must do stands in test_t5.py."""

# Per block: kept heads per KV group (fraction), kept channels (fraction); 0 is bypassed.
SHAPES = {
    "first_block_skipped": [(0, 0), (0.5, 0.7), (1, 0.4), (0.5, 1)],
    "last_block_skipped": [(0.5, 0.4), (1, 0.7), (0.5, 0.7), (0, 0)],
    "no_attention_in_layer_0": [(0, 0.7), (0.5, 0.4), (0, 1), (1, 0)],
    "no_mlp_in_layer_0": [(0, 0), (0.5, 0), (0, 0.4), (1, 0.7)],
    "uniform": [(0.5, 0.7), (0, 0), (0.5, 0.7), (0.5, 0.7)],
}
UNEVEN = [(0.75, 0.7), (0, 0), (0.75, 0.7), (0.75, 0.7)]


@dataclass
class Case:
    """A pruned checkpoint on disk beside what it must equal."""

    draft: Draft
    dense: Any
    family: Any
    blocks: Any
    kept: dict[tuple[int, str], Any]
    reference: Any

    def load(self, **kwargs: Any) -> Any:
        model = auto_class(self.family.model_type).from_pretrained(self.draft.path, **kwargs).eval()
        return model if kwargs else capping(model)


def dense_model(model_type: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(model_type, **changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms too, which start constant
            parameter.add_(0.1 * torch.randn_like(parameter))
    return capping(model)


def random_kept(blocks: Any, shape: Sequence[tuple[float, ...]], seed: int) -> dict[tuple[int, str], Any]:
    rng = np.random.default_rng(seed)
    kept: dict[tuple[int, str], Any] = {}
    for index, (block, fractions) in enumerate(zip(blocks, shape, strict=True)):
        for sub, fraction in zip(block.sub_blocks, fractions, strict=True):
            if not fraction:
                kept[index, sub.spec.name] = None
                continue
            count = sub.spec.round(fraction * sub.spec.units) // sub.groups
            groups = np.arange(sub.spec.units).reshape(sub.groups, -1)
            ids = np.concatenate([np.sort(rng.permutation(group)[:count]) for group in groups])
            kept[index, sub.spec.name] = ids
    return kept


def masked(dense: Any, blocks: Any, kept: dict[tuple[int, str], Any]) -> Any:
    """The dense model with the removed units' columns of the output projections at zero, by hand."""
    model = copy.deepcopy(dense).eval()
    for index, block in enumerate(blocks):
        layer = model.get_submodule(block.path)
        for sub in block.sub_blocks:
            if sub.spec.units == 0:  # the base has it bypassed
                continue
            ids = kept[index, sub.spec.name]
            stays = torch.zeros(sub.spec.units, dtype=torch.bool)
            if ids is not None:
                stays[ids] = True
            elif not sub.stacked:
                layer.get_submodule(sub.output).bias = None
            with torch.no_grad():
                if sub.stacked:
                    layer.get_parameter(sub.output).mul_(stays.view(sub.groups, 1, -1))
                else:
                    weight = layer.get_submodule(sub.output).weight
                    weight[:, ~stays.repeat_interleave(weight.shape[1] // sub.spec.units)] = 0
            for norm in sub.width_norms if ids is not None and len(ids) < sub.spec.units else ():
                if norm.row_units:  # of every head: not over those that are gone
                    width = stays.repeat_interleave(norm.rows // sub.spec.units).nonzero()[:, 0]
                    layer.set_submodule(norm.path, KeptWidth(layer.get_submodule(norm.path), width))
    return model


def cut(
    model: Any, shape: Sequence[tuple[float, ...]], out: Path, *, options: Options | None = None, **kw: Any
) -> Case:
    config = json.loads(model.config.to_json_string())
    family = config_family(config)
    blocks = family.blocks(config, options or Options())
    kept = random_kept(blocks, shape, sum(map(ord, out.name)))
    draft = save_pruned(model, None, family, blocks, kept, out, **kw)
    return Case(draft, model, family, blocks, kept, masked(model, blocks, kept))


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    return model(ids, **kwargs).logits


def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5 * max(1.0, float(expected.abs().max())))


def train_one_step(model: Any, ids: torch.Tensor, labels: torch.Tensor) -> None:
    """Gradient descent with checkpointed activations; the model is in evaluation mode afterwards."""
    # older versions of transformers know the second name only
    (getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable)()
    model.train()(input_ids=ids, labels=labels).loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter -= 0.01 * parameter.grad
    model.eval()


def run_alone(code: str, *arguments: str, home: Path) -> str:
    """Run Python code in a process of its own with an empty cache of remote code; returns its stderr."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "HF_HOME": str(home), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stderr


@dataclass
class Variant:
    """A dense model, and how it is cut."""

    of: str
    shape: list[tuple[float, float]]
    changes: dict[str, Any] = field(default_factory=dict)
    options: Options = field(default_factory=Options)


VARIANTS = {
    **{f"{name}_{label}": Variant(name, shape) for name in DECODERS for label, shape in SHAPES.items()},
    "llama_mha": Variant("llama", SHAPES["no_attention_in_layer_0"], {"num_key_value_heads": 4}),
    "llama_mha_tied": Variant(
        "llama", SHAPES["first_block_skipped"], {"num_key_value_heads": 4, "tie_word_embeddings": True}
    ),
    "qwen2_mha": Variant("qwen2", SHAPES["last_block_skipped"], {"num_key_value_heads": 4}),
    "llama_kv_groups": Variant("llama", SHAPES["no_mlp_in_layer_0"], options=Options(kv_groups=True)),
    # 6 of 8 heads in a stream of 32: no LlamaConfig can say so
    "llama_uneven": Variant("llama", UNEVEN, {"num_attention_heads": 8}),
    "qwen3_uneven": Variant("qwen3", UNEVEN, {"num_attention_heads": 8}),
    "olmo2_mha": Variant("olmo2", SHAPES["first_block_skipped"], {"num_key_value_heads": 4}),
    "olmo2_kv_groups": Variant("olmo2", SHAPES["no_mlp_in_layer_0"], options=Options(kv_groups=True)),
    "phi3_mha": Variant("phi3", SHAPES["no_attention_in_layer_0"], {"num_key_value_heads": 4}),
    "phi3_kv_groups": Variant("phi3", SHAPES["last_block_skipped"], options=Options(kv_groups=True)),
    "gpt_neox_sequential": Variant("gpt_neox", SHAPES["no_mlp_in_layer_0"], {"use_parallel_residual": False}),
    "gpt_neox_channels": Variant("gpt_neox", [(1, 0.4), (0, 0), (1, 0.4), (1, 0.4)]),
}
STOCK = {"qwen3_uneven", "gpt_neox_channels", *(f"{name}_uniform" for name in set(DECODERS) - FIXED_HEADS)}
HETEROGENEOUS = [name for name in VARIANTS if name not in STOCK]
