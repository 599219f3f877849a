"""A transformers model as lm-eval sees it: refuses what it cannot answer, shares requests out over processes."""

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from tqdm import tqdm

from tracenas.data.packing import refusals
from tracenas.data.windows import BosRule, added_bos
from tracenas.errors import UserError, catchable
from tracenas.evaluation.likelihood import Answer, capability, log_likelihoods

__all__ = ["LanguageModel", "shared"]

_NEW_TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""What tasks call the length of an answer; the first of them counts."""


class LanguageModel(HFLM):  # type: ignore[misc]
    """An `HFLM` over a model in memory, with `truncated`: answers per task whose prompt lost its beginning.

    Args:
        shard: whether this process answers a share of the requests (torch.distributed is initialised). lm-eval
            would share out the questions instead; its few-shot examples then depend on the number of processes.
        bos: whether prompts begin with the BOS that the tokenizer adds by itself; auto: as lm-eval has it.

    Raises:
        UserError: `bos` is on and the tokenizer adds none; no token is named that could stand before an empty prompt.
    """

    def __init__(self, model: Any, tokenizer: Any, batch_size: int, *, shard: bool, bos: BosRule = "auto") -> None:
        if bos == "on" and added_bos(tokenizer) is None:
            raise UserError("bos on: tasks are encoded as lm-eval does, by the tokenizer, which adds no BOS")
        self._capability = capability(model)
        prefix, self._end = _special_tokens(tokenizer, model.config)
        super().__init__(
            pretrained=model,
            tokenizer=_with_pad(tokenizer, self._end),
            backend="causal",
            batch_size=batch_size,
            add_bos_token={"auto": None, "on": True, "off": False}[bos],
            prefix_token_id=prefix,
        )
        self._shard = shard
        self._tasks: list[str] = []
        self.truncated: Counter[str] = Counter()

    @property
    def eot_token_id(self) -> int:
        """Ends a text."""
        return self._end

    def loglikelihood(self, requests: Any, *args: Any, **kwargs: Any) -> Any:
        """As in lm-eval; remembers which task every request is of."""
        answer = super().loglikelihood

        def checked(requests: Any) -> Any:
            self._tasks = [str(request.task_name) for request in requests]
            try:
                with catchable():
                    return answer(requests, *args, **kwargs)
            except Exception:
                for request in requests:
                    with refusals("tokenizer", f"task {request.task_name}, question {request.doc_id + 1}"):
                        self.tok_encode("".join(map(str, request.args)))
                raise

        return self._divided(checked, requests)

    def loglikelihood_rolling(self, requests: Any, *args: Any, **kwargs: Any) -> Any:
        """As in lm-eval."""
        return self._divided(super().loglikelihood_rolling, requests, *args, **kwargs)

    def generate_until(self, requests: Any, *args: Any, **kwargs: Any) -> Any:
        """As in lm-eval."""
        for request in requests:
            lengths = [request.args[1][name] for name in _NEW_TOKENS if request.args[1].get(name) is not None]
            new = int(lengths[0] if lengths else self.max_gen_toks)
            if new >= self.max_length:
                raise UserError(
                    f"task {request.task_name}: {new} new tokens for an answer; the model has {self.max_length} "
                    "positions for prompt and answer"
                )
        return self._divided(super().generate_until, requests, *args, **kwargs)

    def _loglikelihood_tokens(
        self, requests: Any, disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[Answer]:
        """lm-eval's answers, through `log_likelihoods`; by lm-eval itself where the model cannot select positions.

        `override_bs` is lm-eval's for batch sizes that it is to find out.
        """
        for task, (_, context, continuation) in zip(self._tasks, requests, strict=False):
            _check(task, len(context), len(continuation), self.max_length)
            self.truncated[task] += len(context) + len(continuation) > self.max_length + 1
        if not self._capability.selects:
            answered: list[Answer] = super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
            return answered
        scored = log_likelihoods(
            self.model,
            [(context, continuation) for _, context, continuation in requests],
            self._capability,
            batch_size=self.batch_size,
            max_length=self.max_length,
            dtype=self.softmax_dtype,
        )
        hidden = disable_tqdm or self.rank != 0
        answers: dict[int, Answer] = {}
        for index, answer in tqdm(scored, total=len(requests), disable=hidden, desc="Running loglikelihood requests"):
            answers[index] = answer
            if requests[index][0] is not None:  # not a window of a longer text, which is cached as a whole
                self.cache_hook.add_partial("loglikelihood", requests[index][0], answer)
        return [answers[index] for index in range(len(requests))]

    def _divided(self, answer: Callable[..., Any], requests: Any, *args: Any, **kwargs: Any) -> Any:
        """All answers, in order; shared out, every process has each n-th question, whose answers share a context."""
        if not self._shard:
            return answer(requests, *args, **kwargs)
        rank, count = torch.distributed.get_rank(), torch.distributed.get_world_size()
        places: dict[Any, int] = {}
        owners = [places.setdefault((r.task_name, r.doc_id), len(places)) % count for r in requests]
        share = [request for request, owner in zip(requests, owners, strict=True) if owner == rank]
        parts: list[Any] = [None] * count
        torch.distributed.all_gather_object(parts, list(answer(share, *args, **kwargs)) if share else [])
        answers = [iter(part) for part in parts]
        return [next(answers[owner]) for owner in owners]


def _special_tokens(tokenizer: Any, config: Any) -> tuple[int, int]:
    """(what stands before an empty prompt, what ends a text): the tokenizer's, else the configuration's.

    Raises:
        UserError: neither names one.
    """
    named = [getattr(place, name, None) for place in (tokenizer, config) for name in ("bos_token_id", "eos_token_id")]
    bos, eos, *fallbacks = [next(iter(v), None) if isinstance(v, (list, tuple)) else v for v in named]
    tokens = [token for token in (bos, eos, *fallbacks) if token is not None]
    if not tokens:
        raise UserError(
            "tasks need a BOS or EOS token to begin empty prompts with; neither tokenizer nor config.json names one: "
            "set eos_token in tokenizer_config.json or eos_token_id in config.json"
        )
    ends = [token for token in (eos, fallbacks[1]) if token is not None]
    return tokens[0], (ends or tokens)[0]


def _with_pad(tokenizer: Any, token: int) -> Any:
    """The tokenizer, or a copy with a token to pad with; lm-eval would add one that the embeddings have not."""
    if tokenizer.pad_token_id is not None:
        return tokenizer
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token_id = token if tokenizer.unk_token_id is None else tokenizer.unk_token_id
    return tokenizer


def _check(task: str, context: int, continuation: int, positions: int) -> None:
    """Refuse a request that lm-eval asserts away.

    Args:
        context, continuation: their tokens.

    Raises:
        UserError: one of them is empty, or the answer alone is longer than the model's positions.
    """
    if not context or not 0 < continuation <= positions:
        raise UserError(
            f"task {task}: a prompt of {context} tokens with an answer of {continuation}; expected at least one token "
            f"each, and an answer of no more than the model's {positions} positions"
        )


def shared(raw: Mapping[str, Any] | None, truncated: Mapping[str, int]) -> tuple[Any, Counter[str]]:
    """The first process's results (lm-eval gives none to the others) and everyone's truncations, everywhere."""
    keys = ("results", "group_subtasks", "n-samples", "n-shot")
    box: list[Any] = [None if raw is None else {k: raw[k] for k in keys if k in raw}]
    torch.distributed.broadcast_object_list(box, src=0)
    counts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(counts, dict(truncated))
    return box[0], sum((Counter(c) for c in counts), Counter())
