"""Does llama.cpp compute from the file what transformers computes from the checkpoint?

A file that loads proves nothing: a wrong permutation or a lost residual loads, too. So the logits of the same token ids
are compared, llama.cpp's with an f32 cache, transformers' in fp32, and may differ by 1e-3. For a smaller type this is
asked of the same file in f32, its twin; of the smaller file itself it is asked that every tensor is the twin's up to
the rounding of its type, and that llama.cpp runs it. How far its logits then are from the checkpoint's is reported, and
bounded only by the logits' own spread: it is a property of the model (a deep one that was cut and not yet recovered
amplifies any rounding), not of the file.
"""

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tracenas.errors import CheckFailed, UserError
from tracenas.interpreters import ask_interpreter

__all__ = ["LARGEST", "Agreement", "Checker", "agreement", "default_ids", "find_llama", "first_difference"]

LARGEST = 1e-3
"""Of max |Δlogit| in f32."""
GELU = 0.01
"""In f32 where ggml reads GELU from a table in f16: of the root mean square of Δlogit over the logits' deviation."""
ROUNDED = 1.0
"""The same of a smaller type."""
_SCRIPT = Path(__file__).with_name("llama_logits.py")
_TEXTS = (
    "Once upon a time, there was a little girl. She liked to play outside, and every day she went to the park.",
    "In 2024 it's 3.5 °C;\n\n  naïve — 100% of it.",
)
_POSITIONS = 32
Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Agreement:
    """How llama.cpp's logits compare with the checkpoint's.

    Args:
        largest: max |Δlogit|.
        relative: root mean square of Δlogit over the standard deviation of the checkpoint's logits.
        same_token: share of positions whose most likely token is the same.
        exact: whether nothing is rounded, so that `tolerance` is of `largest`; of `relative` otherwise.
        texts: of the sample texts, how many get the same tokens; None where there is no tokenizer.
        stored: the same of the file itself where it is of a smaller type; the other numbers are then its twin's in f32.
    """

    positions: int
    largest: float
    relative: float
    same_token: float
    exact: bool
    tolerance: float
    texts: tuple[int, int] | None = None
    stored: "Agreement | None" = None

    @property
    def ok(self) -> bool:
        """Whether the difference is within the tolerance (NaN is not)."""
        return bool((self.largest if self.exact else self.relative) <= self.tolerance)

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        stored = None if self.stored is None else self.stored.to_json()
        return {**asdict(self), "stored": stored, "ok": self.ok}

    def describe(self) -> str:
        """In words."""
        what = "largest difference of a logit" if self.exact else "difference over the logits' spread"
        value = self.largest if self.exact else self.relative
        stored = "" if self.stored is None else f", in f32; as stored: {self.stored.describe()}"
        return f"{what} {value:.2g} over {self.positions} positions (tolerance {self.tolerance:g}){stored}"


def agreement(
    logits: Logits,
    expected: Logits,
    *,
    gelu: bool = False,
    rounded: bool = False,
    texts: tuple[int, int] | None = None,
) -> Agreement:
    """Compare logits [positions, vocabulary].

    Args:
        gelu: whether the model's activation is GELU.
        rounded: whether the file is of a smaller type than f32.
    """
    if logits.shape != expected.shape:
        raise CheckFailed(f"llama.cpp gives logits {list(logits.shape)}, the checkpoint {list(expected.shape)}")
    delta = logits.astype(np.float64) - expected.astype(np.float64)
    exact = not (gelu or rounded)
    return Agreement(
        len(expected),
        float(np.abs(delta).max()),
        float(np.sqrt((delta**2).mean()) / max(float(expected.std()), 1e-12)),
        float((logits.argmax(-1) == expected.argmax(-1)).mean()),
        exact,
        LARGEST if exact else ROUNDED if rounded else GELU,
        texts,
    )


_HERE = "llama_cpp is here"
"""What a Python that has it says."""


