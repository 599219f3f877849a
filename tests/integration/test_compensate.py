"""Compensation through the command line: `prune --compensate`, and searches that score compensated candidates."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import save_tiny

from tracenas.cli import invoke
from tracenas.data.tokens import load_tokens, save_tokens

pytestmark = pytest.mark.integration

QUICK = ["--params", "60%", "--samples", "4", "--seq-len", "32", "--population", "4", "--elites", "2", "--threads", "1"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A tiny model, text, and two finished searches: `plain` by phi, `ridge` by loss_compensated."""
    home = tmp_path_factory.mktemp("compensate")
    save_tiny(home / "model", "llama", tokenizer)
    words = random.Random(0)
    letters = "etaoinshrdlucmfw"
    text = " ".join("".join(words.choices(letters, k=words.randint(2, 9))) for _ in range(2000))
    (home / "text.txt").write_text(text)
    for name, proxy in (("plain", "phi"), ("ridge", "loss_compensated")):
        assert invoke([*search(home, proxy), "--out", str(home / name)]) == 0
    return home


def search(home: Path, proxy: str, data: str = "text.txt") -> list[str]:
    argv = ["search", str(home / "model"), "--data", str(home / data), *QUICK, "--iterations", "3", "--proxy", proxy]
    return [*argv, *(["--compensate-samples", "10"] if proxy == "loss_compensated" else ["--rank", "4"])]


def prune(
    home: Path, run: str, out: Path, capsys: pytest.CaptureFixture[str], *options: str, model: Path | None = None
) -> dict[str, Any]:
    capsys.readouterr()
    arch = str(home / run / "best.json")
    assert invoke(["prune", str(model or home / "model"), "--arch", arch, "--out", str(out), "--json", *options]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def best(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "best.json").read_text())
    return found


