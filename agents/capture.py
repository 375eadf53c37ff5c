"""Making functions of tensors fast, in one place: eager, compile or graph."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree

MODES = ("eager", "compile", "graph")
WARM_UP = 3  # calls of a compiled function before it is recorded


def accelerate(mode: str, owner: object, *names: str) -> None:
    """Replace methods of `owner` by faster ones that do the same."""
    for name in names:
        setattr(owner, name, capture(getattr(owner, name), mode))


def capture(function: Callable[..., Any], mode: str) -> Callable[..., Any]:
    """Return `function` as it is, compiled, or compiled and recorded as a CUDA graph.

    It must be a function of tensors that writes only into tensors which never move, and decides nothing by their
    values.
    """
    if mode == "eager":
        return function
    torch._dynamo.config.trace_autograd_ops = True  # so that an update is one piece, from the loss to the weights
    compiled = torch.compile(function, dynamic=False)
    return compiled if mode == "compile" else Graph(compiled)


class Graph:
    """A function that is recorded once and replayed: all its kernels cost one launch.

    The first calls run it as it is. What a call returns is written over by the next one.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.calls = function, 0

    def __call__(self, *args: Any) -> Any:
        self.calls += 1
        if self.calls <= WARM_UP:
            return self.function(*args)
        leaves = pytree.tree_leaves(args)
        if self.calls == WARM_UP + 1:
            self._record(args)
        for buffer, leaf in zip(self.inputs, leaves, strict=True):
            buffer.copy_(leaf)
        self.graph.replay()
        return self.outputs

    def _record(self, args: Any) -> None:
        """Record one call, which does not run it."""
        leaves, shape = pytree.tree_flatten(args)
        self.inputs = [leaf.clone() for leaf in leaves]
        self.graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(self.graph):
            self.outputs = self.function(*pytree.tree_unflatten(self.inputs, shape))
