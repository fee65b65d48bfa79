"""Batch-norm where a batch is spread over processes, or embedded twice."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from atr.distributed import Group


def norms(network: nn.Module) -> list[_BatchNorm]:
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]


def synchronise(network: nn.Module, group: Group) -> None:
    """Let the batch-norms of a network take their statistics, in training, from the inputs of all processes."""
    if group.size > 1:
        for norm in norms(network):
            norm.forward = partial(_synchronised, norm, group)  # type: ignore[method-assign]


def _synchronised(norm: _BatchNorm, group: Group, x: Tensor) -> Tensor:
    """x (N, C, …), of which each process has some rows, normalised by the mean and variance of all rows, by channel."""
    if not norm.training:
        return type(norm).forward(norm, x)
    others = [dim for dim in range(x.ndim) if dim != 1]
    var, mean = torch.var_mean(x.float(), others, correction=0)
    own = torch.cat([mean, var, mean.new_tensor([x.numel() // x.shape[1]])])
    rows = group.whole(own[None], group.size, summed=True)
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


@contextmanager
def unmoved(network: nn.Module) -> Iterator[None]:
    """Running statistics stay as they are, whatever a network in training mode is given."""
    before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms(network)]
    for norm, _, _ in before:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, momentum, tracked in before:
            norm.momentum, norm.num_batches_tracked = momentum, tracked
