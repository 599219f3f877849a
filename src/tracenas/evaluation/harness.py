"""Accuracy on tasks, through lm-evaluation-harness and its own task definitions."""

import contextlib
import io
import logging
import math
import shutil
import sys
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from tracenas.data.windows import BosRule
from tracenas.errors import UserError, one_line
from tracenas.evaluation.overlay import Source, write_overlay
from tracenas.evaluation.suites import Request, TaskResult
from tracenas.registry import closest, did_you_mean

__all__ = ["Harness", "require_harness"]

_ACCEPTED = "the names of lm-eval (lm_eval ls tasks)"
# Where lm-eval keeps its definitions; a search of all of them takes ten seconds.
_BUILTIN = {
    "arc_challenge": "arc/arc_challenge.yaml",
    "arc_easy": "arc/arc_easy.yaml",
    "boolq": "super_glue/boolq/default.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "lambada_openai": "lambada/lambada_openai.yaml",
    "logiqa": "logiqa/logiqa.yaml",
    "mmlu": "mmlu/default/_mmlu.yaml",
    "openbookqa": "openbookqa/openbookqa.yaml",
    "piqa": "piqa/piqa.yaml",
    "sciq": "sciq/sciq.yaml",
    "winogrande": "winogrande/default.yaml",
}


def require_harness() -> None:
    """Refuse to go on without lm-eval.

    Raises:
        UserError: saying how to install it.
    """
    if find_spec("lm_eval") is None:
        raise UserError("tasks need lm-evaluation-harness: pip install lm-eval")


