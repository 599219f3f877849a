"""A model whose tokenizer puts BOS before every text: every command's windows have it, and every record says so."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from recovery_toys import log_of, write_instructions, write_text
from safetensors import safe_open
from tiny import save_tiny

import tracenas
from tracenas.cli import invoke
from tracenas.config import RecoverConfig
from tracenas.data.tokens import load_tokens, noted_bos, save_tokens

pytestmark = pytest.mark.integration

BOS = 257
SMALL: dict[str, Any] = {"samples": 4, "seq_len": 16, "device": "cpu", "threads": 1}
SEARCH: dict[str, Any] = {
    **SMALL,
    **{"params": "60%", "population": 4, "elites": 2, "iterations": 2, "compensate_samples": 4},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, bos_tokenizer: Any) -> Path:
    home = tmp_path_factory.mktemp("bos")
    save_tiny(home / "model", "llama", bos_tokenizer, vocab_size=258, bos_token_id=BOS)
    write_text(home / "text.txt", 80)
    write_text(home / "held-out.txt", 10, seed=1)
    return home


@pytest.fixture(scope="module")
def run(home: Path) -> Path:
    tracenas.search(home / "model", data=home / "text.txt", out=home / "run", **SEARCH)
    return home / "run"


def evaluated(home: Path, *models: Path, **settings: Any) -> Any:
    text = settings.pop("text", home / "held-out.txt")
    names = [str(model) for model in models or (home / "model",)]
    return tracenas.evaluate(names, text=str(text), seq_len=16, device="cpu", **settings).to_json()


def journal_bos(path: Path) -> set[bool | None]:
    return {json.loads(line)["bos"] for line in path.read_text().splitlines()}


def expected_nll(model: Path, text: str, length: int, bos: bool) -> tuple[float, int]:
    """By transformers alone: the mean loss of the text's tokens, window by window."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded, tokenizer = AutoModelForCausalLM.from_pretrained(model).eval(), AutoTokenizer.from_pretrained(model)
    tokens = [
        t
        for i, part in enumerate(text.split("<|endoftext|>"))
        for t in ([0] if i else []) + tokenizer(part.strip("\r\n"), add_special_tokens=False).input_ids
    ]
    step = length - bos
    total, count = 0.0, 0
    for at in range(0, len(tokens) // step * step, step):
        ids = torch.tensor([[BOS] * bos + tokens[at : at + step]])
        with torch.no_grad():
            logits = loaded(ids).logits[0, :-1].double()
        total += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        count += ids.shape[1] - 1
    return total / count, count


@pytest.mark.parametrize(("rule", "bos"), [("auto", True), ("on", True), ("off", False)])
def test_perplexity_is_the_independent_one(home: Path, rule: str, bos: bool) -> None:
    found = evaluated(home, bos=rule)
    nll, count = expected_nll(home / "model", (home / "held-out.txt").read_text(), 16, bos)
    assert found["tokens"] == count and found["bos"] is bos
    assert math.isclose(found["nll"], nll, rel_tol=1e-6)
    assert ("each begins with BOS, which is not scored" in found["protocol"]) is bos


def test_search_records_it(run: Path) -> None:
    tokens = load_tokens(run / "calibration.safetensors")
    for name in ("calibration.safetensors", "compensation.safetensors"):
        rows = load_tokens(run / name)
        assert rows.shape == (4, 16) and rows[:, 0].eq(BOS).all() and not rows[:, 1:].eq(BOS).any()
        assert noted_bos(run / name) is True
    assert tokens.shape == (4, 16)
    assert yaml.safe_load((run / "config.yaml").read_text())["bos"] == "on"
    assert journal_bos(run / "journal.jsonl") == {True}
    assert json.loads((run / "best.json").read_text())["provenance"]["bos"] is True
    assert json.loads((run / "summary.json").read_text())["bos"] is True


def test_resumed_and_refused(home: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = (run / "journal.jsonl").read_text()
    again = dict(data=home / "text.txt", out=run, resume=True, **SEARCH)
    tracenas.search(home / "model", **again)
    tracenas.search(home / "model", bos="on", **again)
    assert (run / "journal.jsonl").read_text() == journal
    with pytest.raises(tracenas.UserError, match="--resume with another bos: the run has 'on', not 'off'"):
        tracenas.search(home / "model", bos="off", **again)
    capsys.readouterr()
    argv = ["prune", str(home / "model"), "--arch", str(run / "best.json"), "--out", str(home / "no"), "--bos", "off"]
    assert invoke(argv) == 2
    assert "was searched with on, and decides it" in capsys.readouterr().err


def test_prune_says_so_in_its_card(home: Path, run: Path) -> None:
    out = home / "pruned"
    tracenas.prune(home / "model", arch=run / "best.json", out=out, device="cpu")
    assert "| calibration windows | 4 of 16 tokens, each begins with BOS |" in (out / "README.md").read_text()
    other = home / "more.txt"
    write_text(other, 40, seed=3)
    made = tracenas.prune(
        home / "model", arch=run / "best.json", out=home / "refit", data=str(other), compensate="ridge", device="cpu"
    )
    assert made.compensation is not None and made.compensation["separate_text"]
    one_shot = tracenas.prune(
        home / "model", method="wanda", params="60%", data=str(other), out=home / "one", bos="off", **SMALL
    )
    card = (one_shot.path / "README.md").read_text()
    assert "4 of 16 tokens, without BOS" in card and "--bos off" in card


def test_token_files_are_as_they_are(home: Path, run: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain.safetensors"
    save_tokens(plain, load_tokens(run / "calibration.safetensors"))
    assert evaluated(home, text=plain)["bos"] is None
    assert evaluated(home, text=run / "calibration.safetensors", bos="on")["bos"] is True
    with pytest.raises(tracenas.UserError, match=r"bos on: '.*plain.safetensors' does not say"):
        evaluated(home, text=plain, bos="on")
    settings = {k: v for k, v in SEARCH.items() if k not in ("samples", "seq_len", "compensate_samples")}
    made = tracenas.search(home / "model", data=plain, out=tmp_path / "run", proxy="loss", **settings)
    assert yaml.safe_load((made.path / "config.yaml").read_text())["bos"] == "auto"
    assert journal_bos(made.path / "journal.jsonl") == {None}
    more = tmp_path / "more.safetensors"
    save_tokens(more, torch.randint(1, 257, (8, 16), generator=torch.Generator().manual_seed(0)))
    tracenas.prune(  # the run's rule is for text, and a token file says nothing
        home / "model", arch=run / "best.json", out=tmp_path / "p", data=str(more), compensate="ridge", device="cpu"
    )


@pytest.mark.parametrize("method", ["pretrain", "distill"])
def test_recovery_has_a_bos_per_document(home: Path, tmp_path: Path, method: str) -> None:
    settings: dict[str, Any] = {"max_steps": 2, "global_batch": 2, "seq_len": 16, "device": "cpu", "log_every": 1}
    settings |= {"teacher": str(home / "model")} if method == "distill" else {}
    found = tracenas.recover(
        home / "model",
        method=method,
        data=home / "text.txt",
        out=tmp_path / "out",
        text=str(home / "held-out.txt"),
        **settings,
    )
    assert found.bos is True and len(log_of(tmp_path / "out")) >= 2
    assert "bos: true" in (tmp_path / "out" / "README.md").read_text()
    before = math.log(found.perplexity_before)
    assert math.isclose(before, evaluated(home, windows=64)["nll"], rel_tol=1e-5)


def test_instructions_begin_with_bos(home: Path, tmp_path: Path) -> None:
    from tracenas.commands.recover.data import recovery_data
    from tracenas.recovery.instructions import encode_chat

    write_instructions(tmp_path / "chat.jsonl", 20)
    config = RecoverConfig(
        model="-", method="lora", data=str(tmp_path / "chat.jsonl"), out=tmp_path, max_steps=1, seq_len=48
    )
    loaded = tracenas.load(home / "model", device="cpu")
    data = recovery_data(config, loaded)
    for example in (next(iter(data.examples)), *data.validation):
        assert data.bos and example["input_ids"][0] == BOS and example["labels"][0] == -100
    ids, learned = encode_chat([("user", "a"), ("assistant", "b")], loaded.tokenizer, 0)
    assert BOS not in ids and len(ids) == len(learned)


def test_sparsify_select_and_study(home: Path, tmp_path: Path) -> None:
    data = str(home / "text.txt")
    made = tracenas.sparsify(home / "model", sparsity="0.5", data=data, out=tmp_path / "sparse", **SMALL)
    assert "bos: true" in (made.path / "README.md").read_text()
    chosen = tracenas.select_calibration(
        home / "model",
        params="60%",
        data=data,
        out=tmp_path / "chosen.safetensors",
        candidates=2,
        held_out_samples=2,
        **SMALL,
    )
    assert noted_bos(chosen.path) is True and load_tokens(chosen.path)[:, 0].eq(BOS).all()
    tracenas.study(
        home / "model",
        data=data,
        text=str(home / "held-out.txt"),
        out=tmp_path / "study",
        params="60%",
        architectures=3,
        proxies="loss",
        starts="plain",
        steps=1,
        recover_batch=2,
        windows=4,
        resamples=0,
        **SMALL,
    )
    for name in ("calibration", "heldout", "training"):
        path = tmp_path / "study" / f"{name}.safetensors"
        assert noted_bos(path) is True and load_tokens(path)[:, 0].eq(BOS).all()
    assert journal_bos(tmp_path / "study" / "journal.jsonl") == {True}


def test_metric_search(home: Path, tmp_path: Path) -> None:
    tracenas.metric_search(
        home / "model",
        data=str(home / "text.txt"),
        text=str(home / "held-out.txt"),
        out=tmp_path / "metric",
        population=3,
        elites=1,
        iterations=2,
        variables="W,X",
        windows=4,
        **SMALL,
    )
    for name in ("calibration", "heldout"):
        with safe_open(tmp_path / "metric" / f"{name}.safetensors", "pt") as file:
            assert file.metadata()["bos"] == "true"
    assert journal_bos(tmp_path / "metric" / "journal.jsonl") == {True}


@pytest.mark.parametrize("word", ["on", "off", "auto"])
def test_yaml_reads_on_and_off_as_booleans(tmp_path: Path, word: str) -> None:
    from tracenas.config import EvalConfig, SearchConfig, build

    (tmp_path / "a.yaml").write_text(f"bos: {word}\nrace: {word}\n")
    values = yaml.safe_load((tmp_path / "a.yaml").read_text())
    found = build(SearchConfig, {"model": "m", "data": "d", "params": "60%", "out": "o", **values})
    assert (found.bos, found.race) == (word, word)
    assert build(EvalConfig, {"models": ("m",), "bos": "on"}).bos == "on"
    with pytest.raises(tracenas.UserError, match="bos 'yes'"):
        build(EvalConfig, {"models": ("m",), "bos": "yes"})
