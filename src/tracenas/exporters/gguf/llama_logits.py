"""Run by a Python that has llama-cpp-python: logits of a GGUF file, and the token ids of texts.

    python llama_logits.py '{"gguf": FILE, "ids": [1, 2], "logits": FILE, "texts": ["a text"]}'

Writes the logits, float32 [ids, vocabulary], to `logits` as they lie in memory, and prints one line of JSON. The
cache is f32 and flash attention off, so that what is left to differ is the order of sums. Imports nothing of tracenas.
"""

import json
import sys
from typing import Any

__all__ = ["main"]


def main(request: dict[str, Any]) -> dict[str, Any]:
    """The versions, the vocabulary's size and the texts' tokens; the logits are in the file."""
    import llama_cpp  # type: ignore[import-not-found,unused-ignore]
    import numpy as np

    ids = request["ids"]
    model = llama_cpp.Llama(
        model_path=request["gguf"],
        n_ctx=max(len(ids), 8),
        n_batch=max(len(ids), 8),
        n_threads=request.get("threads", 1),
        n_threads_batch=request.get("threads", 1),
        n_gpu_layers=0,
        logits_all=True,
        flash_attn=False,
        type_k=0,
        type_v=0,
        verbose=False,
    )
    model.eval(ids)
    logits = np.ascontiguousarray(model.scores[: len(ids)], dtype=np.float32)
    logits.tofile(request["logits"])
    tokens = [model.tokenize(text.encode("utf-8"), add_bos=True, special=False) for text in request["texts"]]
    return {"llama_cpp": llama_cpp.__version__, "shape": list(logits.shape), "tokens": tokens}


if __name__ == "__main__":
    print("\n" + json.dumps(main(json.loads(sys.argv[1]))))