class Harness:
    """Tasks made ready once, then run on any number of models.

    Args:
        wanted: tasks and shots.
        data: folder of local files (see `task_data`); None for lm-eval's own data sets, which are fetched.

    Raises:
        UserError: if lm-eval is missing, a task is unknown, or local files are missing or unfit.
    """

    def __init__(self, wanted: Sequence[Request], data: Path | None = None) -> None:
        require_harness()
        self.wanted = tuple(wanted)
        self._sources: dict[str, Source] = {}
        self._index: Any = None
        self._manager = self._all_tasks() if data is None else self._local(data)
        if data is None:
            for request in wanted:
                self._check(request.name)

    def run(
        self,
        model: Any,
        tokenizer: Any,
        *,
        limit: int | None = None,
        batch_size: int = 8,
        bos: BosRule = "auto",
        shard: bool = False,
    ) -> dict[str, TaskResult]:
        """Evaluate one model.

        Args:
            model: a causal language model, heterogeneous ones included, on its device.
            tokenizer: the model's.
            limit: questions per task (per subject in MMLU).
            batch_size: requests per forward pass.
            bos: whether prompts begin with BOS; auto: as the tokenizer has it, which is what lm-eval does.
            shard: whether the questions are shared out over the processes of torch.distributed; every process
                gets the whole result.

        Raises:
            UserError: if a task's data cannot be had.
        """
        with _quiet():
            from tracenas.evaluation.language_model import LanguageModel, shared

            lm = LanguageModel(model, tokenizer, batch_size, shard=shard, bos=bos)
            results: dict[str, TaskResult] = {}
            for shots in dict.fromkeys(r.shots for r in self.wanted):
                names = [r.name for r in self.wanted if r.shots == shots]
                raw = self._evaluate(lm, names, shots, limit)
                raw, cut = shared(raw, lm.truncated) if shard else (raw, lm.truncated)
                results.update({name: self._result(raw, name, cut) for name in names})
        return {r.name: results[r.name] for r in self.wanted}

    def _evaluate(self, lm: Any, names: list[str], shots: int | None, limit: int | None) -> Any:
        import lm_eval

        try:
            with _without_notes():
                return lm_eval.simple_evaluate(
                    lm, tasks=list(names), num_fewshot=shots, limit=limit, task_manager=self._manager, log_samples=False
                )
        except UserError:
            raise
        except OSError as error:
            raise UserError(
                f"tasks {', '.join(names)}: data cannot be fetched ({one_line(error)}); give local files with task-data"
            ) from error

    def _result(self, raw: Mapping[str, Any], name: str, cut: Mapping[str, int]) -> TaskResult:
        """One task's numbers out of lm-eval's results, a group's with those of its tasks."""
        below = list(raw.get("group_subtasks", {}).get(name, ()))
        subtasks = {child: self._result(raw, child, cut) for child in below}
        metrics: dict[str, float | None] = {}
        for key, value in raw["results"].get(name, {}).items():
            metric, comma, kind = key.partition(",")
            if comma and metric != "alias":
                plain = metric if kind == "none" else key
                metrics[plain] = float(value) if _is_number(value) else None
        leaf = raw["n-samples"].get(name)
        n = int(leaf["effective"]) if leaf is not None else sum(s.n for s in subtasks.values())
        shots = raw["n-shot"].get(name)
        shots = int(shots) if isinstance(shots, int) else max((s.shots for s in subtasks.values()), default=0)
        source = self._sources.get(name, Source("", ""))
        truncated = cut.get(name, 0) + sum(s.truncated for s in subtasks.values())
        return TaskResult(metrics, n, shots, truncated, source.split, source.shots_from, subtasks)

    # ---- where the definitions come from -------------------------------------------------------------

    def _all_tasks(self) -> Any:
        """lm-eval's index of all its tasks."""
        if self._index is None:
            with _quiet():
                from lm_eval.tasks import TaskManager

                self._index = TaskManager()
        return self._index

    def _check(self, name: str) -> None:
        manager = self._all_tasks()
        if name not in manager.task_index:
            raise UserError(f"unknown task '{name}': {did_you_mean(name, manager.all_tasks, _ACCEPTED)}")
        if name in manager.all_tags:
            members = ", ".join(sorted(manager.task_index[name].tags)[:8])
            raise UserError(f"task '{name}' is a tag of lm-eval; name its tasks: {members}")

    def _local(self, data: Path) -> Any:
        target = Path(tempfile.mkdtemp(prefix="tracenas-tasks-"))
        weakref.finalize(self, shutil.rmtree, target, ignore_errors=True)
        for request in self.wanted:
            builtin = self._definition(request.name)
            self._sources[request.name] = write_overlay(data, request.name, builtin, request.shots or 0, target)
        with _quiet():
            from lm_eval.tasks import TaskManager

            return TaskManager(include_path=str(target), include_defaults=False)

    def _definition(self, name: str) -> Path:
        """lm-eval's YAML of a task."""
        spec = find_spec("lm_eval")
        assert spec is not None and spec.submodule_search_locations
        path = Path(spec.submodule_search_locations[0]) / "tasks" / _BUILTIN.get(name, "-")
        if path.is_file():
            return path
        if closest(name, _BUILTIN, 0.75) is not None:
            raise UserError(f"unknown task '{name}': {did_you_mean(name, _BUILTIN, _ACCEPTED)}")
        self._check(name)
        return Path(self._all_tasks().task_index[name].yaml_path)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


@contextlib.contextmanager
def _without_notes() -> Iterator[None]:
    """lm-eval without its notes of the machine, which nobody reads: git complains where there is no repository."""
    import lm_eval.evaluator as module

    functions = {
        name: getattr(module, name) for name in ("get_git_commit_hash", "add_env_info") if hasattr(module, name)
    }
    for name in functions:
        setattr(module, name, lambda *_: None)
    try:
        yield
    finally:
        for name, function in functions.items():
            setattr(module, name, function)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval without its chatter and without its hand on the global random generators.

    Progress bars are for terminals; elsewhere they are dropped.
    """
    import random

    import torch

    states = random.getstate(), np.random.get_state()
    loggers = [logging.getLogger(name) for name in ("lm_eval", "lm-eval", "datasets")]
    levels = [logger.level for logger in loggers]
    with contextlib.ExitStack() as stack:
        if not sys.stderr.isatty():
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        stack.enter_context(torch.random.fork_rng())
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
