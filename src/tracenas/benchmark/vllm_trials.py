"""Run by a Python that has vLLM: how long a checkpoint takes in it. Imports nothing of tracenas.

Answers a line of JSON on standard input by one on standard output, after a first line that says what is there:

    {"model": DIRECTORY, "load": {"dtype": "bfloat16", …}, "seed": 0,
     "runs": [{"batch": 1, "prompt": 512, "before": 504, "new_tokens": 16}]}
    → {"runs": [{"prefill": 0.8, "decode": 0.2}], "bytes": {}}

The first request loads its model, which stays; the others are of the same one. Prefill is the time until every sequence
has its first token, decode that of the others, in vLLM's own schedule, without its cache of prefixes.
"""

import json
import os
import random
import sys
import time
from typing import Any

__all__ = ["main"]

_QUIET = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}


class Model:
    """A checkpoint in vLLM.

    Args:
        vllm: the module.
        request: the first one.
    """

    def __init__(self, vllm: Any, request: dict[str, Any]) -> None:
        load = {"skip_tokenizer_init": True, "enable_prefix_caching": False, **request["load"]}
        self._vllm, self._llm = vllm, vllm.LLM(request["model"], seed=request["seed"], **load)
        self._vocabulary = self._llm.model_config.get_vocab_size()
        self._asked = 0

    def trial(self, run: dict[str, int], draw: random.Random) -> dict[str, float]:
        """Seconds of a run."""
        batch, prompt, before, new = (run[name] for name in ("batch", "prompt", "before", "new_tokens"))
        first, behind = self._generate(batch, prompt, new if before == prompt else 1, draw)
        if before != prompt:
            _, behind = self._generate(batch, before, new, draw)
        return {"prefill": first, "decode": behind}

    def _generate(self, batch: int, prompt: int, tokens: int, draw: random.Random) -> tuple[float, float]:
        """Seconds until all sequences have begun, and from there until all have ended."""
        how = self._vllm.SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        engine, waiting = self._llm.llm_engine, set[str]()
        prompts = [[draw.randrange(self._vocabulary) for _ in range(prompt)] for _ in range(batch)]
        began = time.perf_counter()
        for ids in prompts:
            self._asked += 1
            waiting.add(str(self._asked))
            engine.add_request(str(self._asked), {"prompt_token_ids": ids}, how)
        first = 0.0
        while engine.has_unfinished_requests():
            started = {output.request_id for output in engine.step() if output.outputs[0].token_ids}
            if waiting and not (waiting := waiting - started):
                first = time.perf_counter() - began
        return first, time.perf_counter() - began - first


def main() -> None:
    """Answer until standard input ends."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what else is printed is not an answer
    import torch
    import vllm  # type: ignore[import-not-found,unused-ignore]

    cuda = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if cuda else "cpu"
    facts = {"vllm": vllm.__version__, "device": device, "threads": torch.get_num_threads()}
    print(json.dumps(facts), file=answers, flush=True)
    model = None
    for line in sys.stdin:
        request = json.loads(line)
        model = model or Model(vllm, request)
        draw = random.Random(request["seed"])
        runs = [model.trial(run, draw) for run in request["runs"]]
        print(json.dumps({"runs": runs, "bytes": {}}), file=answers, flush=True)


if __name__ == "__main__":
    main()
