"""The names of dtypes: ours in settings and run directories, torch's, transformers' and vLLM's wherever one is read."""

__all__ = ["TORCH_NAMES", "short_name"]

TORCH_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""Our name → torch's."""

_SHORT_NAMES = {**{theirs: ours for ours, theirs in TORCH_NAMES.items()}, "float": "fp32", "half": "fp16"}


def short_name(name: str) -> str:
    """Our name of a dtype (`torch.float16`, `float16`, `half` → `fp16`); what is none stays as it is."""
    plain = name.lower().removeprefix("torch.")
    return _SHORT_NAMES.get(plain, plain)
