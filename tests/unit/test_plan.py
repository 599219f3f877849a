"""`tracenas plan`: exact counts, estimates of the right kind, no torch unless it measures."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import angle_flops

from tracenas.commands.plan.command import plan
from tracenas.config import PlanConfig
from tracenas.demo import model_path
from tracenas.errors import UserError
from tracenas.models.checkpoints.source import open_source
from tracenas.saliency.sensitivity.table import SensitivityTable, WidthCosts

DEMO = str(model_path())


def planned(**settings: Any) -> Any:
    return plan(PlanConfig(**{"model": DEMO, "no_timing": True, "proxy": "phi", **settings}))


def test_without_timing_torch_is_not_imported(tmp_path: Path) -> None:
    table = str(tmp_path / "table.safetensors")
    rng = np.random.default_rng(0)
    costs = {
        (index, spec.name): WidthCosts(
            rise := np.arange(1, spec.units + 1) * rng.random() / spec.units,
            np.array([0, spec.units]),
            np.array([rise[-1], 0.0]),
        )
        for index, layer in enumerate(open_source(DEMO).space().layers)
        for spec in layer.sub_blocks
    }
    SensitivityTable(costs).save(Path(table))
    code = (
        "import sys\nfrom tracenas.cli import invoke\n"
        f"argv = ['plan', {DEMO!r}, '--params', '60%', '--no-timing', '--sensitivity', {table!r}, '--json']\n"
        "assert invoke(argv) == 0\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["evaluations"] == 210
    assert found["feasible"]["base"] == 2_869_920
    assert found["budget"]["lower"] <= found["uniform"]["params"] <= found["budget"]["limit"]
    assert found["time"] is None
    predicted = found["predicted"]
    assert 0 < predicted["predicted_rise"] < min(predicted["predicted_rise_mlp"], predicted["predicted_rise_uniform"])
    assert found["budget"]["lower"] <= predicted["params"] <= found["budget"]["limit"]


def test_counts_are_those_of_the_uniform_architecture() -> None:
    from tracenas.space.constraints import Budget, parse_size

    found = planned(params="50%", seq_len=128)
    space = open_source(DEMO).space(budget=Budget(parse_size("50%", 2_869_920)), min_depth=4)
    uniform = space.uniform()
    assert uniform is not None
    assert found.uniform["architecture"] == uniform.to_json()
    assert found.uniform["params"] == space.parameters(uniform)
    assert 0.3 < found.uniform["flops_ratio"] < 0.6


def test_without_a_budget_the_base_is_described() -> None:
    found = planned()
    assert found.limit is None and found.uniform["params"] == found.base and found.uniform["flops_ratio"] == 1
    assert "budget" not in [label for label, _ in found._rows()]


@pytest.mark.parametrize(
    ("device", "dtype", "size"), [("cpu", "fp32", 4), ("cpu", "bf16", 2), ("cuda", "auto", 2), ("cuda", "fp32", 4)]
)
def test_weights_take_the_bytes_of_their_dtype(device: str, dtype: str, size: int) -> None:
    assert planned(params="60%", device=device, dtype=dtype).memory.weights == size * 2_869_920


def test_memory_follows_rank_micro_batch_and_proxy() -> None:
    usual = planned(params="60%").memory
    assert planned(params="60%", rank="full").memory.traces > 2 * usual.traces
    assert planned(params="60%", proxy="loss").memory.traces == 0
    assert planned(params="60%", samples=1, seq_len=64).memory.activations < usual.activations / 10
    assert planned(params="60%", dtype="bf16").memory.weights == usual.weights // 2 == 2 * 2_869_920


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"params": "5%"}, "feasible: "),
        ({"params": "60%", "seq_len": 4096}, "512 positions"),
        ({"params": "60%", "proxy": "fi"}, "unknown proxy 'fi'"),
        ({"params": "60%", "rank": "some"}, "rank 'some'"),
        ({"params": "60%", "elites": 30}, "elites 30"),
    ],
)
def test_what_a_search_would_refuse_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        planned(**settings)


def test_passes_on_a_cpu_are_as_large_as_their_activations_allow() -> None:
    from tracenas.pipeline.target import unit_options
    from tracenas.scoring.workload import default_micro_batch

    source = open_source(DEMO)
    blocks, base = source.blocks(unit_options(PlanConfig(model=DEMO))), source.space().base
    of_demo = [blocks, base, int(source.config["hidden_size"])]
    assert default_micro_batch(*of_demo, 128, 4, "cpu") == 32
    deep = [blocks * 20, replace(base, layers=base.layers * 20), of_demo[2]]
    small = default_micro_batch(*deep, 128, 4, "cpu")
    assert 1 <= small < 16 and default_micro_batch(*deep, 128, 2, "cpu") >= 2 * small
    assert default_micro_batch(*deep, 128, 4, "cuda") == 32
    assert default_micro_batch(*deep, 1 << 20, 4, "cpu") == 1


def counted(evaluator: Any, arch: Any) -> int:
    """FLOPs of the matrix products of an evaluation, as torch counts them."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    def added(_: Any, a: Any, b: Any, out_shape: Any = None) -> int:  # torch does not count the in-place product
        return 2 * int(a[0]) * int(a[1]) * int(b[1])

    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: added}) as counter:
        evaluator.score(arch)
    return int(counter.get_total_flops()) - angle_flops(counter)