def find_llama(python: Path | None, what: str = "--check") -> Path:
    """The Python that has llama-cpp-python: the one that was named, or this one.

    Args:
        what: needs it, for messages.

    Raises:
        UserError: if it has it not.
    """
    how = "pip install llama-cpp-python (it is compiled, which takes minutes), or name a Python that has it"
    if python is None:
        if importlib.util.find_spec("llama_cpp") is None:
            raise UserError(f"{what} needs llama-cpp-python, which is not installed: {how} with --llama-python")
        return Path(sys.executable)
    python, done = ask_interpreter(python, f"import llama_cpp; print({_HERE!r})", "llama-python")
    if done.returncode or _last_line(done.stdout) != _HERE:  # the latter of a program that is no Python
        raise UserError(f"llama-python {python}: cannot import llama_cpp ({_last_line(done.stderr)}); {how}")
    return python


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1]


@dataclass(frozen=True)
class Checker:
    """Asks llama.cpp for logits, in a process of its own: it ends the process when a file is not to its liking.

    Args:
        python: has llama-cpp-python.
        ids: tokens that are read.
        gelu: whether the model's activation is GELU.
    """

    python: Path
    ids: Sequence[int]
    threads: int = 1
    gelu: bool = False

    def logits(self, file: Path, texts: Sequence[str] = ()) -> tuple[Logits, list[list[int]]]:
        """Logits [ids, vocabulary] and the tokens of texts.

        Raises:
            CheckFailed: if llama.cpp does not load or run the file.
        """
        with tempfile.TemporaryDirectory() as scratch:
            out = Path(scratch) / "logits"
            request = {"gguf": str(file), "ids": list(self.ids), "logits": str(out), "texts": list(texts)}
            command = [str(self.python), str(_SCRIPT), json.dumps({**request, "threads": self.threads})]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                message = _last_line(done.stderr)[:240]
                raise CheckFailed(f"llama.cpp does not run it (exit status {done.returncode}: {message})")
            answer = json.loads(_last_line(done.stdout))
            logits: Logits = np.fromfile(out, dtype=np.float32).reshape(answer["shape"])
        return logits, answer["tokens"]

    def compare(self, file: Path, model: Any, tokenizer: Any = None, *, rounded: bool = False) -> Agreement:
        """Logits of the file and of a loaded checkpoint; the tokens of two texts if there is a tokenizer."""
        texts = _TEXTS if tokenizer is not None else ()
        logits, tokens = self.logits(file, texts)
        same = sum(tokenizer(text)["input_ids"] == ids for text, ids in zip(texts, tokens, strict=True))
        counts = (same, len(texts)) if texts else None
        return agreement(logits, reference(model, self.ids), gelu=self.gelu, rounded=rounded, texts=counts)


def default_ids(vocab: int, positions: int, tokenizer: Any = None) -> list[int]:
    """The first 32 tokens of a text, or the same 32 random ones for every model of a vocabulary.

    Fewer where the model has no more positions.

    Args:
        tokenizer: None for random ones.
    """
    count = min(_POSITIONS, positions)
    if tokenizer is not None and (ids := tokenizer(" ".join(_TEXTS))["input_ids"][:count]):
        return [int(i) for i in ids]
    return [int(i) for i in np.random.default_rng(0).integers(0, vocab, count)]


def reference(model: Any, ids: Sequence[int]) -> Logits:
    """A transformers model's logits [ids, vocabulary], float32."""
    import torch

    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits
    array: Logits = logits[0].float().numpy()
    return array


def first_difference(checker: Checker, model: Any, depth: int, write: Callable[[int], Path]) -> str:
    """In words, the first block with which llama.cpp differs: both models are cut behind it, halving the range.

    Block 0 stands also for what is around the blocks; where llama.cpp does not run a cut file, nothing can be told.

    Args:
        model: a transformers model, cut in place.
        write: makes the file of the first n blocks, in f32.
    """
    from torch import nn

    layers = list(model.base_model.layers)

    def apart(count: int) -> Agreement:
        model.base_model.layers = nn.ModuleList(layers[:count])
        model.config.num_hidden_layers = count
        return checker.compare(write(count), model)

    low, high, results = 0, depth, {}
    try:
        while high - low > 1:
            middle = (low + high) // 2
            results[middle] = apart(middle)
            low, high = (middle, high) if results[middle].ok else (low, middle)
        last = results.get(high) or apart(high)
    except CheckFailed:
        return "which layer differs first cannot be told (llama.cpp does not run the first blocks alone)"
    around = " (or what stands around the blocks)" if high == 1 else ""
    return f"the first layer that differs is {high - 1}{around}: {last.describe()}"
