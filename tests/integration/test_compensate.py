"""Compensation through the command line: `prune --compensate`, and searches that score compensated candidates."""

import json
import shutil
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import save_tiny, save_words
from trained import source_tokens, trained_model

from tracenas.cli import invoke
from tracenas.data.tokens import load_tokens, save_tokens

pytestmark = pytest.mark.integration

QUICK = ["--params", "60%", "--samples", "4", "--seq-len", "32", "--population", "4", "--elites", "2", "--threads", "1"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A tiny model, text, and two finished searches: `plain` by phi, `ridge` by loss_compensated."""
    home = tmp_path_factory.mktemp("compensate")
    save_tiny(home / "model", "llama", tokenizer)
    save_words(home / "text.txt", 2000)
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
    chosen = f"{facts['ridge']:g}" + (f" drift {facts['drift']:g}" if method == "sequential" else "")
    assert len(facts["trials"]) in ((5, 6, 7) if method == "sequential" else (4,))
    assert chosen == min(facts["trials"], key=facts["trials"].get)
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"{method}: output projections refitted" in card and "768 tokens (24 × 32), other text" in card
    assert f"{facts['plain_loss']:.6f}" in card and f"--compensate {method} --compensate-samples 24" in card


def test_sequential_by_hand_equals_the_checkpoint(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The written projections are those of the functions underneath, on windows that share no text with the scores'."""
    from safetensors.torch import load_file

    from tracenas.models.checkpoints.loading import load
    from tracenas.models.surgery.ordering import Ordering
    from tracenas.models.surgery.supernet import Supernet
    from tracenas.refits.aim import Aim
    from tracenas.refits.ridge import in_base_order
    from tracenas.refits.sequential import SequentialFit
    from tracenas.space.architecture import Architecture

    data = tmp_path / "other.safetensors"
    other = torch.randint(1, 257, (16, 32), generator=torch.Generator().manual_seed(0))
    save_tokens(data, torch.cat([load_tokens(home / "plain" / "calibration.safetensors"), other]))
    options = ("--compensate", "sequential", "--ridge", "0.02", "--data", str(data), "--dtype", "fp32")
    made = prune(home, "plain", tmp_path / "out", capsys, *options)
    assert made["compensation"]["sequences"] == 16 and len(made["compensation"]["trials"]) in (2, 3, 4)
    loaded = load(str(home / "model"), dtype="fp32")
    ordering, _ = Ordering.load(home / "plain" / "ordering.safetensors", loaded.blocks())
    net = Supernet(loaded.model, loaded.blocks(), ordering)
    arch = Architecture.from_json(best(home / "plain"), where="best.json")
    aim = Aim(0.02, made["compensation"]["drift"])
    expected = in_base_order(net, arch, SequentialFit(net, arch, other, 16, [aim]).advance()[aim])
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
    plain = prune(home, "plain", tmp_path / "plain", capsys, "--compensate", "auto")
    assert plain["compensation"] is None and plain["loss"] == pytest.approx(best(home / "plain")["loss"], abs=1e-4)
    made = prune(home, "ridge", tmp_path / "ridge", capsys, "--compensate", "auto")
    facts = made["compensation"]
    assert (facts["method"], facts["ridge"], facts["sequences"]) == ("ridge", 0.01, 10)
    assert made["loss"] == pytest.approx(record["loss"], abs=1e-4) == made["scored_loss"]
    none = prune(home, "ridge", tmp_path / "none", capsys, "--compensate", "none")
    assert none["compensation"] is None and none["loss"] == pytest.approx(facts["plain_loss"], abs=1e-4)
    assert none["scored_loss"] == pytest.approx(record["loss"])


def test_units_can_be_ranked_for_the_refit(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`obs` and the table's order on the compensation's text, Wanda's on the calibration; `prune` keeps the order."""
    from tracenas.models.checkpoints.loading import load
    from tracenas.models.surgery.ordering import Ordering
    from tracenas.saliency import SALIENCIES

    run = tmp_path / "obs"
    assert invoke([*search(home, "loss_compensated"), "--saliency", "obs", "--out", str(run)]) == 0
    loaded = load(str(home / "model"), dtype="fp32")
    blocks = loaded.blocks()
    orders = {}
    measured = (
        (home / "plain", "wanda", "calibration"),  # nothing is refitted there
        (home / "ridge", "fisher", "compensation"),
        (run, "obs", "compensation"),
    )
    for where, name, text in measured:
        found, metadata = Ordering.load(where / "ordering.safetensors", blocks)
        tokens = load_tokens(where / f"{text}.safetensors")
        expected = Ordering.from_saliency(blocks, SALIENCIES.get(name)(loaded.model, blocks, tokens, 4)[0])
        assert metadata["saliency"] == name
        assert all((found.ranking[key] == expected.ranking[key]).all() for key in expected.ranking)
        orders[name] = found.ranking
    for one, other in combinations(orders.values(), 2):
        assert any((one[key] != other[key]).any() for key in one)
    made = prune(tmp_path, "obs", tmp_path / "out", capsys, "--compensate", "auto", model=home / "model")
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
    for how in ("auto", "none"):
        told = complaint(capsys, [*arch, "--compensate", how, "--ridge", "0.1"])
        assert "need --compensate best, ridge or sequential" in told
    assert "compensate 'wanda'" in complaint(capsys, [*arch, "--compensate", "wanda"])
    few = complaint(capsys, [*arch, "--compensate", "ridge", "--compensate-samples", "5000"])
    assert "5000 were asked for (compensate-samples)" in few
    assert "ridge '0'" in complaint(capsys, [*arch, "--compensate", "ridge", "--ridge", "0"])
    save_tokens(home / "tokens.safetensors", load_tokens(home / "plain" / "calibration.safetensors"))
    alone = complaint(capsys, [*search(home, "loss_compensated", "tokens.safetensors"), "--out", str(tmp_path / "run")])
    assert "0 sequences of 32 tokens beside the 4 that candidates are scored on" in alone
    assert not (tmp_path / "out").exists()


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
    assert "not the model that was scored" in message and not (tmp_path / "out").exists()


# --- best, the default ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A model that has learned something, tokens of its source, and a finished search by phi over 4 of them."""
    home = tmp_path_factory.mktemp("learned")
    trained_model("llama", steps=120).save_pretrained(home / "model")
    tokenizer.save_pretrained(home / "model")
    save_tokens(home / "tokens.safetensors", source_tokens(128, 32, 1))
    assert invoke([*search(home, "phi", "tokens.safetensors"), "--out", str(home / "plain")]) == 0
    return home


def test_best_is_the_lowest_on_held_out_text(learned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import load_file

    made = prune(learned, "plain", tmp_path / "best", capsys, "--scales", "none")
    choice = made["choice"]
    assert list(choice["losses"]) == ["plain", "ridge", "sequential"] and choice["tokens"] == 16 * 32
    assert choice["written"] == min(choice["losses"], key=choice["losses"].get) == made["compensation"]["method"]
    assert made["compensation"]["trials"] and choice["losses"][choice["written"]] < choice["losses"]["plain"]
    assert made["scored_loss"] == pytest.approx(best(learned / "plain")["loss"], abs=1e-5)
    card = (tmp_path / "best" / "README.md").read_text()
    assert all(f"{name} {loss:.4f}" in card for name, loss in choice["losses"].items())
    assert f"written: {choice['written']}" in card and "512 tokens (16 × 32), in neither calibration" in card
    ridge = f"{made['compensation']['ridge']:g}"
    again = prune(learned, "plain", tmp_path / "same", capsys, "--compensate", choice["written"], "--ridge", ridge)
    assert again["choice"]["losses"] == {name: choice["losses"][name] for name in ("plain", choice["written"])}
    for name, tensor in load_file(tmp_path / "best" / "model.safetensors").items():
        assert torch.equal(tensor, load_file(tmp_path / "same" / "model.safetensors")[name])


def test_a_refit_that_is_worse_than_the_cut_is_not_written(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A random model's outputs are not worth fitting to. What is asked for by name is written, and called worse."""
    from safetensors.torch import load_file

    made = prune(home, "plain", tmp_path / "best", capsys, "--scales", "none")
    losses = made["choice"]["losses"]
    assert made["choice"]["written"] == "plain" and made["compensation"] is None
    assert losses["plain"] < min(losses["ridge"], losses["sequential"])
    prune(home, "plain", tmp_path / "none", capsys, "--compensate", "none")
    for name, tensor in load_file(tmp_path / "best" / "model.safetensors").items():
        assert torch.equal(tensor, load_file(tmp_path / "none" / "model.safetensors")[name])
    arch = ["prune", str(home / "model"), "--arch", str(home / "plain" / "best.json"), "--compensate", "ridge"]
    assert invoke([*arch, "--out", str(tmp_path / "ridge")]) == 0
    assert "--compensate ridge: worse on held-out text" in capsys.readouterr().err


def test_the_scored_refit_is_among_those_compared(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = prune(home, "ridge", tmp_path / "out", capsys)
    assert list(made["choice"]["losses"]) == ["plain", "ridge", "sequential"]  # the same text, and its ridge is tried
    made = prune(home, "ridge", tmp_path / "other", capsys, "--ridge", "0.5")
    assert list(made["choice"]["losses"]) == ["plain", "scored", "ridge", "sequential"]


def test_one_pass_of_statistics_serves_the_scored_refit_and_the_choice(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tracenas.pipeline.refit import fit

    passes, pass_of = [], fit.gram_matrices

    def counted(*given: Any) -> Any:
        passes.append(given[2].shape)
        return pass_of(*given)

    monkeypatch.setattr(fit, "gram_matrices", counted)
    made = prune(home, "ridge", tmp_path / "out", capsys)
    assert list(made["choice"]["losses"]) == ["plain", "ridge", "sequential"] and len(passes) == 1
    assert made["scored_loss"] == pytest.approx(best(home / "ridge")["loss"], abs=1e-4)


def test_held_out_text_is_in_nothing_else(home: Path, learned: Path) -> None:
    held = load_tokens(home / "ridge" / "held_out.safetensors")
    others = [load_tokens(home / "ridge" / f"{name}.safetensors") for name in ("calibration", "compensation")]
    runs = {tuple(row[i : i + 12].tolist()) for row in torch.cat(others) for i in range(21)}
    assert held.shape == (16, 32)
    assert not any(tuple(row[i : i + 12].tolist()) in runs for row in held for i in range(21))
    rows = {tuple(row.tolist()) for row in load_tokens(learned / "plain" / "calibration.safetensors")}
    assert not rows & {tuple(row.tolist()) for row in load_tokens(learned / "plain" / "held_out.safetensors")}


def test_without_held_out_text_best_needs_data(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    shutil.copytree(home / "plain", run)
    (run / "held_out.safetensors").unlink()
    arch = ["prune", str(home / "model"), "--arch", str(run / "best.json"), "--out", str(tmp_path / "out")]
    told = complaint(capsys, arch)
    assert "no held_out.safetensors" in told and "give --data" in told and "--compensate auto" in told
    assert not (tmp_path / "out").exists()
    made = prune(tmp_path, "run", tmp_path / "out", capsys, "--data", str(home / "text.txt"), model=home / "model")
    assert made["choice"]["tokens"] == 16 * 32 and "in neither calibration nor statistics" in made["choice"]["text"]


@pytest.mark.parametrize(("rows", "fitted", "held"), [(60, 42, 14), (6, 1, 1), (5, 1, 0), (4, 0, 0)])
def test_scarce_text(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: int, fitted: int, held: int
) -> None:
    """A quarter of what is left beside the calibration is held out; where nothing is, it is said at the start."""
    tokens = torch.randint(1, 257, (rows, 32), generator=torch.Generator().manual_seed(0))
    save_tokens(home / f"{rows}.safetensors", tokens)
    run = tmp_path / "run"
    proxy = "loss_compensated" if fitted else "phi"
    argv = [a for a in search(home, proxy, f"{rows}.safetensors") if a not in ("--compensate-samples", "10")]
    assert invoke([*argv, "--out", str(run)]) == 0
    said = "no held_out.safetensors" in capsys.readouterr().err
    assert said == (held == 0) == (not (run / "held_out.safetensors").exists())
    if fitted:
        assert load_tokens(run / "compensation.safetensors").shape[0] == fitted
    if held:
        assert load_tokens(run / "held_out.safetensors").shape[0] == held
        assert prune(tmp_path, "run", tmp_path / "out", capsys, model=home / "model")["choice"]["tokens"] == held * 32


@pytest.mark.parametrize(("rows", "where"), [(8, "in neither calibration nor statistics"), (4, "a part of the calib")])
def test_an_architecture_of_ones_own_is_refitted_on_its_data(
    learned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: int, where: str
) -> None:
    arch, data = tmp_path / "arch.json", tmp_path / "rows.safetensors"
    arch.write_text(json.dumps({"architecture": best(learned / "plain")["architecture"]}))
    save_tokens(data, source_tokens(rows, 32, 1))
    argv = ["prune", str(learned / "model"), "--arch", str(arch), "--data", str(data), "--samples", "4", "--json"]
    capsys.readouterr()
    assert invoke([*argv, "--out", str(tmp_path / "out")]) == 0
    made = json.loads(capsys.readouterr().out)
    assert where in made["choice"]["text"] and made["choice"]["tokens"] == 32
    if made["compensation"] is not None:
        assert made["compensation"]["sequences"] == 3
    told = complaint(capsys, [*argv, "--out", str(tmp_path / "no"), "--compensate-samples", str(rows - 4 or 1)])
    assert "use more text or fewer samples" in told