@pytest.mark.parametrize("method", ["ridge", "sequential"])
def test_a_plain_winner_is_compensated(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    made = prune(home, "plain", tmp_path / "out", capsys, "--compensate", method, "--compensate-samples", "24")
    facts = made["compensation"]
    assert facts["method"] == method and facts["tokens"] == 24 * 32 and facts["separate_text"]
    assert facts["plain_loss"] == pytest.approx(best(home / "plain")["loss"], abs=1e-5)
    assert made["loss"] == pytest.approx(facts["loss"], abs=1e-4)
    assert abs(facts["loss"] - facts["plain_loss"]) > 1e-3
    assert facts["ridge"] == min((v, float(k)) for k, v in facts["ridge_trials"].items())[1]
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"{method}: output projections refitted" in card and "768 tokens (24 × 32), other text" in card
    assert f"{facts['plain_loss']:.6f}" in card and f"--compensate {method} --compensate-samples 24" in card


def test_sequential_by_hand_equals_the_checkpoint(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The written projections are those of the functions underneath, on windows that share no text with the scores'."""
    from safetensors.torch import load_file

    from tracenas.models.loading import load
    from tracenas.models.ordering import Ordering
    from tracenas.models.refit import in_base_order
    from tracenas.models.sequential import sequential_outputs
    from tracenas.models.supernet import Supernet
    from tracenas.space.architecture import Architecture

    data = tmp_path / "other.safetensors"
    other = torch.randint(1, 257, (16, 32), generator=torch.Generator().manual_seed(0))
    save_tokens(data, torch.cat([load_tokens(home / "plain" / "calibration.safetensors"), other]))
    options = ("--compensate", "sequential", "--ridge", "0.02", "--data", str(data), "--dtype", "fp32")
    made = prune(home, "plain", tmp_path / "out", capsys, *options)
    assert made["compensation"]["sequences"] == 16 and not made["compensation"]["ridge_trials"]
    loaded = load(str(home / "model"), dtype="fp32")
    ordering, _ = Ordering.load(home / "plain" / "ordering.safetensors", loaded.blocks())
    net = Supernet(loaded.model, loaded.blocks(), ordering)
    arch = Architecture.from_json(best(home / "plain"), where="best.json")
    expected = in_base_order(net, arch, sequential_outputs(net, arch, other, 16, 0.02))
    written = load_file(tmp_path / "out" / "model.safetensors")
    place = 0
    for index, layer in enumerate(arch.layers):
        if layer.skip:
            continue
        for name, path in (("attention", "self_attn.o_proj"), ("mlp", "mlp.down_proj")):
            found = written[f"model.layers.{place}.{path}.weight"]
            torch.testing.assert_close(found, expected[index, name], rtol=1e-4, atol=1e-5)
        place += 1


def test_auto_is_what_was_scored(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert best(home / "plain")["provenance"]["realisation"] == "plain"
    record = best(home / "ridge")
    assert record["provenance"]["realisation"] == "ridge" and record["provenance"]["ridge"] == 0.01
    assert record["score"] == -record["loss"]
    plain = prune(home, "plain", tmp_path / "plain", capsys)
    assert plain["compensation"] is None and plain["loss"] == pytest.approx(best(home / "plain")["loss"], abs=1e-4)
    made = prune(home, "ridge", tmp_path / "ridge", capsys)
    facts = made["compensation"]
    assert (facts["method"], facts["ridge"], facts["sequences"]) == ("ridge", 0.01, 10)
    assert made["loss"] == pytest.approx(record["loss"], abs=1e-4) == made["scored_loss"]
    none = prune(home, "ridge", tmp_path / "none", capsys, "--compensate", "none")
    assert none["compensation"] is None and none["loss"] == pytest.approx(facts["plain_loss"], abs=1e-4)
    assert none["scored_loss"] == pytest.approx(record["loss"])


def test_units_can_be_ranked_for_the_refit(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`obs` on the compensation's text, Wanda's saliency on the calibration; `prune` keeps the order."""
    from tracenas.models.loading import load
    from tracenas.models.ordering import Ordering
    from tracenas.saliency import SALIENCIES

    run = tmp_path / "obs"
    assert invoke([*search(home, "loss_compensated"), "--saliency", "obs", "--out", str(run)]) == 0
    loaded = load(str(home / "model"), dtype="fp32")
    blocks = loaded.blocks()
    orders = {}
    for where, name, text in ((home / "ridge", "wanda", "calibration"), (run, "obs", "compensation")):
        found, metadata = Ordering.load(where / "ordering.safetensors", blocks)
        tokens = load_tokens(where / f"{text}.safetensors")
        expected = Ordering.from_saliency(blocks, SALIENCIES.get(name)(loaded.model, blocks, tokens, 4)[0])
        assert metadata["saliency"] == name
        assert all((found.ranking[key] == expected.ranking[key]).all() for key in expected.ranking)
        orders[name] = found.ranking
    assert any((orders["wanda"][key] != orders["obs"][key]).any() for key in orders["obs"])
    made = prune(tmp_path, "obs", tmp_path / "out", capsys, model=home / "model")
    assert made["loss"] == pytest.approx(best(run)["loss"], abs=1e-4)


@pytest.mark.parametrize("how", ["none", "ridge"])
def test_an_order_of_ones_own(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str) -> None:
    arch = tmp_path / "arch.json"
    arch.write_text(json.dumps({"architecture": best(home / "ridge")["architecture"]}))
    argv = ["prune", str(home / "model"), "--arch", str(arch), "--data", str(home / "text.txt"), "--json"]
    argv += ["--samples", "4", "--seq-len", "32", "--compensate", how, *(["--ridge", "0.01"] * (how == "ridge"))]
    losses = []
    for options in ([], ["--saliency", "wanda"], ["--saliency", "obs"]):
        capsys.readouterr()
        assert invoke([*argv, *options, "--out", str(tmp_path / f"out{len(losses)}")]) == 0
        losses.append(json.loads(capsys.readouterr().out)["loss"])
    assert losses[0] == losses[1] != losses[2]


def test_the_text_is_other_text(home: Path) -> None:
    scored = load_tokens(home / "ridge" / "calibration.safetensors")
    fitted = load_tokens(home / "ridge" / "compensation.safetensors")
    runs = {tuple(row[i : i + 12].tolist()) for row in scored for i in range(21)}
    assert fitted.shape == (10, 32) and scored.shape == (4, 32)
    assert not any(tuple(row[i : i + 12].tolist()) in runs for row in fitted for i in range(21))


def test_a_compensated_search_resumes_to_the_same_journal(home: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(home / "ridge", run)
    lines = (run / "journal.jsonl").read_text().splitlines(keepends=True)
    (run / "journal.jsonl").write_text("".join(lines[:3]))
    (run / "best.json").unlink()
    assert invoke([*search(home, "loss_compensated"), "--out", str(run), "--resume"]) == 0

    def records(path: Path) -> list[dict[str, Any]]:
        return [{k: v for k, v in json.loads(x).items() if k != "seconds"} for x in path.read_text().splitlines()]

    assert records(run / "journal.jsonl") == records(home / "ridge" / "journal.jsonl")


def complaint(capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
    capsys.readouterr()
    assert invoke(argv) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_complaints(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arch = ["prune", str(home / "model"), "--arch", str(home / "plain" / "best.json"), "--out", str(tmp_path / "out")]
    assert "need --compensate ridge or sequential" in complaint(capsys, [*arch, "--ridge", "0.1"])
    assert "compensate 'wanda'" in complaint(capsys, [*arch, "--compensate", "wanda"])
    few = complaint(capsys, [*arch, "--compensate", "ridge", "--compensate-samples", "5000"])
    assert "5000 were asked for (compensate-samples)" in few
    assert "ridge '0'" in complaint(capsys, [*arch, "--compensate", "ridge", "--ridge", "0"])
    save_tokens(home / "tokens.safetensors", load_tokens(home / "plain" / "calibration.safetensors"))
    alone = complaint(capsys, [*search(home, "loss_compensated", "tokens.safetensors"), "--out", str(tmp_path / "run")])
    assert "0 sequences of 32 tokens beside the 4 that candidates are scored on" in alone
    assert not any((tmp_path / "out").iterdir())


def test_without_other_text_the_calibration_serves_and_is_named(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(home / "plain", run)
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace(str(home / "text.txt"), str(tmp_path / "gone.txt")))
    arch = str(run / "best.json")
    capsys.readouterr()
    argv = [
        "prune",
        str(home / "model"),
        "--arch",
        arch,
        "--out",
        str(tmp_path / "out"),
        "--compensate",
        "ridge",
        "--json",
    ]
    assert invoke(argv) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["compensation"]["separate_text"] is False and made["compensation"]["sequences"] == 4
    assert "the calibration loss's own text" in (tmp_path / "out" / "README.md").read_text()


def test_another_model_is_noticed(
    home: Path, tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    save_tiny(tmp_path / "other", "llama", tokenizer, seed=1)
    argv = [
        "prune",
        str(tmp_path / "other"),
        "--arch",
        str(home / "plain" / "best.json"),
        "--out",
        str(tmp_path / "out"),
    ]
    message = complaint(capsys, [*argv, "--compensate", "ridge"])
    assert "not the model that was scored" in message and not any((tmp_path / "out").iterdir())
