"""`prune --method`, `select-calibration` and searches anchored on a one-shot architecture, by the command line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command_lines import printed, refused
from tiny import save_tiny, save_words

from tracenas.data.encoding import TextEncoding
from tracenas.data.tokens import load_tokens, save_tokens
from tracenas.saliency.methods import METHODS

pytestmark = pytest.mark.integration

SETTINGS = ["--params", "60%", "--samples", "4", "--seq-len", "32", "--threads", "1", "--channel-quantum", "8"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A tiny model of grouped queries, a fused one, and two texts."""
    home = tmp_path_factory.mktemp("one_shot")
    save_tiny(home / "model", "llama", tokenizer)
    save_tiny(home / "fused", "phi3", tokenizer)
    for seed, name in enumerate(("text.txt", "second.txt")):
        save_words(home / name, 1500, seed)
    return home


def prune(home: Path, out: Path, *options: str, model: str = "model") -> list[str]:
    data = ["--data", str(home / "text.txt")]
    return ["prune", str(home / model), *data, "--out", str(out), *SETTINGS, *options]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_writes_a_checkpoint_of_the_budget(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    made = printed(capsys, prune(home, tmp_path / "out", "--method", method))
    expected = made["scored_loss"] if made["compensation"] is None else made["compensation"]["loss"]
    assert made["scales"]["losses"]["before"] == pytest.approx(expected, abs=1e-4)
    expected = made["scales"]["losses"]["after"]
    assert min(made["choice"]["losses"], key=made["choice"]["losses"].get) == made["choice"]["written"]
    limit = 0.6 * made["base_params"]
    assert 0.95 * limit <= made["params"] <= limit  # a KV group of this model is 3 % of it
    assert made["loss"] == pytest.approx(expected, abs=1e-4)  # loaded again from disk
    facts = made["one_shot"]
    assert (facts["method"], facts["saliency"]) == (method, METHODS[method].saliency)
    card = (tmp_path / "out" / "README.md").read_text()
    assert str(tmp_path) not in card + (tmp_path / "out" / "config.json").read_text()
    assert f"| one-shot method | {method} |" in card and f"--method {method}" in card
    stored = json.loads((tmp_path / "out" / "architecture.json").read_text())
    unit = "kv_heads" if METHODS[method].kv_groups else "heads"
    assert all(unit in layer or layer.get("skip") for layer in stored["architecture"]["layers"])


def test_what_is_refused_leaves_nothing(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, prune(home, tmp_path / "new" / "out", "--method", "fisher", "--samples", "99999"))
    assert "99999 were asked for" in line and not any(tmp_path.iterdir())


def test_the_architecture_can_be_used_again(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import load_file

    first = printed(capsys, prune(home, tmp_path / "first", "--method", "nirvana", "--gamma", "1.5"))
    assert first["one_shot"]["gamma"] == 1.5
    argv = prune(home, tmp_path / "again", "--kv-groups", "--saliency", "nirvana")
    argv = [a for a in argv if a not in ("--params", "60%")]
    again = printed(capsys, [*argv, "--arch", str(tmp_path / "first" / "architecture.json")])
    assert again["loss"] == first["loss"] and again["one_shot"] is None
    tensors = [load_file(tmp_path / name / "model.safetensors") for name in ("first", "again")]
    assert all(torch.equal(value, tensors[1][name]) for name, value in tensors[0].items())
    repeated = printed(capsys, prune(home, tmp_path / "repeated", "--method", "nirvana", "--gamma", "1.5"))
    assert {**repeated, "path": ""} == {**first, "path": ""}


def test_parts_can_be_exchanged(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--method", "nirvana", "--saliency", "nirvana_loss", "--allocation", "uniform", "kv_groups=false")
    made = printed(capsys, prune(home, tmp_path / "out", *options, "--compensate", "ridge", model="fused"))
    assert made["one_shot"] == {"method": "nirvana", "saliency": "nirvana_loss", "allocation": "uniform"}
    assert made["compensation"]["method"] == "ridge"
    assert abs(made["loss"] - made["compensation"]["plain_loss"]) > 1e-3
    stored = json.loads((tmp_path / "out" / "architecture.json").read_text())
    assert len({tuple(layer.items()) for layer in stored["architecture"]["layers"]}) <= 2  # but for the last unit
    assert all("heads" in layer for layer in stored["architecture"]["layers"])


@pytest.mark.parametrize(
    "method", ["wanda", *(pytest.param(m, marks=pytest.mark.slow) for m in ("magnitude", "taylor"))]
)
def test_budgets_are_shared_out_within_layers(
    method: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the authors do; one threshold over all layers is asked for by name."""
    shapes = {}
    for allocation in ("default", "global"):
        more = [] if allocation == "default" else ["--allocation", allocation]
        made = printed(capsys, prune(home, tmp_path / allocation, "--method", method, *more))
        assert made["one_shot"]["allocation"] == ("uniform" if allocation == "default" else allocation)
        stored = json.loads((tmp_path / allocation / "architecture.json").read_text())
        shapes[allocation] = [tuple(layer.items()) for layer in stored["architecture"]["layers"]]
    assert len(set(shapes["default"])) <= 3 < len(shapes["default"])  # but for what is left of the budget
    assert shapes["default"] != shapes["global"]


def test_from_python(home: Path, tmp_path: Path) -> None:
    import tracenas

    common: dict[str, Any] = {"data": str(home / "text.txt"), "samples": 4, "seq_len": 32, "threads": 1}
    found = tracenas.select_calibration(
        home / "model", params="60%", candidates=2, held_out_samples=4, out=tmp_path / "set.safetensors", **common
    )
    made = tracenas.prune(
        home / "model", method="nirvana", params="60%", data=found.path, out=tmp_path / "out", threads=1
    )
    assert made.params <= 0.6 * made.base_params and made.one_shot is not None
    with pytest.raises(tracenas.UserError, match="one of the two"):
        tracenas.prune(home / "model", out=tmp_path / "none")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "give --arch (an architecture) or --method"),
        (("--method", "nirvana", "--arch", "arch.json"), "give --arch (an architecture) or --method"),
        (("--method", "nirvanna"), "unknown method 'nirvanna': did you mean 'nirvana'? accepted: fisher, flap"),
        (("--method", "nirvana", "--gamma", "0"), "gamma '0': input should be greater than 0"),
        (("--method", "nirvana", "--gamma", "x"), "gamma 'x'"),
        (("--method", "nirvana", "--params", "45%", "--gamma", "900"), "accepted for this budget: 1.63 to 7.33"),
        (("--method", "wanda", "--gamma", "2"), "gamma goes with allocation adaptive, not uniform"),
        (("--method", "wanda", "--allocation", "even"), "unknown allocation 'even'"),
        (("--method", "wanda", "--saliency", "wonda"), "unknown saliency 'wonda': did you mean 'wanda'?"),
        (("--method", "wanda", "--params", "2%"), "feasible:"),
        (("--method", "wanda", "--samples", "9999"), "9999 were asked for"),
        (("--method", "shortgpt", "--min-depth", "4"), "cannot be met by removing whole blocks: 0 of 4 may go"),
    ],
)
def test_wrong_input_is_one_line(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    assert message in refused(capsys, prune(home, tmp_path / "out", *options))
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def test_method_needs_params_and_data(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["prune", str(home / "model"), "--out", str(tmp_path / "out")]
    assert "'params' is required" in refused(capsys, [*base, "--method", "wanda", "--data", "x"])
    assert "'data' is required" in refused(capsys, [*base, "--method", "wanda", "--params", "60%"])
    arch = tmp_path / "arch.json"
    arch.write_text("{}")
    assert "params goes with --method" in refused(capsys, [*base, "--arch", str(arch), "--params", "60%"])


def select(home: Path, out: Path, *options: str) -> list[str]:
    base = ["select-calibration", str(home / "model"), "--data", str(home / "text.txt"), "--out", str(out)]
    return [*base, *SETTINGS, "--held-out-samples", "6", *options]


def test_the_best_calibration_set_is_kept(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The divergences are those of the written checkpoints from the dense model, on text of no set."""
    from tracenas.data.further import overlaps
    from tracenas.models.checkpoints.loading import load

    out = tmp_path / "set.safetensors"
    options = ("--candidates", "3", "--second", str(home / "second.txt"))
    found = printed(capsys, select(home, out, *options))
    assert len(found["candidates"]) == 3 and found["held_out_sequences"] == [6, 6]
    scores = [c["score"] for c in found["candidates"]]
    assert found["best"] == scores.index(min(scores)) and len(set(scores)) == 3
    assert scores == [(c["kl"] + c["second_kl"]) / 2 for c in found["candidates"]]
    kls = [c["kl"] for c in found["candidates"]]
    assert found["kl"]["mean"] == pytest.approx(sum(kls) / 3) and found["kl"]["max"] == max(kls)
    chosen = load_tokens(out)
    assert chosen.shape == (4, 32)
    again = printed(capsys, select(home, tmp_path / "again.safetensors", *options))
    assert {**again, "path": ""} == {**found, "path": ""}
    assert torch.equal(load_tokens(tmp_path / "again.safetensors"), chosen)

    settings = [a for a in prune(home, tmp_path / "pruned", "--method", "nirvana", "--compensate", "none")]
    settings[settings.index("--data") + 1] = str(out)
    printed(capsys, settings)
    dense, pruned = load(str(home / "model"), dtype="fp32"), load(str(tmp_path / "pruned"), dtype="fp32")
    from tracenas.data.held_out import windows

    second = windows(str(home / "second.txt"), TextEncoding(dense.tokenizer), 32, limit=24)
    second = second[~overlaps(second, chosen)][:6]
    log_p, log_q = (m.model(input_ids=second).logits[:, :-1].log_softmax(-1) for m in (dense, pruned))
    kl = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    assert float(kl) == pytest.approx(found["candidates"][found["best"]]["second_kl"], rel=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--candidates", "500"), "500 were asked for (candidates)"),
        (("--samples", "99999"), "99999 were asked for (samples)"),
        (("--candidates", "1"), "candidates '1'"),
        (("--method", "search"), "unknown method 'search'"),
        (("--gamma", "900", "--params", "45%"), "accepted for this budget"),
        (("--seq-len", "4096"), "the model has 64 positions"),
        (("--held-out", "missing.txt"), "missing.txt"),
        (("--out", "set.json"), "a token file ends in .safetensors"),
    ],
)
def test_wrong_input_to_selection(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    argv = [*select(home, tmp_path / "set.safetensors"), *options]
    assert message in refused(capsys, argv)
    assert not (tmp_path / "set.safetensors").exists()


@pytest.mark.parametrize("shift", [0, 8])
def test_held_out_text_that_is_in_the_sets_is_refused(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], shift: int
) -> None:
    """Nothing is left to measure on, however the windows of the same text lie."""
    text = torch.randint(1, 257, (9 * 32,), generator=torch.Generator().manual_seed(0))
    save_tokens(tmp_path / "data.safetensors", text[: 8 * 32].view(8, 32))
    save_tokens(tmp_path / "held.safetensors", text[shift : shift + 7 * 32].view(7, 32))
    argv = select(home, tmp_path / "set.safetensors", "--candidates", "2")
    argv[argv.index("--data") + 1] = str(tmp_path / "data.safetensors")
    assert "holds no text beside the 2 candidate sets" in refused(capsys, argv)
    held = str(tmp_path / "held.safetensors")
    assert "holds no text beside the 2 candidate sets" in refused(capsys, [*argv, "--held-out", held])


def test_a_search_starts_from_nirvana_and_resumes(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The anchor is NIRVANA's architecture in the search's own units, and a resumed run's journal is the same."""
    import shutil

    run = tmp_path / "run"
    argv = ["search", str(home / "model"), "--data", str(home / "text.txt"), *SETTINGS, "--population", "4"]
    argv += ["--elites", "2", "--iterations", "3", "--init", "nirvana", "--saliency", "taylor"]
    printed(capsys, [*argv, "--out", str(run)])
    anchor = json.loads((run / "anchor.json").read_text())["architecture"]
    journal = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    assert journal[0]["arch"] == anchor
    made = printed(capsys, prune(home, tmp_path / "pruned", "--method", "nirvana", "kv_groups=false"))
    stored = json.loads((tmp_path / "pruned" / "architecture.json").read_text())
    assert stored["architecture"] == anchor and made["one_shot"]["method"] == "nirvana"

    cut = tmp_path / "cut"
    shutil.copytree(run, cut)
    lines = (run / "journal.jsonl").read_text().splitlines(keepends=True)
    (cut / "journal.jsonl").write_text("".join(lines[:3]))
    printed(capsys, [*argv, "--out", str(cut), "--resume"])
    again = [json.loads(line) for line in (cut / "journal.jsonl").read_text().splitlines()]
    assert [{**r, "seconds": 0} for r in again] == [{**r, "seconds": 0} for r in journal]
    argv = ["prune", str(home / "model"), "--arch", str(run / "best.json"), "--out", str(tmp_path / "best")]
    argv += ["--compensate", "auto"]
    best = printed(capsys, argv)
    assert best["loss"] == pytest.approx(best["scored_loss"], abs=1e-4)
