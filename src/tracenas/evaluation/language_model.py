"""A transformers model as lm-eval sees it: counts truncated prompts, shares questions out over processes."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

__all__ = ["language_model", "shared"]


def language_model(model: Any, tokenizer: Any, batch_size: int, shard: bool) -> Any:
    """An `HFLM` over a model in memory, with `truncated`: answers per task whose prompt lost its beginning.

    Args:
        shard: whether this process answers a share of the questions (torch.distributed is initialised).
    """
    from lm_eval.models.huggingface import HFLM

    class Counting(HFLM):  # type: ignore[misc]
        """Notes what lm-eval truncates silently."""

        truncated: Counter[str]
        _tasks: list[str]

        def loglikelihood(self, requests: Any, *args: Any, **kwargs: Any) -> Any:
            """As in lm-eval; remembers which task every request is of."""
            self._tasks = [str(request.task_name) for request in requests]
            return super().loglikelihood(requests, *args, **kwargs)

        def _loglikelihood_tokens(self, requests: Any, *args: Any, **kwargs: Any) -> Any:
            for task, (_, context, continuation) in zip(self._tasks, requests, strict=False):
                self.truncated[task] += len(context) + len(continuation) > self.max_length + 1
            return super()._loglikelihood_tokens(requests, *args, **kwargs)

    lm = Counting(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch_size)
    lm.truncated, lm._tasks = Counter(), []
    if shard:
        from accelerate import Accelerator

        # lm-eval does this itself only where it loads the model.
        lm.accelerator = Accelerator(cpu=lm.device.type == "cpu")
        lm._rank, lm._world_size = lm.accelerator.process_index, lm.accelerator.num_processes
    return lm


def shared(raw: Mapping[str, Any] | None, truncated: Mapping[str, int]) -> tuple[Any, Counter[str]]:
    """The first process's results and everyone's truncations, in every process."""
    import torch

    keys = ("results", "group_subtasks", "n-samples", "n-shot")
    box: list[Any] = [None if raw is None else {k: raw[k] for k in keys if k in raw}]
    torch.distributed.broadcast_object_list(box, src=0)
    counts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(counts, dict(truncated))
    return box[0], sum((Counter(c) for c in counts), Counter())
