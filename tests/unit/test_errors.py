"""What other libraries' exceptions say, in one line."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tiny import save_tiny

from tracenas.errors import UserError, catchable, first_line, one_line


@pytest.mark.parametrize(
    ("error", "first", "line"),
    [
        (ValueError("\n one\n\n  two: pip install x\n"), "one", "one two: pip install x"),
        (ValueError(), "ValueError", "ValueError"),
        (KeyError("foo"), "KeyError: 'foo'", "KeyError: 'foo'"),
        (KeyError("no 'factor'\nin it"), "no 'factor'", "no 'factor' in it"),
        (RuntimeError("x" * 500), "x" * 500, "x" * 400 + "…"),
    ],
)
def test_in_one_line(error: Exception, first: str, line: str) -> None:
    assert (first_line(error), one_line(error)) == (first, line)


def test_a_message_is_one_line_whatever_it_quotes() -> None:
    assert str(UserError("model a\nb\u2028c: no such directory")) == "model a b c: no such directory"


def test_a_panic_is_an_error_and_an_interrupt_is_not() -> None:
    class PanicException(BaseException):
        """As pyo3 raises it."""

    with pytest.raises(RuntimeError, match="index out of bounds"), catchable():
        raise PanicException("index out of bounds")
    with pytest.raises(KeyboardInterrupt), catchable():
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ({"hidden_act": "foo"}, "cannot be loaded: KeyError: 'foo'"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "cannot be loaded: Missing required keys in `rope_parameters`"),
        ({"attn_implementation": "flash_attention_2"}, "cannot be loaded: FlashAttention2 has been toggled on, but"),
    ],
)
def test_what_transformers_says_of_a_model(tmp_path: Path, tokenizer: Any, setting: dict[str, Any], told: str) -> None:
    from tracenas.models.checkpoints.loading import load

    save_tiny(tmp_path, "llama", tokenizer)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **setting}))
    with pytest.raises(UserError, match=told) as caught:
        load(str(tmp_path), device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_a_checkpoint_says_which_transformers_it_needs(monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    """An older transformers has other names: none of them is asked for before that is said."""
    import transformers

    from tracenas.models.shipped.checkpoint_code import shipped_code

    older = ModuleType("transformers")
    for name in ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForSeq2SeqLM"):
        setattr(older, name, getattr(transformers, name))
    monkeypatch.setitem(sys.modules, "transformers", older)
    with pytest.raises(ImportError, match=r"needs transformers 5\.17 or newer"):
        exec(compile(shipped_code(family), "modeling_tracenas.py", "exec"), {"__file__": "modeling_tracenas.py"})
