"""Instruction data: prompts and responses or chats, from files of rows or the hub; labels on responses only."""

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tracenas.data import hub
from tracenas.data.decoding import format_name, require_text
from tracenas.data.encoding import TextEncoding
from tracenas.data.packing import refusals
from tracenas.data.rows import ROW_FORMATS, field_names, rows
from tracenas.errors import UserError
from tracenas.recovery.datasets import Example, Examples, Rows, key

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Message", "encode_chat", "instruction_examples", "row_messages"]

Message = tuple[str, str]
"""(role, text); the role is `system`, `user` or `assistant`."""
_Encode = Callable[[Sequence[Message], str], Example | None]
"""(chat, where it is from) → an example."""

_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_PROMPTS = ("prompt", "instruction", "question", "query")
_CONTEXTS = ("input", "context")
_RESPONSES = ("response", "output", "completion", "answer")
_SYSTEMS = ("system", "system_prompt")
_CHATS = (("messages", "role", "content"), ("conversations", "from", "value"))
_FIELDS = (*_PROMPTS, *_CONTEXTS, *_RESPONSES, *_SYSTEMS, *(name for name, _, _ in _CHATS))
_ACCEPTED = (
    "prompt/response, instruction/input/output, system_prompt/question/response, question/answer, "
    "or messages (role, content) and conversations (from, value)"
)
# Of Stanford Alpaca, shortened to what carries meaning.
_TURNS = {"system": "{}\n\n", "user": "### Instruction:\n{}\n\n", "assistant": "### Response:\n"}
_ROWS_IN_MEMORY = 2_000_000
_SAMPLE = 0x53504C54
"""In the place of an epoch: the pass that the examples which choose the checkpoint are drawn from."""


def row_messages(row: Mapping[str, Any], where: str) -> list[Message]:
    """The chat that a row holds, whichever of the usual fields it has.

    Raises:
        UserError: if it has none of them, no response, or something else than text in one of them.
    """
    for field, role, text in _CHATS:
        if field in row:
            return _chat(row[field], role, text, where)
    prompt, response = _first(row, _PROMPTS, where), _first(row, _RESPONSES, where)
    if prompt is None or response is None:
        empty = next((f for f in (*_PROMPTS, *_RESPONSES) if f in row and row[f] is None), None)
        reason = f"fields {field_names(row)}" if empty is None else f"field '{empty}' holds a null"
        raise UserError(f"{where}: {reason}; accepted: {_ACCEPTED}")
    system, context = _first(row, _SYSTEMS, where), _first(row, _CONTEXTS, where)
    question = f"{prompt}\n\n{context}" if context else prompt
    return [*([("system", system)] if system else []), ("user", question), ("assistant", response)]


def encode_chat(
    messages: Sequence[Message], tokenizer: "PreTrainedTokenizerBase", eos: int, bos: int | None = None
) -> tuple[list[int], list[bool]]:
    """Token ids, and which of them the model is to learn: what the assistant says and the token that ends it.

    The tokenizer's chat template is used where it has one, else Alpaca's headings behind `bos` (None: behind nothing).
    Answers that the template writes otherwise once the chat goes on (Qwen 3 drops what was thought) are read only.
    """
    if getattr(tokenizer, "chat_template", None):
        return _templated(messages, tokenizer, eos)
    ids = [] if bos is None else [bos]
    learned = [False] * len(ids)

    def add(text: str, learn: bool) -> None:
        new = [int(token) for token in tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]]
        ids.extend(new)
        learned.extend([learn] * len(new))

    for role, text in messages:
        add(_TURNS[role].format(text) if role != "assistant" else _TURNS[role], learn=False)
        if role == "assistant":
            add(text, learn=True)
            ids.append(eos)
            learned.append(True)
    return ids, learned


def instruction_examples(source: str, encoding: TextEncoding, seq_len: int, *, seed: int) -> Examples:
    """Examples with labels on responses; those longer than `seq_len` are cut, those without a response left out.

    Local files are read as a whole; data sets on the hub are streamed and shuffled through a buffer.

    Raises:
        UserError: if the source cannot be read or holds nothing to learn.
    """
    encode = partial(_example, encoding=encoding, seq_len=seq_len)
    if Path(source).exists():
        return _in_memory(source, encode, seq_len, seed)
    return _Streamed(hub.parse(source), encode, seq_len, seed)


def _in_memory(source: str, encode: _Encode, seq_len: int, seed: int) -> Rows:
    if format_name(Path(source)) not in ROW_FORMATS:
        raise UserError(f"'{source}': instruction data is a file of rows ({', '.join(ROW_FORMATS)}) with {_ACCEPTED}")
    examples: list[Example] = []
    for where, row in itertools.islice(rows(Path(source), _FIELDS), _ROWS_IN_MEMORY):
        example = encode(row_messages(row, where), where)
        if example is not None:
            examples.append(example)
    if not examples:
        raise UserError(f"data '{source}' holds no response within {seq_len} tokens (seq_len)")
    return Rows(examples, seed)