def test_work_is_what_torch_counts() -> None:
    """FLOPs of the matrix products of a real evaluation, forward, backward and traces."""
    import torch

    from tracenas.models.checkpoints.loading import load
    from tracenas.models.surgery.ordering import Ordering
    from tracenas.models.surgery.supernet import Supernet
    from tracenas.proxies import PROXIES
    from tracenas.scoring.evaluator import Evaluator, ScoringSettings
    from tracenas.scoring.workload import Shape, workload
    from tracenas.space.constraints import Budget

    source = open_source(DEMO)
    space = source.space(budget=Budget(1_722_000))
    arch = space.uniform()
    assert arch is not None
    blocks = source.blocks()
    units = {
        (i, s.spec.name): torch.arange(s.spec.units, 0, -1).double() for i, b in enumerate(blocks) for s in b.sub_blocks
    }
    net = Supernet(load(source, device="cpu", dtype="fp32").model, blocks, Ordering.from_saliency(blocks, units))
    tokens = torch.randint(0, 2048, (2, 64), generator=torch.Generator().manual_seed(0))
    evaluator = Evaluator(net, space, tokens, PROXIES.get("phi"), ScoringSettings(rank=16, micro_batch=2))

    products = counted(evaluator, arch)
    head = source.family.head_weights(source.config)
    work = workload(blocks, arch, head, 160, Shape(2, 64, 2, 16, 4, "cpu"))
    # The first block's q, k and v need no input gradient, and the last token of a sequence has no logits.
    first = 2 * tokens.numel() * 3 * 160 * 16 * arch.layers[0]["heads"]
    assert products == work.flops + work.trace_flops - first - 2 * 4 * head


@pytest.mark.parametrize("rank", [4, 0])
def test_work_of_experts_is_what_torch_counts(rank: int) -> None:
    """Their traces are whole weight gradients, projected once per micro-batch (which the plan leaves out)."""
    from proxy_setting import ProxySetting

    from tracenas.scoring.evaluator import ScoringSettings
    from tracenas.scoring.workload import Shape, workload

    setting = ProxySetting("mixtral")
    setting.net.model.config._experts_implementation = "eager"  # torch does not count grouped products
    arch = setting.architectures(3)[2]
    evaluator = setting.evaluator("phi", ScoringSettings(rank=rank, micro_batch=5))
    evaluator.score(arch)
    products = counted(evaluator, arch)
    head = 257 * 32
    work = workload(setting.blocks, arch, head, 32, Shape(5, 24, 5, rank, 4, "cpu"))
    first = 2 * 120 * 32 * 8 * (arch.layers[0]["heads"] + 2 + 2)  # both KV heads stay
    projected = 2 * 3 * rank * 32 * sum(layer["channels"] for layer in arch.layers)
    assert products == work.flops + work.trace_flops + projected - first - 4 * 5 * head


def test_elementwise_work_goes_by_the_widths() -> None:
    """Per token: 30 hidden widths a sub-block, 18 q, k and v, 8 head outputs, 14 channels, 12 vocabularies."""
    from tracenas.scoring.workload import Shape, workload

    source = open_source(DEMO)
    space, blocks, head = source.space(), source.blocks(), source.family.head_weights(source.config)
    layers = [[3, 64], [0, 448], *[[0, 0]] * 5, [10, 0]]
    arch = space.build(layers)
    of_blocks = 4 * 30 * 160 + (3 + 10) * 16 * (3 * 18 + 8) + (64 + 448) * 14
    shape = Shape(2, 64, 2, 16, 4, "cpu")
    work = workload(blocks, arch, head, 160, shape)
    assert work.elements == pytest.approx(128 * (12 * 2048 + of_blocks))
    assert work.score_pairs == 128 * 64 * (3 + 10)
    forward = workload(blocks, arch, head, 160, replace(shape, rank=None))
    assert forward.elements == pytest.approx(128 * 0.4 * (12 * 2048 + of_blocks))
    assert (forward.flops, forward.trace_flops) == (work.flops / 2, 0)


