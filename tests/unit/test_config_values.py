"""Values that no machine could use are refused when settings are built, whichever command they are of."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import split_torch_state_dict_into_shards

from tracenas import config as configs
from tracenas.config import BenchConfig, PruneConfig, RecoverConfig, SearchConfig, SparsifyConfig, StageConfig
from tracenas.errors import UserError
from tracenas.pipeline.llama import llama_cpp

SEARCH = {"model": "m", "data": "d", "params": "60%", "out": "o"}
RECOVER = {"model": "m", "data": "d", "out": "o", "method": "pretrain", "max_steps": 1}
PRUNE = {"model": "m", "arch": "a.json", "out": "o"}
SPARSIFY = {"model": "m", "metric": "magnitude", "sparsity": "0.5", "out": "o"}
BENCH = {"models": ["m"], "backend": "llama.cpp"}


@pytest.mark.parametrize("name", ["nonsense", "mps", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "CPU", ""])
@pytest.mark.parametrize(("kind", "values"), [(SearchConfig, SEARCH), (RecoverConfig, RECOVER), (BenchConfig, BENCH)])
def test_what_is_no_device(kind: type[StageConfig], values: dict[str, Any], name: str) -> None:
    """Whatever computes: llama.cpp and vLLM are not asked by torch."""
    with pytest.raises(UserError, match=f"device '{name}': accepted: auto, cpu, cuda"):
        configs.build(kind, {**values, "device": name})


@pytest.mark.parametrize("name", ["auto", "cpu", "cuda", "cuda:0", "cuda:11"])
def test_devices(name: str) -> None:
    assert configs.build(BenchConfig, {"models": ["m"], "device": name}).device == name


@pytest.mark.parametrize("value", [float("inf"), float("nan"), "inf", "nan"])
@pytest.mark.parametrize(
    ("kind", "values", "name"),
    [(SearchConfig, SEARCH, "minutes"), (SearchConfig, SEARCH, "ridge"), (RecoverConfig, RECOVER, "learning_rate")],
)
def test_numbers_are_finite(kind: type[StageConfig], values: dict[str, Any], name: str, value: object) -> None:
    with pytest.raises(UserError, match=f"{name.replace('_', '-')} '(inf|nan)': input should be a finite number"):
        configs.build(kind, {**values, name: value})


@pytest.mark.parametrize("size", ["0", "10", "0GB", "-5GB", "nope", "5GiB", "5 PB", "..GB", ""])
def test_what_is_no_size_of_a_shard(size: str) -> None:
    """Else it would be told when the checkpoint is to be written, behind all the work."""
    for kind, values in ((PruneConfig, PRUNE), (RecoverConfig, RECOVER), (SparsifyConfig, SPARSIFY)):
        with pytest.raises(UserError, match=f"shard-size '{re.escape(size)}': expected a size with its unit"):
            configs.build(kind, {**values, "shard_size": size})


@pytest.mark.parametrize("size", ["5GB", "0.5 gb", "200MB", "30KB", "1TB"])
def test_sizes_of_shards_are_those_of_the_library(size: str) -> None:
    asked = configs.build(PruneConfig, {**PRUNE, "shard_size": size}).shard_size
    split = split_torch_state_dict_into_shards({"weight": torch.zeros(4)}, max_shard_size=asked)
    assert not split.is_sharded


def test_a_seed_is_one_for_every_library() -> None:
    """NumPy's generators of old take 32 bits, torch's 64."""
    assert configs.build(BenchConfig, {"models": ["m"], "seed": 2**32 - 1}).seed == 2**32 - 1
    with pytest.raises(UserError, match="seed '4294967296': input should be less than or equal to 4294967295"):
        configs.build(BenchConfig, {"models": ["m"], "seed": 2**32})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"batch": 10**20}, "batch '100000000000000000000': expected a number of at most 2,147,483,647"),
        ({"population": 10**23}, f"population '{10**23}': expected a number of at most 2,147,483,647"),
        ({"threads": 2**31 - 1}, "threads '2147483647': input should be less than or equal to 4096"),
    ],
)
def test_counts_are_what_a_machine_counts_to(settings: dict[str, int], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        configs.build(SearchConfig, {**SEARCH, **settings})


def test_a_learning_rate_is_one_that_a_step_can_take() -> None:
    with pytest.raises(
        UserError, match=re.escape("learning-rate '1e+300': input should be less than or equal to 1000")
    ):
        configs.build(RecoverConfig, {**RECOVER, "learning_rate": 1e300})


def test_llama_cpp_computes_on_the_gpu_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "trials.py"
    facts = '{"gpu": True, "llama_cpp": os.environ.get("CUDA_VISIBLE_DEVICES")}'
    script.write_text(f"import json, os\nprint(json.dumps({facts}), flush=True)\ninput()\n")
    monkeypatch.setattr("tracenas.pipeline.llama.script", SimpleNamespace(__file__=str(script)))
    monkeypatch.setattr("tracenas.pipeline.llama.find_llama", lambda *_: Path(sys.executable))
    monkeypatch.setattr("tracenas.pipeline.llama.graphics_processors", lambda: ("first", "second"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = {}
    for device in ("cuda", "cuda:0", "cuda:1"):
        with llama_cpp(BenchConfig(models=("m",), backend="llama.cpp", device=device, threads=1)) as program:
            found[device] = (program.machine["llama_cpp"], program.machine["device"])
    assert found == {"cuda": (None, "first"), "cuda:0": ("0", "first"), "cuda:1": ("1", "second")}
