"""How much a task reads, for estimates before anything is fetched."""

from dataclasses import dataclass

__all__ = ["TASK_SIZES", "TaskSize"]


@dataclass(frozen=True)
class TaskSize:
    """A task in numbers.

    Args:
        questions: that lm-eval asks.
        tokens: that a model reads for the answers to one of them, their shared context once.
        shot: tokens more for every example before the question.
        split: that the questions are.
        subjects: parts that a limit counts for.
    """

    questions: int
    tokens: int
    shot: int
    split: str = "validation"
    subjects: int = 1

    def read(self, shots: int, limit: int | None, rows: int | None = None) -> tuple[int, int]:
        """(questions, tokens of each).

        Args:
            shots: examples before every question.
            limit: questions at most, of every part; None: all.
            rows: questions that there are, where that is known better.
        """
        questions = self.questions if rows is None else rows
        asked = questions if limit is None else min(questions, limit * self.subjects)
        return asked, self.tokens + shots * self.shot


TASK_SIZES = {
    "arc_challenge": TaskSize(1172, 55, 39, "test"),
    "arc_easy": TaskSize(2376, 43, 34, "test"),
    "boolq": TaskSize(3270, 151, 149),
    "hellaswag": TaskSize(10042, 161, 82),
    "lambada_openai": TaskSize(5153, 82, 82, "test"),
    "logiqa": TaskSize(651, 254, 217, "test"),
    "mmlu": TaskSize(14042, 133, 120, "test", subjects=57),
    "openbookqa": TaskSize(500, 26, 18, "test"),
    "piqa": TaskSize(1838, 60, 39),
    "sciq": TaskSize(1000, 115, 107, "test"),
    "winogrande": TaskSize(1267, 40, 49),
}
"""Counted with SmolLM2's tokenizer on 200 questions of each task, with 0, 1 and 5 examples (MMLU on all questions)."""
