"""Costs that budgets count, against models and files of the same architecture."""

import json
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_cases import checkpoint
from latency_tables import POINTS, made_table
from tiny import OWN, tiny_model
from torch.utils.flop_counter import FlopCounterMode

from tracenas.budgets import BUDGETS, Counted, Serving
from tracenas.exporters.gguf import export_gguf
from tracenas.families import FAMILIES, Options
from tracenas.models.checkpoints.loading import load
from tracenas.models.checkpoints.source import open_source
from tracenas.pipeline.budgets import Costs
from tracenas.space import SearchSpace

pytestmark = pytest.mark.parity
DECODERS = [name for name in FAMILIES.names() if name != "t5"]


def costs(directory: Path, serving: Serving, **options: Any) -> Costs:
    source = open_source(str(directory))
    blocks = source.blocks(Options(**options))
    space = SearchSpace(tuple(b.spec for b in blocks), source.family.outside(source.config))
    return Costs(space, Counted(source, blocks, serving))


def saved(directory: Path, family: str, **changes: Any) -> Path:
    model = tiny_model(family, **changes)
    model.save_pretrained(directory)
    return directory


@pytest.mark.parametrize("family", DECODERS)
def test_a_models_costs_are_what_torch_counts(family: str, tmp_path: Path) -> None:
    context = 24
    window = {"sliding_window": 64} if "sliding_window" in OWN[family] else {}  # wider than the context: all is cached
    model = costs(saved(tmp_path / "m", family, **window), Serving(context, batch=2, stored="f32"))
    loaded = load(open_source(str(tmp_path / "m")), device="cpu", dtype="fp32").model
    found, base = model.all(model.space.base), model.space.base
    loaded.set_attn_implementation("eager")  # torch does not count its fused attention on CPUs, nor grouped products
    if hasattr(loaded, "set_experts_implementation"):
        loaded.set_experts_implementation("eager")
    parameters = {p.data_ptr(): p for p in loaded.parameters()}
    assert found["params"] == sum(p.numel() for p in parameters.values())
    ids = torch.arange(2 * context).reshape(2, context) % 50
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        result = loaded(ids, use_cache=True)
    assert found["flops"] == pytest.approx(counter.get_total_flops() / ids.numel(), rel=0.01)
    kept = [tensor for layer in result.past_key_values.layers for tensor in (layer.keys, layer.values)]
    cached = sum(tensor.numel() * tensor.element_size() for tensor in kept)
    assert found["kv_cache"] * ids.numel() == cached
    logits = 2 * int(model.model.source.config["vocab_size"]) * 4
    weights = sum(p.numel() * p.element_size() for p in parameters.values())
    assert found["memory"] == weights + cached + logits
    assert model.exactly("params", base) == model.space.parameters(base)


@pytest.mark.parametrize("stored", ["bf16", "q8_0"])
def test_worker_processes_can_be_given_every_cost(stored: str, tmp_path: Path) -> None:
    directory, point = checkpoint(tmp_path / "model", "llama", [(4, 96)] * 4), POINTS[0]
    model = costs(directory, Serving(point.context, point.batch, stored, point.prompt))
    model = replace(model, model=replace(model.model, latency=made_table(directory)))
    for name in BUDGETS:
        cost = model.measure(name)
        sent = ForkingPickler.loads(bytes(ForkingPickler.dumps(cost)))
        space, base = model.space, model.space.base
        assert sent.total(space.layers, base) == cost.total(space.layers, base) > 0


def test_experts_that_a_token_is_not_routed_to_are_not_active(tmp_path: Path) -> None:
    model = costs(saved(tmp_path / "m", "mixtral"), Serving(8))
    config, found = model.model.source.config, model.all(model.space.base)
    idle = config["num_local_experts"] - config["num_experts_per_tok"]
    of_one = 3 * config["hidden_size"] * config["intermediate_size"]
    assert found["active_params"] == found["params"] - idle * of_one * config["num_hidden_layers"]
    cut = model.space.build([[row[0], row[1] // 2] for row in model.space.counts(model.space.base)])
    half = model.all(cut)
    assert half["active_params"] == half["params"] - idle * (of_one // 2) * config["num_hidden_layers"]


@pytest.mark.parametrize(
    ("vocabulary", "hidden", "context", "mebibytes"), [(49_152, 576, 512, 98.25), (151_936, 896, 256, 150.125)]
)
def test_what_llama_cpp_computes_in_counts_with_quantised_weights(
    vocabulary: int, hidden: int, context: int, mebibytes: float, tmp_path: Path
) -> None:
    """By its log (llama-cpp-python 0.3.36) for SmolLM2-135M and Qwen2.5-Coder-0.5B: `compute buffer size`."""
    shape = {"vocab_size": vocabulary, "hidden_size": hidden, "intermediate_size": 32, "num_hidden_layers": 1}
    config = {**shape, "model_type": "llama", "num_attention_heads": hidden // 64, "num_key_value_heads": 1}
    (tmp_path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    model = costs(tmp_path, Serving(context - 7, stored="q8_0"))  # a cache of multiples of 256 tokens
    base = model.space.base
    quantised = 34 * (model.space.parameters(base) - 3 * hidden) // 32 + 4 * 3 * hidden  # matrices, and three norms
    cache, logits = context * model.exactly("kv_cache", base), 4 * vocabulary
    assert model.exactly("memory", base) == quantised + cache + logits + round(mebibytes * 2**20)


COUNTS: dict[str, list[list[tuple[int, int]]]] = {
    "llama": [[(4, 96), (4, 96), (4, 96), (4, 96)], [(2, 64), (4, 32), (0, 0), (4, 96)]],
    "mistral": [[(2, 64), (4, 32), (2, 32), (4, 96)]],
    "qwen2": [[(2, 64), (4, 32), (0, 0), (0, 0)], [(4, 64), (4, 64), (4, 64), (4, 64)]],
    "qwen3": [[(2, 64), (4, 32), (0, 0), (4, 96)]],
}


@pytest.mark.parametrize("outtype", ["f16", "q8_0"])
@pytest.mark.parametrize("family", COUNTS)
def test_a_file_is_counted_to_the_byte_and_never_above_its_bound(family: str, outtype: str, tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", family, [(4, 96)] * 4)
    model = costs(base, Serving(8, stored=outtype))
    for number, counts in enumerate(COUNTS[family]):
        out = checkpoint(tmp_path / f"cut{number}", family, counts)
        written = export_gguf(open_source(str(out)), tmp_path / f"{number}.gguf", outtype=outtype, tokenizer=False)
        arch = model.space.build(counts)
        assert model.exactly("file", arch) == written.size, (written.layout, counts)
        bound = model.measure("file").total(model.space.layers, arch)
        assert written.size <= bound <= written.size + 2_000
