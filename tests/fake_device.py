"""Large models without their memory: operations on shapes alone, what of them is alive, and what a GPU would wait for.

Fake tensors of a CUDA device need a build of torch with CUDA, so they are the CPU's here, in pieces as large as CUDA's.
What would be in host memory and what on the device is one sum.
"""

import gc
import traceback
import weakref
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
import transformers
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tracenas.families import Block, Options, config_family, present
from tracenas.models.functionals.chunk_sizes import CHUNK_ELEMENTS
from tracenas.models.functionals.sampled_labels import _ELEMENTS
from tracenas.models.functionals.tiles import TILED
from tracenas.models.surgery.ordering import Ordering
from tracenas.models.surgery.streaming import stream_blocks
from tracenas.models.surgery.supernet import Supernet
from tracenas.saliency import sinks
from tracenas.space.constraints import Budget
from tracenas.space.search_space import SearchSpace

GPU = "meta"
"""The device of `host_and_gpu`."""
LLAMA_8B = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
LLAMA_70B = {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64}


class Alive(TorchDispatchMode):
    """Bytes of all storages that are alive, their peak, and what needs a number on the host, by line of our code."""

    def __init__(self, kind: str | None = None) -> None:
        super().__init__()
        self.kind = kind
        """Of the devices that are counted; None: all."""
        self.now = self.peak = 0
        self.waits: Counter[str] = Counter()
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            self.wait()
            return (1.0 if args[0].is_floating_point() else 1) if args[0].dtype != torch.bool else True
        if func is torch.ops.aten.add_.Tensor:  # the one operation that lets `meta` and another device meet
            devices = {part.device for part in args if isinstance(part, Tensor) and part.dim()}
            assert len(devices) < 2, f"{args[0].device} += {args[1].device}"
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and self.kind in (None, leaf.device.type):
                self._see(leaf.untyped_storage())
        return out

    def wait(self) -> None:
        """Something on the host needs a result."""
        ours = [f for f in traceback.extract_stack() if "/tracenas/" in f.filename]
        self.waits[f"{ours[-1].filename.rpartition('/tracenas/')[2]}:{ours[-1].lineno}"] += 1

    def begin(self) -> None:
        """Forget the peak and the waits."""
        gc.collect()
        self.peak = self.now
        self.waits.clear()

    def _see(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known[key] = size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.now -= self._known.pop(key)


class Large:
    """A model of Llama's shape, of which nothing is in memory.

    Args:
        shape: of its config.
        layers: fewer than the shape's.
        share: of the parameters, the budget.
    """

    def __init__(self, shape: dict[str, int], *, layers: int | None = None, share: float = 0.6) -> None:
        changed = {"vocab_size": 128256, **shape, "num_hidden_layers": layers or shape["num_hidden_layers"]}
        config = transformers.LlamaConfig(
            **changed, num_key_value_heads=8, max_position_embeddings=8192, tie_word_embeddings=False
        )
        with torch.device("meta"):
            self.model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        self.model.eval().requires_grad_(False)
        described = config.to_dict()
        family = config_family(described)
        self.blocks: tuple[Block, ...] = family.blocks(described, Options())
        specs, outside = tuple(block.spec for block in self.blocks), family.outside(described)
        whole = SearchSpace(specs, outside)
        self.parameters = whole.parameters(whole.base)
        self.space = SearchSpace(specs, outside, Budget(int(share * self.parameters), 0.02))
        self.hidden, self.vocabulary = config.hidden_size, config.vocab_size
        alike = {key: torch.zeros(sub.spec.units, dtype=torch.float64) for key, sub in present(self.blocks)}
        self._ordering = Ordering.from_saliency(self.blocks, alike)

    def supernet(self, streamed_to: str | None = None) -> Supernet:
        """On the device, whose mode is on.

        Args:
            streamed_to: another device, that blocks are copied to one after the other.
        """
        self.model.to_empty(device="cpu")
        if streamed_to is not None:
            stream_blocks(self.model, [block.path for block in self.blocks], torch.device(streamed_to), ahead=True)
        return Supernet(self.model, self.blocks, self._ordering)

    def tokens(self, count: int, length: int) -> Tensor:
        """int64 [count, length]."""
        return torch.zeros(count, length, dtype=torch.int64)


@contextmanager
def host_and_gpu() -> Iterator[Alive]:
    """Everything in the block is computed in shapes alone, on a CPU and on a device, whose bytes are counted.

    What mixes the two fails. The device is called `meta`, as torch without CUDA has no other that can do everything;
    pieces on it are as large as on CUDA.
    """
    alive = Alive(GPU)
    with ExitStack() as stack:
        for sizes in (CHUNK_ELEMENTS, _ELEMENTS, sinks.CHUNK_ELEMENTS):
            stack.enter_context(patch.dict(sizes, {GPU: sizes["cuda"]}))
        stack.enter_context(patch("tracenas.models.surgery.streaming.ThreadPoolExecutor", _AtOnce))
        stack.enter_context(patch.object(FakeTensor, "tolist", _ones))
        stack.enter_context(patch("torch.nn.functional.scaled_dot_product_attention", _attention))
        stack.enter_context(patch("torch.autocast", lambda *_: nullcontext()))  # which does not know `meta`
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        yield stack.enter_context(alive)


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
    """What attention of CUDA's takes, which has no matrix of scores."""
    assert query.device == key.device == value.device
    return query.clone()  # differentiable


class _AtOnce:
    """An executor of this thread: modes of tensors are a thread's own."""

    def __init__(self, *_: Any) -> None: ...

    def submit(self, work: Any, *args: Any) -> "Future[Any]":
        """Done already."""
        done: Future[Any] = Future()
        done.set_result(work(*args))
        return done


def _ones(tensor: Tensor) -> Any:
    rows: Any = [1.0] * tensor.shape[-1]
    for size in reversed(tensor.shape[:-1]):
        rows = [rows] * size
    return rows


@contextmanager
def fake_device() -> Iterator[Alive]:
    """Everything in the block is computed in shapes alone, in pieces as on CUDA."""
    alive = Alive()
    moved = Tensor.cpu

    def cpu(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        alive.wait()
        return moved(tensor, *args, **kwargs)

    def tolist(tensor: Tensor) -> Any:
        alive.wait()
        return _ones(tensor)

    with ExitStack() as stack:
        stack.enter_context(patch.dict(CHUNK_ELEMENTS, cpu=CHUNK_ELEMENTS["cuda"]))
        stack.enter_context(patch("tracenas.models.functionals.loss.TILED", {"cpu"} if "cuda" in TILED else set()))
        stack.enter_context(patch.object(Tensor, "cpu", cpu))
        stack.enter_context(patch.object(FakeTensor, "tolist", tolist))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        yield stack.enter_context(alive)
