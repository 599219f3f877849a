"""`tracenas eval` against a direct `lm_eval.simple_evaluate`, on local data through overlay YAMLs.

The overlays here load the files as data sets of kind `json` and use lm-eval's own model loading, so nothing but
lm-eval itself is shared with the code under test.
"""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from tracenas.commands.evaluate import evaluate
from tracenas.config import EvalConfig

pytestmark = [
    pytest.mark.parity,
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),
]

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("TRACENAS_SHARED", ROOT.parent / "shared")) / "data" / "eval"
LIMIT = 12

# Shots, lm-eval's file, the splits that are there, and what the local columns need.
TASKS: dict[str, tuple[int, str, dict[str, str], dict[str, Any]]] = {
    "piqa": (0, "piqa/piqa.yaml", {"validation": "validation.jsonl"}, {}),
    "sciq": (0, "sciq/sciq.yaml", {"validation": "validation.jsonl"}, {}),
    "arc_easy": (0, "arc/arc_easy.yaml", {"validation": "validation.jsonl"}, {}),
    "boolq": (
        0,
        "super_glue/boolq/default.yaml",
        {"validation": "validation.jsonl"},
        {"doc_to_target": "{{answer|int}}"},
    ),
    "logiqa": (2, "logiqa/logiqa.yaml", {"validation": "validation.jsonl", "test": "test.jsonl"}, {}),
    "winogrande": (5, "winogrande/default.yaml", {"validation": "validation.jsonl"}, {}),
    "arc_challenge": (3, "arc/arc_challenge.yaml", {"validation": "validation.jsonl"}, {}),
    "hellaswag": (
        2,
        "hellaswag/hellaswag.yaml",
        {"validation": "validation_1000.jsonl"},
        {"process_docs": None, "doc_to_target": "{{gold}}"},
    ),
}


@pytest.fixture(scope="module")
def shared_data() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"no evaluation data at {SHARED}; TRACENAS_SHARED names another folder")
    return SHARED


def direct(folder: Path, overlays: Path, model: str) -> dict[str, dict[str, Any]]:
    """lm-eval alone: its own model loading, overlays with `dataset_path: json`."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    for name, (_, builtin, splits, changes) in TASKS.items():
        overlay = {
            "include": str(Path(lm_eval.__file__).parent / "tasks" / builtin),
            "task": name,
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {
                "data_files": {k: str(folder / name / v) for k, v in splits.items()},
                "cache_dir": str(overlays / "cache"),
            },
            "training_split": None,
            "validation_split": "validation",
            "test_split": "test" if "test" in splits else None,
            **changes,
        }
        (overlays / f"{name}.yaml").write_text(yaml.safe_dump(overlay))
    manager = TaskManager(include_path=str(overlays), include_defaults=False)
    lm = HFLM(pretrained=model, dtype="float32", device="cpu", batch_size=8)
    found: dict[str, dict[str, Any]] = {}
    for name, (shots, *_) in TASKS.items():
        raw = lm_eval.simple_evaluate(lm, tasks=[name], task_manager=manager, num_fewshot=shots, limit=LIMIT)
        assert raw is not None
        found[name] = raw["results"][name]
    return found


def test_results_equal_lm_eval_to_the_last_digit(shared_data: Path, tmp_path: Path) -> None:
    from tracenas.demo import model_path

    names = ",".join(f"{name}:{shots}" for name, (shots, *_) in TASKS.items())
    config = EvalConfig(
        models=(str(model_path()),), tasks=names, task_data=shared_data, limit=LIMIT, dtype="fp32", device="cpu"
    )
    ours = evaluate(config).tasks[0]
    theirs = direct(shared_data, tmp_path, str(model_path()))
    for name, expected in theirs.items():
        wanted = {k.removesuffix(",none"): v for k, v in expected.items() if k.endswith(",none")}
        assert wanted, name
        assert dict(ours[name].metrics) == wanted, name
        assert ours[name].n == LIMIT
