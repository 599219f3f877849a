"""Presets of the search space: what they allow, what they refuse."""

from typing import Any

import numpy as np
import pytest

from tracenas.config import PlanConfig
from tracenas.demo import model_path
from tracenas.errors import UserError
from tracenas.models.checkpoints.source import open_source
from tracenas.pipeline.target import resolve_target
from tracenas.space.architecture import Architecture
from tracenas.space.deploy import Deploy, parse_deploy

DEMO = str(model_path())  # 10 heads, 448 channels, 8 blocks


def space(deploy: str, **settings: Any) -> Any:
    config = PlanConfig(model=DEMO, deploy=deploy, **settings)
    return resolve_target(open_source(DEMO), config, params=settings.get("params")).space


def test_presets_combine() -> None:
    assert parse_deploy("") == Deploy()
    assert parse_deploy("gguf, tensor-parallel:3") == Deploy(channels=256, divides=3)
    assert parse_deploy("gguf,tensor-parallel:3").channel_quantum == 768
    assert parse_deploy("vllm-stock,tensor-parallel:2,tensor-parallel:3").divides == 6


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("guff", "unknown deploy preset 'guff': did you mean 'gguf'"),
        ("tensor-parallel", "expected the number of devices, as tensor-parallel:2"),
        ("tensor-parallel:0", "expected the number of devices"),
        ("gguf:2", "gguf takes no number"),
    ],
)
def test_wrong_presets(text: str, line: str) -> None:
    with pytest.raises(UserError, match=line):
        parse_deploy(text)


def test_gguf_keeps_widths_in_multiples_of_256_or_the_bases_own() -> None:
    assert space("gguf").layers[0].sub_blocks[1].choices() == (256, 448)
    assert space("gguf", channel_quantum=96).layers[0].sub_blocks[1].choices() == (448,)


def test_tensor_parallel_divides_heads_and_widths() -> None:
    attention, mlp = space("tensor-parallel:2").layers[0].sub_blocks
    assert attention.choices() == (2, 4, 6, 8, 10) and all(w % 2 == 0 for w in mlp.choices())
    with pytest.raises(UserError, match=r"deploy 'tensor-parallel:4': block 0 of .* has 10 query heads, not divisible"):
        space("tensor-parallel:4")


def test_what_a_block_cannot_meet_is_said() -> None:
    shape = {"heads": 8, "kv_heads": 4, "width": 448}
    assert parse_deploy("gguf,vllm-stock,tensor-parallel:4").objection(**shape) == ""
    assert parse_deploy("gguf").objection(**{**shape, "width": 0}) == ""  # removed before: nothing to cut
    assert "it has 4 KV heads, not divisible by 8" in parse_deploy("tensor-parallel:8").objection(**shape)
    too_wide = parse_deploy("gguf,tensor-parallel:3").objection(heads=9, kv_heads=9, width=447)
    assert too_wide == "its MLP has 447 channels, fewer than 768: it could not be cut"
    assert "it has no attention" in parse_deploy("vllm-stock").objection(heads=0, kv_heads=0, width=448)


def test_vllm_stock_keeps_attention_unless_the_block_goes() -> None:
    kept = space("vllm-stock", depth_granularity="sublayer", min_depth=2, params="40%")
    rng = np.random.default_rng(0)
    drawn = [kept.sample(rng) for _ in range(40)]
    drawn += [kept.repair(kept.mutate(a, rng, depth=1.0), rng) for a in drawn if a is not None]
    layers = [layer for arch in drawn if arch is not None for layer in arch.layers]
    assert any(layer["channels"] == 0 for layer in layers)
    assert all(layer["heads"] or layer.skip for layer in layers)
    free = space("", depth_granularity="sublayer", min_depth=2, params="40%")
    without = [a for a in (free.sample(rng) for _ in range(40)) if a is not None]
    assert any(not layer["heads"] and layer["channels"] for arch in without for layer in arch.layers)
    wrong = {"layers": [{"heads": 0, "channels": 448}, *[{"heads": 10, "channels": 448}] * 7]}
    with pytest.raises(UserError, match="layer 0 has no attention, which this search space keeps"):
        kept.validate(Architecture.from_json(wrong))


@pytest.mark.parametrize("kv_groups", [False, True])
def test_grouped_queries(kv_groups: bool) -> None:
    from tracenas.families import Options, config_family
    from tracenas.pipeline.target import _counts

    config = {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 512,
        "num_hidden_layers": 1,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "vocab_size": 10,
    }
    options = Options(256, 2, kv_groups, 2)
    block = config_family(config).blocks(config, options)[0]
    assert _counts(block) == {"heads": 16, "kv_heads": 4, "width": 512}
    assert block.sub_blocks[0].spec.choices() == ((2, 4) if kv_groups else (4, 8, 12, 16))
    assert block.sub_blocks[1].spec.choices() == (256, 512)
    one = {**config, "num_key_value_heads": 1}
    assert _counts(config_family(one).blocks(one, Options())[0])["kv_heads"] == 1
