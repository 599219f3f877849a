"""What a study scores and measures, from its settings. No torch."""

from dataclasses import dataclass

from tracenas.commands.study.pool import parse_list
from tracenas.config import StudyConfig
from tracenas.config.study import STUDY_STARTS, STUDY_TARGETS, names
from tracenas.errors import UserError
from tracenas.evaluation.suites import requests
from tracenas.proxies import PROXIES
from tracenas.studies import StudyTarget

__all__ = ["LORA", "StudyPlan", "chosen_proxies", "make_plan"]

LORA = STUDY_TARGETS[1]


@dataclass(frozen=True)
class StudyPlan:
    """What is measured.

    Args:
        starts: `plain`, `compensated` or both.
        marks: recovery steps after which the loss is measured, ascending; empty for no recovery.
        seeds: orders of the training data.
        batch: sequences per step.
        lora: whether the shared LoRA's loss is measured.
        tasks: names of lm-eval tasks.
    """

    starts: tuple[str, ...]
    marks: tuple[int, ...]
    seeds: int
    batch: int
    lora: bool = False
    tasks: tuple[str, ...] = ()

    def targets(self) -> list[StudyTarget]:
        """In order: per start, right after pruning and after each mark; then LoRA and tasks."""
        out = [StudyTarget(f"{s}_{n}", f"{s} {n}", group=s, steps=n) for n in (0, *self.marks) for s in self.starts]
        out += [StudyTarget(LORA, "once-for-all LoRA")] if self.lora else []
        return out + [StudyTarget(f"task_{name}", f"{name}, accuracy", loss=False) for name in self.tasks]

    @property
    def main(self) -> str:
        """The target that counts: the last recovery, from the compensated start where there is one."""
        return f"{self.starts[-1]}_{(0, *self.marks)[-1]}"

    @property
    def sequences(self) -> int:
        """Training sequences that one recovery takes."""
        return self.batch * max(self.marks, default=0)


def chosen_proxies(config: StudyConfig) -> tuple[str, ...]:
    """The proxies that are scored.

    Raises:
        UserError: for none, or an unknown one.
    """
    registered = tuple(PROXIES.names())
    if config.proxies == "all":
        return registered
    proxies = names(config.proxies)
    for name in proxies:
        PROXIES.check(name)
    if not proxies:
        raise UserError(f"proxies is empty; accepted: all, {', '.join(registered)}")
    return proxies


def make_plan(config: StudyConfig) -> StudyPlan:
    """What is to be measured.

    Raises:
        UserError: for settings that contradict each other.
    """
    starts = parse_list("starts", config.starts, STUDY_STARTS)
    targets = parse_list("targets", config.targets, STUDY_TARGETS)
    marks: tuple[int, ...] = (config.steps,) if config.steps and "recovery" in targets else ()
    if config.long_steps is not None:
        if not marks or config.long_steps <= config.steps:
            raise UserError(f"long-steps {config.long_steps}: must be more than steps ({config.steps})")
        marks = (*marks, config.long_steps)
    tasks: tuple[str, ...] = ()
    if config.tasks is not None:
        from tracenas.evaluation.harness import require_harness  # imports torch

        require_harness()
        if not marks:
            raise UserError("tasks are measured after recovery: give steps")
        tasks = tuple(r.name for r in requests(config.tasks, None, None))
    plan = StudyPlan(starts, marks, config.seeds, config.recover_batch, LORA in targets, tasks)
    if config.target is not None:
        parse_list("target", config.target, tuple(t.name for t in plan.targets()))
    return plan