@pytest.mark.parametrize("rank", [4, 0])
@pytest.mark.parametrize("family", ["llama", "mixtral", "qwen3_moe"])
def test_memory_of_traces_is_what_they_take(family: str, rank: int) -> None:
    from proxy_setting import ProxySetting

    from tracenas.proxies.trace import TraceRecorder
    from tracenas.scoring.workload import Shape, memory

    setting = ProxySetting(family)
    recorder = TraceRecorder(setting.net, rank, 0)
    arch, base = setting.architectures(3)[2], setting.space.base
    taken = sum(a.nbytes for a in recorder._subspaces.values())
    for one in (base, arch):
        with recorder.record(one) as trace:
            taken += sum(part.nbytes for part in trace.parts.values())
    assert memory(setting.blocks, base, arch, 1, 257, 32, Shape(5, 24, 2, rank, 4, "cpu")).traces == taken


@pytest.mark.parametrize(("rank", "attention", "mlp"), [(4, 8, 8), (0, 320, 608), (None, 0, 0)])
def test_memory_of_a_pass_goes_by_the_widths(rank: int | None, attention: int, mlp: int) -> None:
    """Kept per token for a backward pass: 2 hidden widths, 4 of the heads or 3 of the channels, and x Aᵀ or x itself.

    Without a backward pass only the largest sub-block's; beside it three chunks of logits and two hidden states.
    """
    from tracenas.scoring.workload import Shape, memory

    source = open_source(DEMO)
    blocks, base = source.blocks(), source.space().base
    found = memory(blocks, base, base, 1000, 2048, 160, Shape(8, 64, 2, rank, 4, "cpu"))
    heads, channels = 2 * 160 + 4 * 160 + attention, 2 * 160 + 3 * 448 + mlp
    assert found.activations == int(1.15 * 128 * (channels if rank is None else 8 * (heads + channels)) * 4)
    assert found.head == 3 * 128 * 2048 * 4 + 2 * 128 * 160 * 4
    assert found.weights == 4000 and found.libraries == 350 << 20
    assert found.total == found.weights + found.traces + found.activations + found.head + found.libraries
    more = memory(blocks, base, base, 1000, 2048, 160, Shape(8, 64, 64, rank, 4, "cpu"))
    assert more.head == 3 * (1 << 22) * 4 + 2 * 4096 * 160 * 4
    assert memory(blocks, base, base, 1000, 2048, 160, Shape(8, 64, 64, rank, 4, "cuda")).libraries == 0


def test_seconds_add_up_over_kinds_of_work() -> None:
    from tracenas.benchmark.machine import Rates
    from tracenas.pipeline.estimate import workload_seconds as seconds
    from tracenas.scoring.workload import Workload

    work = Workload(flops=4e9, trace_flops=1e9, elements=1e8, score_pairs=1e6)
    wider = {"single_flops": 1e9, "double_flops": 1e9}
    rates = Rates(flops=2e9, thin_flops=1e9, bytes=4e8, score_seconds=1e-6, score_seconds_forward=1e-7, **wider)
    shape = planned(params="60%").shape
    assert seconds(work, rates, shape) == pytest.approx(2 + 1 + 1 + 1)
    assert seconds(work, rates, replace(shape, rank=None)) == pytest.approx(2 + 1 + 1 + 0.1)
    assert seconds(work, rates, replace(shape, rank=0)) == pytest.approx(2 + 0.5 + 1 + 1)


def test_timing_is_measured_here_and_said_to_be_an_estimate(capsys: pytest.CaptureFixture[str]) -> None:
    found = plan(PlanConfig(model=DEMO, params="60%", samples=2, seq_len=64, iterations=2, population=4, elites=2))
    assert found.seconds_per_evaluation is not None and set(found.seconds) == {"search", "prune"}
    assert found.evaluations == 6
    assert 6 * found.seconds_per_evaluation < found.seconds["search"] < 60
    found.show()
    assert "estimate" in capsys.readouterr().out


def test_activations_that_do_not_fit_are_counted_as_recomputed(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = planned(params="60%").to_json()
    assert not kept["calibration"]["recomputed"]
    monkeypatch.setattr("tracenas.commands.plan.command.host_memory", lambda: kept["memory_bytes"]["total"])
    short = planned(params="60%")
    found = short.to_json()
    assert found["calibration"]["recomputed"]
    assert found["memory_bytes"]["activations"] < 0.5 * kept["memory_bytes"]["activations"]
    assert any("run again in the backward pass" in note for table in short.tables() for note in table.notes)
    assert not planned(params="60%", proxy="loss").to_json()["calibration"]["recomputed"]  # no backward pass
