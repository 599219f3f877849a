"""Sensitivity tables, `prune --method fisher` and `--method mlp`, by the command line."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_lines import printed, refused
from safetensors.numpy import load_file
from tiny import save_families

from tracenas.cli import invoke
from tracenas.pipeline.refit.statistics import StoredGrams

pytestmark = pytest.mark.integration

SETTINGS = ["--seq-len", "32", "--threads", "1", "--channel-quantum", "8"]
FAMILIES = ("llama", "gpt_neox", "mixtral", "olmo2", "t5")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """Tiny models and a text."""
    return save_families(tmp_path_factory.mktemp("closed_form"), FAMILIES, tokenizer)


def prune(home: Path, out: Path, *options: str, model: str = "llama") -> list[str]:
    data = ["--data", str(home / "text.txt"), "--params", "60%", "--samples", "4"]
    return ["prune", str(home / model), *data, "--out", str(out), *SETTINGS, *options]


def measure(home: Path, out: Path, *options: str, model: str = "llama") -> list[str]:
    return ["sensitivity", str(home / model), "--data", str(home / "text.txt"), "--out", str(out), *SETTINGS, *options]


@pytest.mark.parametrize("family", FAMILIES)
def test_fisher_prunes_every_kind_of_model(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], family: str
) -> None:
    made = printed(capsys, prune(home, tmp_path / "out", "--method", "fisher", model=family))
    assert made["one_shot"]["saliency"] == "fisher" and made["one_shot"]["allocation"] == "solver"
    facts = made["one_shot"]
    assert 0 <= facts["solver_gap"] <= 3e-3
    assert 0 < facts["predicted_rise"] <= 1.01 * facts["predicted_rise_uniform"]
    assert abs(facts["measured_rise"]) < 1  # of random weights and text it may have either sign
    assert 0 < facts["measured_rise_error"] < 1
    assert 0.9 * 0.6 * made["base_params"] <= made["params"] <= 0.6 * made["base_params"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| predicted rise |" in card
    if family != "t5" and made["compensation"] is not None:
        assert made["compensation"]["ridge_scale"] == "channel" and made["compensation"]["ridge"] == 0.1
        assert "relative to every channel's own diagonal" in card


def test_the_ridge_refit_takes_the_matrices_of_the_table(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No pass of its own, and the loss that one would give."""
    with monkeypatch.context() as patched:
        patched.setattr(StoredGrams, "of", lambda *_: None)
        computed = printed(capsys, prune(home, tmp_path / "a", "--method", "fisher"))["choice"]["losses"]
    monkeypatch.delattr("tracenas.pipeline.refit.fit.gram_matrices")
    made = printed(capsys, prune(home, tmp_path / "b", "--method", "fisher"))["choice"]["losses"]
    assert made == pytest.approx(computed, abs=2e-5) and made["ridge"] != made["plain"]


