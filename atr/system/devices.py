"""What makes a GPU faster without changing a result by more than its noise: switches that `ATR_SWITCHES` sets.

`precision` is no switch but a field of the config, since bf16 is part of what a run is. On a CPU all of them are off,
where a run's numbers are the same to the bit on every machine of a kind.
"""

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import islice
from typing import Any, TypeVar


@dataclass(frozen=True)
class Switches:
    """
    tf32           float32 products and convolutions of a GPU round their factors to TF32's 10 bits
    channels_last  images are kept with their channels last, as the GPU's kernels for convolutions want them
    fused          the optimiser's step is one kernel; on a CPU too
    compiled       encoders go through torch.compile, which takes minutes before the first step
    """

    tf32: bool = False
    channels_last: bool = False
    fused: bool = True
    compiled: bool = False

    @contextmanager
    def on(self) -> Iterator[None]:
        """Set what PyTorch keeps for the whole process, and set it back."""
        import torch

        before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        torch.set_float32_matmul_precision("high" if self.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = self.tf32
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before[0])
            torch.backends.cudnn.allow_tf32 = before[1]

    def apply(self, network: Any) -> Any:
        """The network with its weights laid out, and its encoders compiled, as the switches say; its parameters keep
        their names.
        """
        import torch

        if self.channels_last and network.audio_encoder is not None:
            network.audio_encoder.to(memory_format=torch.channels_last)
        for encoder in (network.audio_encoder, network.text_encoder) if self.compiled else ():
            if isinstance(encoder, torch.nn.Module):
                encoder.compile(dynamic=True)
        return network


CPU = Switches()
GPU = Switches(tf32=True, channels_last=True)


def switches_for(device: str) -> Switches:
    """Those of the device, changed by ATR_SWITCHES: names to switch on, with "no-" before it to switch off, as in
    "compiled,no-tf32". ValueError: an unknown name.
    """
    values = {switch.name: getattr(GPU if device == "cuda" else CPU, switch.name) for switch in fields(Switches)}
    for word in os.environ.get("ATR_SWITCHES", "").replace(",", " ").split():
        name = word.removeprefix("no-")
        if name not in values:
            names = ", ".join(values)
            raise ValueError(f"ATR_SWITCHES: unknown {name!r}; known: {names}, each also with no- before it")
        values[name] = not word.startswith("no-")
    return Switches(**values)


Item = TypeVar("Item")
Result = TypeVar("Result")
TRANSFORMERS = ("transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto")


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Run PyTorch on `number` threads. The number changes the last bits of sums, so it is always set on purpose."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def worker_context() -> Any:
    """Fork from a clean server: PyTorch is imported once, and no thread pool is forked half-way."""
    # Large pages, where Linux grants them on demand: with D 2,048 an epoch takes an eighth to a quarter less time.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    context = multiprocessing.get_context("forkserver")
    # These take seconds to import, which the first fit would do: once here instead of in every process.
    bert = "transformers.models.bert.modeling_bert"
    context.set_forkserver_preload(["atr.training.fit", "lightning_fabric", bert, *TRANSFORMERS])
    return context


def prefetch(function: Callable[[Item], Result], items: Iterable[Item], least: int = 0) -> Iterator[Result]:
    """`map(function, items)` on a thread for each core, never more than four items a thread, or `least` in all, ahead.

    Threads, because decoding and resampling let go of the interpreter's lock and nothing has to be sent.
    """
    workers, items = os.cpu_count() or 1, iter(items)
    pool = ThreadPoolExecutor(workers)
    try:
        underway = deque(pool.submit(function, item) for item in islice(items, max(4 * workers, least)))
        while underway:
            yield underway.popleft().result()
            underway.extend(pool.submit(function, item) for item in islice(items, 1))
    finally:
        pool.shutdown(cancel_futures=True)


def check_name(device: str) -> None:
    """ValueError: not "auto", "cpu" or "cuda"."""
    if device == "mps":
        words = "is not supported: no result was checked on Apple's GPUs, which have no float64; use 'cpu'"
        raise ValueError(f"device: 'mps' {words}")
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device: unknown {device!r}; known: 'auto', 'cpu', 'cuda'")


def resolve_device(device: str = "auto") -> str:
    """ "cpu" or "cuda"; "auto" takes a GPU if there is one."""
    check_name(device)
    import torch  # after what can be said without it, as it takes seconds

    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: 'cuda' asked for, but PyTorch sees no GPU; use 'cpu' or 'auto'")
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if device == "cuda":  # the same bits each time, where CUDA offers them; to be set before its first use
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    return device