class _Streamed(Examples):
    def __init__(self, data: hub.HubData, encode: _Encode, seq_len: int, seed: int) -> None:
        super().__init__()
        self._data, self._encode, self._seq_len, self._seed = data, encode, seq_len, seed
        self._excluded: frozenset[bytes] = frozenset()

    def from_start(self) -> Iterator[Example]:
        for epoch in itertools.count():
            nothing = True
            for example in self._pass(epoch):
                if key(example) not in self._excluded:
                    nothing = False
                    yield example
            if nothing:
                beside = " beside those that choose the checkpoint" if self._excluded else ""
                raise UserError(
                    f"data set '{self._data}' holds no response within {self._seq_len} tokens (seq_len){beside}"
                )

    def sample(self, limit: int) -> list[Example]:
        return list({key(e): e for e in itertools.islice(self._pass(_SAMPLE), limit)}.values())

    def without(self, examples: Sequence[Example]) -> "_Streamed":
        rest = copy.copy(self)
        rest._excluded = frozenset(map(key, examples))
        return rest

    def _pass(self, epoch: int) -> Iterator[Example]:
        """Every example of the data set once, in an order of the epoch's own."""
        seed = int(np.random.SeedSequence([self._seed, epoch]).generate_state(1)[0])
        where = f"data set '{self._data}'"
        for row in hub.streamed(self._data, seed=seed):
            example = self._encode(row_messages(row, where), where)
            if example is not None:
                yield example


def _example(chat: Sequence[Message], where: str, *, encoding: TextEncoding, seq_len: int) -> Example | None:
    tokenizer = encoding.tokenizer
    with refusals("chat template" if getattr(tokenizer, "chat_template", None) else "tokenizer", where):
        ids, learned = encode_chat(chat, tokenizer, encoding.end, encoding.bos)
    if encoding.vocab_size is not None and ids and max(ids) >= encoding.vocab_size:
        raise UserError(f"{where}: token id {max(ids)}, the model's vocabulary ends at {encoding.vocab_size - 1}")
    input_ids, learn = torch.tensor(ids[:seq_len]), torch.tensor(learned[:seq_len])
    labels = torch.where(learn, input_ids, -100)
    return {"input_ids": input_ids, "labels": labels} if bool((labels[1:] != -100).any()) else None


def _templated(messages: Sequence[Message], tokenizer: Any, eos: int) -> tuple[list[int], list[bool]]:
    chat = [{"role": role, "content": text} for role, text in messages]
    text = ""
    ids: list[int] = []
    learned: list[bool] = []
    for end, (role, _) in enumerate(messages, start=1):
        if role != "assistant":
            continue
        for turns, answered in ((chat[: end - 1], False), (chat[:end], True)):
            longer = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=not answered)
            new = [int(token) for token in tokenizer(longer, add_special_tokens=False, verbose=False)["input_ids"]]
            same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(ids, new, strict=False)))
            if same < len(ids) and not longer.startswith(text):
                if answered:
                    raise ValueError("it rewrites the prompt of an answer, and labels cannot be told from it")
                ids, same = [], 0  # the answers so far are not as they would be said: read, not learned
            # a line break at the end of the prompt and one at the beginning of the answer may be one token: not learned
            kept = learned[:same] + [False] * (len(ids) - same)
            text, ids, learned = longer, new, (kept + [answered] * (len(new) - len(ids)))[: len(new)]
    if ids and eos not in ids[-3:]:
        ids, learned = [*ids, eos], [*learned, True]
    return ids, learned


def _chat(turns: Any, role_field: str, text_field: str, where: str) -> list[Message]:
    chat: list[Message] = []
    for turn in turns if isinstance(turns, list) else []:
        role = _ROLES.get(str(turn.get(role_field))) if isinstance(turn, dict) else None
        if role is None or text_field not in turn:
            raise UserError(f"{where}: a turn needs '{role_field}' (one of {', '.join(_ROLES)}) and '{text_field}'")
        chat.append((role, require_text(turn[text_field], f"{where}: '{text_field}' of a turn")))
    if not any(role == "assistant" for role, _ in chat):
        raise UserError(f"{where}: the chat holds no turn of the assistant")
    return chat


def _first(row: Mapping[str, Any], names: Sequence[str], where: str) -> str | None:
    """The first of the fields that holds something."""
    name = next((name for name in names if row.get(name) is not None), None)
    return None if name is None else require_text(row[name], f"{where}: field '{name}'")