def test_the_terminal_shows_what_was_predicted_and_what_was_measured(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(prune(home, tmp_path / "out", "--method", "fisher")) == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert re.search(r"rise of the loss, refitted -?\d\.\d{3} predicted, -?\d\.\d{3} ± \d\.\d{3} measured", said)
    assert re.search(r"predicted of others MLPs alone \d\.\d{3}, equal ratios \d\.\d{3}", said)
    assert invoke(prune(home, tmp_path / "flap", "--method", "flap")) == 0
    assert "predicted" not in capsys.readouterr().out


def test_the_measured_rise_is_above_the_dense_loss(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ("--method", "fisher", "--compensate", "none")
    dense = printed(capsys, prune(home, tmp_path / "dense", *settings, "--params", "100%"))
    made = printed(capsys, prune(home, tmp_path / "out", *settings))
    assert dense["one_shot"]["predicted_rise"] == 0 and dense["one_shot"]["measured_rise"] == pytest.approx(0, abs=1e-5)
    assert made["one_shot"]["measured_rise"] == pytest.approx(made["loss"] - dense["loss"], abs=1e-4)
    of_base = re.search(r"\| calibration loss of the base \| (.+) \|", (tmp_path / "out" / "README.md").read_text())
    assert of_base is not None and float(of_base[1]) == pytest.approx(dense["loss"], abs=1e-4)


def test_mlp_only_is_a_stock_checkpoint(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [a for a in prune(home, tmp_path / "out", "--method", "mlp") if a not in ("--channel-quantum", "8")]
    made = printed(capsys, argv)
    assert made["stock"]
    width = made["one_shot"]["mlp_width"]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["intermediate_size"] == width and config["num_attention_heads"] == 4 and width % 8 == 0
    each = 4 * 3 * 32 * 8  # the parameters of eight channels in every block
    assert made["params"] <= 0.6 * made["base_params"] < made["params"] + each
    finer = printed(capsys, prune(home, tmp_path / "finer", "--method", "mlp", "--channel-quantum", "1"))
    assert finer["one_shot"]["predicted_rise"] == finer["one_shot"]["predicted_rise_mlp"] > 0
    assert width <= finer["one_shot"]["mlp_width"] < width + 8
    assert 0.6 * made["base_params"] - finer["params"] < each / 8


def test_the_ridge_can_be_relative_to_the_mean(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--method", "fisher", "--compensate", "ridge", "--ridge", "0.1")
    losses = {}
    for scale in ("mean", "channel"):
        made = printed(capsys, prune(home, tmp_path / scale, *options, "--ridge-scale", scale))
        assert made["compensation"]["ridge_scale"] == scale
        losses[scale] = made["loss"]
    assert losses["mean"] != losses["channel"]


def test_tables_are_written_and_read(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "table.safetensors"
    made = printed(capsys, measure(home, out, "--samples", "64"))
    assert made["tokens"] == 64 * 32 and len(made["sub_blocks"]) == 8
    mlp = made["sub_blocks"][1]
    assert (mlp["block"], mlp["sub_block"], mlp["unit"]) == (0, "mlp", "channels")
    assert mlp["widths"] == list(range(0, 97, 8)) and sorted(mlp["order"]) == list(range(96))
    assert mlp["rise"] == sorted(mlp["rise"], reverse=True) and mlp["rise"][-1] == 0
    assert mlp["parameters"][1] - mlp["parameters"][0] == 8 * (3 * 32 + 2) + 2 * 32
    first = printed(capsys, prune(home, tmp_path / "a", "--method", "fisher", "--sensitivity", str(out)))
    second = printed(
        capsys, prune(home, tmp_path / "b", "--method", "fisher", "--sensitivity", str(out), "--params", "80%")
    )
    assert first["params"] < second["params"]
    assert second["one_shot"]["predicted_rise"] < first["one_shot"]["predicted_rise"]
    assert invoke(measure(home, tmp_path / "again.safetensors", "--samples", "64")) == 0
    again, table = (load_file(path) for path in (tmp_path / "again.safetensors", out))
    assert all(np.array_equal(again[name], tensor) for name, tensor in table.items())


def test_a_table_serves_other_quanta(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Method mlp has quanta of 8, tables have them of 32 where nothing is asked for."""
    coarse, default = tmp_path / "coarse.safetensors", [a for a in SETTINGS if a not in ("--channel-quantum", "8")]
    few = [str(home / "llama"), "--data", str(home / "text.txt"), "--samples", "64", *default]
    assert printed(capsys, ["sensitivity", *few, "--out", str(coarse)])["sub_blocks"][1]["widths"] == [0, 32, 64, 96]
    argv = [a for a in prune(home, tmp_path / "a", "--method", "mlp") if a not in ("--channel-quantum", "8")]
    made = printed(capsys, [*argv, "--sensitivity", str(coarse), "--params", "70%"])["one_shot"]
    assert made["mlp_width"] % 32 and made["predicted_rise"] == made["predicted_rise_mlp"] > 0
    solved = printed(capsys, prune(home, tmp_path / "b", "--method", "fisher", "--sensitivity", str(coarse)))
    assert 0 < solved["one_shot"]["predicted_rise"] < solved["one_shot"]["predicted_rise_mlp"]


def test_plans_know_what_a_table_predicts(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "table.safetensors"
    assert invoke(measure(home, table, "--samples", "64")) == 0
    made = printed(capsys, prune(home, tmp_path / "out", "--method", "fisher", "--sensitivity", str(table)))["one_shot"]
    plan = ["plan", str(home / "llama"), "--no-timing", "--channel-quantum", "8", "--sensitivity", str(table)]
    planned = printed(capsys, [*plan, "--params", "60%"])["predicted"]
    for name in ("predicted_rise", "predicted_rise_mlp", "predicted_rise_uniform", "solver_gap"):
        assert planned[name] == made[name]
    written = json.loads((tmp_path / "out" / "architecture.json").read_text())["architecture"]
    assert planned["architecture"] == written
    capsys.readouterr()
    assert invoke([*plan, "--params", "60%"]) == 0
    text = capsys.readouterr().out
    assert "closed form" in text and "MLPs alone" in text and "whether its weights are" in text
    assert "sensitivity need params" in refused(capsys, plan)
    assert "of another space: block 0, attention has 2 kv_heads" in refused(
        capsys, [*plan, "--params", "60%", "--kv-groups"]
    )


def test_tables_of_other_models_are_refused(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "table.safetensors"
    assert invoke(measure(home, out, "--samples", "64")) == 0
    use = ("--method", "fisher", "--sensitivity", str(out))
    assert "of another model" in refused(capsys, prune(home, tmp_path / "a", *use, model="olmo2"))
    assert "of another space: block 0, attention has 2 kv_heads" in refused(
        capsys, prune(home, tmp_path / "b", *use, "--kv-groups")
    )
    wrong = prune(home, tmp_path / "c", "--method", "wanda", "--sensitivity", str(out))
    assert "sensitivity is not used here" in refused(capsys, wrong)
    assert "ends in .safetensors" in refused(capsys, measure(home, tmp_path / "x.bin"))
    few = measure(home, tmp_path / "y.safetensors", "--samples", "2")
    assert "62 tokens are too few for the second moments" in refused(capsys, few)
    assert "allocation solver goes with saliency fisher, not wanda" in refused(
        capsys, prune(home, tmp_path / "d", "--method", "wanda", "--allocation", "solver")
    )


def test_windows_are_short_by_default(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the methods that read the table 512 tokens, of others the paper's, never more than the model's positions."""
    from tracenas.config import PruneConfig, SelectCalibrationConfig, SensitivityConfig

    lengths = [PruneConfig(model="m", out=tmp_path, method=m).longest for m in ("fisher", "mlp", "wanda", None)]
    assert lengths == [512, 512, 4096, 4096]
    assert SensitivityConfig(model="m", data="t", out=tmp_path / "s.safetensors").longest == 512
    assert SelectCalibrationConfig(model="m", out=tmp_path, method="mlp").longest == 512
    positions = json.loads((home / "llama" / "config.json").read_text())["max_position_embeddings"]
    assert positions < 512
    argv = prune(home, tmp_path / "out", "--method", "mlp", "--compensate", "none", "--json")
    del argv[argv.index("--seq-len") : argv.index("--seq-len") + 2]
    assert invoke(argv) == 0
    capsys.readouterr()
    assert f"4 of {positions} tokens" in (tmp_path / "out" / "README.md").read_text()
