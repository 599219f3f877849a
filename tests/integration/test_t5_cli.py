"""The commands on an encoder–decoder model, in-process: what works, and one line from what does not."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from test_cli import said
from tiny import FLAN, save_tiny

from tracenas.cli import invoke

pytestmark = pytest.mark.integration

SETTINGS = ["--samples", "4", "--population", "6", "--elites", "2", "--iterations", "2", "--rank", "4"]
SPACE = ["--channel-quantum", "8", "--depth-granularity", "sublayer"]


@pytest.fixture(scope="module", params=["t5", "flan"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A model, calibration tokens and a finished search."""
    path: Path = tmp_path_factory.mktemp(request.param)
    save_tiny(path / "model", "t5", tokenizer, **(FLAN if request.param == "flan" else {}))
    ids = torch.randint(2, 257, (6, 25), generator=torch.Generator().manual_seed(0))
    save_file({"input_ids": ids}, path / "tokens.safetensors")
    argv = ["search", str(path / "model"), "--data", str(path / "tokens.safetensors"), "--params", "70%"]
    assert invoke([*argv, *SETTINGS, *SPACE, "--out", str(path / "run")]) == 0
    return path


def invoked(argv: list[str], capsys: pytest.CaptureFixture[str]) -> Any:
    capsys.readouterr()
    assert invoke([*argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_what_was_scored_is_what_is_pruned(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = json.loads((folder / "run" / "best.json").read_text())
    assert set(best["architecture"]) == {"encoder", "decoder"}
    out = tmp_path / "pruned"
    made = invoked(
        ["prune", str(folder / "model"), "--arch", str(folder / "run" / "best.json"), "--out", str(out)], capsys
    )
    assert made["loss"] == pytest.approx(best["loss"], abs=1e-4)
    assert made["params"] <= 0.7 * made["base_params"]
    card = (out / "README.md").read_text()
    assert "AutoModelForSeq2SeqLM.from_pretrained" in card
    assert "**Encoder**" in card and "**Decoder**" in card and "cross heads" in card
    argv = ["score", str(folder / "model"), "--arch", str(folder / "run" / "best.json"), *SPACE[:2]]
    argv += ["--data", str(folder / "run" / "calibration.safetensors"), "--rank", "4"]
    scored = invoked(argv, capsys)
    assert scored["phi"] == pytest.approx(best["score"], abs=1e-6)
    depths = {len(v) for v in (*scored["kept"].values(), *scored["rho"].values())}
    assert depths == {7} and scored["kept"]["cross_heads"][:4] == [None] * 4
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time there was a little fox. " * 40)
    argv = ["eval", str(folder / "model"), str(out), "--text", str(text), "--seq-len", "40", "--windows", "3"]
    rows = invoked(argv, capsys)
    assert [r["params"] for r in rows] == [made["base_params"], made["params"]]
    assert rows[0]["tokens"] == 3 * 20
    again = ["search", str(out), "--data", str(folder / "tokens.safetensors"), "--params", "85%", *SETTINGS, *SPACE]
    assert invoke([*again, "--out", str(tmp_path / "again")]) == 0
    second = ["prune", str(out), "--arch", str(tmp_path / "again" / "best.json"), "--out", str(tmp_path / "second")]
    assert invoked(second, capsys)["base_params"] == made["params"]


def test_score_and_plan_are_shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, run = str(folder / "model"), folder / "run"
    argv = ["score", model, "--arch", str(run / "best.json"), "--data", str(run / "calibration.safetensors")]
    assert invoke([*argv, "--rank", "4", *SPACE[:2]]) == 0
    assert "cross_heads" in capsys.readouterr().out
    found = invoked(["plan", model, "--params", "60%", "--no-timing", *SPACE], capsys)
    assert found["uniform"]["params"] <= 0.6 * found["feasible"]["base"]
    assert set(found["uniform"]["architecture"]) == {"encoder", "decoder"}
    assert invoke(["plan", model, "--params", "60%", "--seq-len", "64"]) == 0
    assert invoke(["report", str(run)]) == 0


REFUSED = {
    "bench": ["bench", "MODEL"],
    "recover": ["recover", "MODEL", "--method", "pretrain", "--data", "TOKENS", "--out", "OUT", "--max-steps", "1"],
    "sparsify": ["sparsify", "MODEL", "--sparsity", "50%", "--data", "TOKENS", "--out", "OUT"],
    "export": ["export", "MODEL", "--format", "gguf", "--out", "OUT"],
    "eval --tasks": ["eval", "MODEL", "--tasks", "piqa"],
    "--compensate ridge": ["prune", "MODEL", "--arch", "ARCH", "--compensate", "ridge", "--out", "OUT"],
    "--stub-removed-attention": ["prune", "MODEL", "--arch", "ARCH", "--stub-removed-attention", "--out", "OUT"],
    "proxy loss_compensated": ["search", "MODEL", "--data", "TOKENS", "--params", "70%", "--out", "OUT"],
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_takes_decoders_only_says_so(
    what: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {
        "MODEL": folder / "model",
        "TOKENS": folder / "tokens.safetensors",
        "ARCH": folder / "run" / "best.json",
        "OUT": tmp_path / "out",
    }
    argv = [str(places.get(word, word)) for word in REFUSED[what]]
    if what.startswith("proxy"):
        argv += ["--proxy", what.split()[1]]
    line = said(capsys, argv)
    assert f"{what} takes decoder-only models; 't5' is an encoder–decoder" in line
    assert not (tmp_path / "out").exists()


def test_architectures_that_do_not_fit(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full = {"heads": 4, "channels": 96}
    cross = {"heads": 4, "cross_heads": 4, "channels": 96}
    wrong: dict[str, tuple[Any, str]] = {
        "one list": ({"layers": [full] * 7}, "4 blocks in its encoder and 3 blocks in its decoder"),
        "other depths": (
            {"encoder": {"layers": [full] * 3}, "decoder": {"layers": [cross] * 4}},
            "4 blocks in its encoder",
        ),
        "no encoder": (
            {"encoder": {"layers": [{"skip": True}] * 4}, "decoder": {"layers": [cross] * 3}},
            "every layer is skipped",
        ),
        "no cross heads": ({"encoder": {"layers": [full] * 4}, "decoder": {"layers": [full] * 3}}, "no 'cross_heads'"),
    }
    for name, (arch, message) in wrong.items():
        path = tmp_path / f"{name.replace(' ', '_')}.json"
        path.write_text(json.dumps(arch))
        argv = ["score", str(folder / "model"), "--arch", str(path), "--data", str(folder / "tokens.safetensors")]
        assert message in said(capsys, argv), name
