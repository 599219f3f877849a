"""What is said of an actor that never came to work."""

import pytest

from tracenas.cluster.actors import _last_line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "Traceback:\n  File x\nModuleNotFoundError: No module named 'tracenas'",
            "ModuleNotFoundError: No module named",
        ),
        (
            "The actor died.\n\tactor_id: 1\nIts owner has died.\nThe actor never ran - it was cancelled.",
            "Its owner has died.",
        ),
        ("The actor never ran - it was cancelled", "The actor never ran - it was cancelled"),
        ("", "RuntimeError"),
    ],
)
def test_the_line_that_says_why(text: str, said: str) -> None:
    assert _last_line(RuntimeError(text)).startswith(said)
