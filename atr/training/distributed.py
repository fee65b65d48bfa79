"""One run in several processes of this machine: who takes which pairs, what they exchange, how they start and end.

The pairs of a batch are divided over the processes. Each embeds its share and is given the embeddings of the whole
batch, from which all of them compute the whole loss. Each goes back through its own share, and the gradients of the
parameters are summed: loss and gradient are those of one process, but for rounding.
"""

import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import current_process, parent_process
from multiprocessing.connection import wait
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from atr import register
from atr.config import RunConfig
from atr.system import devices, hashes

if TYPE_CHECKING:
    from lightning_fabric import Fabric

PRECISIONS: dict[str, Any] = {"32": "32-true", "bf16": "bf16-mixed"}


@dataclass(frozen=True)
class Group:
    """A process, counted from 0, among `size`; alone it exchanges nothing."""

    rank: int = 0
    size: int = 1

    def own_rows(self, count: int) -> slice:
        """Which of `count` rows are this process's own: all, where there are fewer rows than processes."""
        if count < self.size:
            return slice(0, count)
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def gather(self, own: Tensor, count: int, summed: bool = False) -> Tensor:
        """All `count` rows of which each process has its `own_rows`, with gradients.

        A gradient goes back to each process's own rows, as it is where all processes compute the same from the whole;
        `summed`: as the sum over the processes, where each computes something else from it.
        """
        if self.size == 1:
            return own
        if count < self.size:
            if own.requires_grad and not summed:
                own.register_hook(lambda gradient: gradient / self.size)  # each process goes back through all rows
            return own
        return _Whole.apply(own, self, count, summed)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def largest(self, number: int) -> int:
        """The largest of the processes' numbers."""
        numbers = torch.zeros(self.size, dtype=torch.int64)
        numbers[self.rank] = number
        return int(self.sum(numbers).max())

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Give each parameter the sum of its gradients over the processes."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if self.size > 1 and gradients:
            total = self.sum(torch.cat([gradient.flatten() for gradient in gradients]))
            for gradient, part in zip(gradients, total.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(part.view_as(gradient))


ALONE = Group()


def fabric_of(config: RunConfig, device: str, loggers: Sequence[Any] = (), number: int = 0) -> "Fabric":
    """Lightning Fabric for one device, of several GPUs that of this number, at the config's precision.

    It is one process of our own to Lightning, also within a job of Slurm, whose tasks it would take for its own.
    """
    from lightning_fabric import Fabric  # brings PyTorch's compiler: a second that reading results need not wait for
    from lightning_fabric.plugins.environments import LightningEnvironment

    chips = [number] if device == "cuda" else 1
    precision, alone = PRECISIONS[config.precision], LightningEnvironment()
    return Fabric(accelerator=device, devices=chips, precision=precision, plugins=[alone], loggers=list(loggers))


class _Whole(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, group: Group, count: int, summed: bool) -> Tensor:
        ctx.group, ctx.count, ctx.summed = group, count, summed
        rows = own.new_zeros(count, *own.shape[1:])
        rows[group.own_rows(count)] = own
        return group.sum(rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradients[0]
        if ctx.summed:
            gradient = ctx.group.sum(gradient.clone(memory_format=torch.contiguous_format))
        return gradient[ctx.group.own_rows(ctx.count)], None, None, None


class _Elsewhere(Exception):
    """The traceback of another process."""


def check(processes: int, device: str, batch_size: int) -> None:
    """ValueError: so many processes cannot share the batches, or this machine's GPUs. RuntimeError: a script that they
    all would run again from its top.
    """
    if not isinstance(processes, int) or isinstance(processes, bool) or processes < 1:
        raise ValueError(f"processes: {processes!r} is not a whole number of 1 or more")
    if processes > batch_size:
        raise ValueError(f"processes: {processes} for a batch_size of {batch_size}; each needs a pair")
    if device == "cuda" and processes > torch.cuda.device_count():
        raise ValueError(f"processes: {processes}, a GPU each, but PyTorch sees {torch.cuda.device_count()}")
    if processes > 1 and getattr(current_process(), "_inheriting", False):
        raise RuntimeError(
            'processes: started processes run this script too; put its calls below if __name__ == "__main__":'
        )


def start(work: Callable[..., object], size: int, device: str, *arguments: Any) -> None:
    """Run `work(group, *arguments)` in `size` processes that exchange tensors, by gloo on the CPU and by nccl between
    GPUs, of which each process has one; come back when all have ended.

    `work` and its arguments are pickled. When this process ends, so do they.
    ChildProcessError: one of them failed or was killed; the others are ended, and the error says why.
    """
    context, members = devices.worker_context(), []
    with tempfile.TemporaryDirectory(prefix="atr-") as folder:
        try:
            for rank in range(size):
                surroundings = (dict(os.environ), hashes.file_hashes)
                message = (register.Extensions(), Group(rank, size), device, folder, surroundings, work, arguments)
                members.append(context.Process(target=_member, args=message, daemon=True))
                members[-1].start()
            waiting = {member.sentinel: rank for rank, member in enumerate(members)}
            while waiting:
                for sentinel in wait(list(waiting)):
                    rank = waiting.pop(sentinel)
                    members[rank].join()
                    if members[rank].exitcode:
                        ended = {other: member.exitcode for other, member in enumerate(members) if member.exitcode}
                        raise _failure(ended, size, Path(folder) / "error.txt")
        finally:
            for member in members:
                if member.is_alive():
                    member.kill()
                    member.join()


def _failure(ended: dict[int, int], size: int, error: Path) -> ChildProcessError:
    """Of processes that ended with these codes; one that was killed has not told why, but others then tell of it."""
    silent = [(rank, code) for rank, code in ended.items() if code != 1 or not error.is_file()]
    if silent:
        rank, code = silent[0]
        killed = f"was killed by signal {-code}, as when memory runs out"
        how = killed if code < 0 else f"ended with {code}, see its output"
        return ChildProcessError(f"process {rank + 1} of {size} {how}; run again to continue")
    first, text = error.read_text(encoding="utf-8").split("\n", 1)
    failure = ChildProcessError(f"process {first} of {size}: {text.strip().splitlines()[-1]}")
    failure.__cause__ = _Elsewhere(text)
    return failure


def _member(
    extensions: None,
    group: Group,
    device: str,
    folder: str,
    surroundings: tuple[dict[str, str], dict],
    work: Callable[..., object],
    arguments: tuple,
) -> None:
    environment, file_hashes = surroundings
    os.environ.update(environment)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")  # stays on this machine
    hashes.file_hashes.update(file_hashes)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt reaches the starting process too, which ends this one
    end_with_parent()
    try:
        if device == "cuda":
            torch.cuda.set_device(group.rank)
        backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
        meeting = f"file://{folder}/meeting"
        dist.init_process_group(backend, init_method=meeting, rank=group.rank, world_size=group.size)
        work(group, *arguments)
        dist.destroy_process_group()
    except Exception:
        with suppress(OSError):  # a full disk
            _leave_error(traceback.format_exc(), group.rank, Path(folder))
        os._exit(1)  # at once: the others wait for this one


def _leave_error(error: str, rank: int, folder: Path) -> None:
    """Leave the first error, which is the cause of further ones, in error.txt."""
    own = folder / f"error {rank}"
    own.write_text(f"{rank + 1}\n{error}", encoding="utf-8", errors="backslashreplace")
    with suppress(FileExistsError):
        os.link(own, folder / "error.txt")


def end_with_parent() -> None:
    """From now on this process ends when the one that started it does, even by SIGKILL."""
    starter = parent_process()
    assert starter is not None

    def follow() -> None:
        starter.join()
        os._exit(1)

    Thread(target=follow, daemon=True).start()


def norms(network: nn.Module) -> list[_BatchNorm]:
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]


def synchronise(network: nn.Module, group: Group) -> None:
    """Let the batch-norms of a network take their statistics, in training, from the inputs of all processes."""
    if group.size > 1:
        for norm in norms(network):
            norm.forward = partial(_normalise_together, norm, group)  # type: ignore[method-assign]


def _normalise_together(norm: _BatchNorm, group: Group, x: Tensor) -> Tensor:
    """x (N, C, …), of which each process has some rows, normalised by the mean and variance of all rows, by channel."""
    if not norm.training:
        return type(norm).forward(norm, x)
    others = [dim for dim in range(x.ndim) if dim != 1]
    var, mean = torch.var_mean(x.float(), others, correction=0)
    own = torch.cat([mean, var, mean.new_tensor([x.numel() // x.shape[1]])])
    rows = group.gather(own[None], group.size, summed=True)
    means, variances, counts = rows.split([len(mean), len(mean), 1], 1)
    count = counts.sum()
    mean = (counts * means).sum(0) / count
    var = (counts * (variances + (means - mean).square())).sum(0) / count
    if norm.running_mean is not None and norm.running_var is not None:
        assert norm.momentum is not None  # no encoder averages over all batches that there were
        with torch.no_grad():
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked += 1
            norm.running_mean.lerp_(mean, norm.momentum)
            norm.running_var.lerp_(var * count / (count - 1), norm.momentum)
    scale = (var + norm.eps).rsqrt()
    if norm.affine:
        scale = scale * norm.weight
    shift = -mean * scale + (norm.bias if norm.affine else 0)
    shape = [-1 if dim == 1 else 1 for dim in range(x.ndim)]
    return (x * scale.view(shape) + shift.view(shape)).to(x.dtype)
