"""Making functions of tensors fast, in one place: eager, compile or graph."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch.utils import _pytree as pytree

Mode = Literal["eager", "compile", "graph"]
MODES: tuple[Mode, ...] = ("eager", "compile", "graph")
WARMUP_CALLS = 3  # calls of a compiled function before it is recorded
# Dynamo has checked the arguments of a compiled function; checking them again takes a tenth of a step
INDUCTOR_OPTIONS: dict[str, Any] = {"size_asserts": False, "alignment_asserts": False}


def compile_methods(mode: str, owner: object, *names: str) -> None:
    """Replace methods of `owner` by faster ones that do the same."""
    for name in names:
        setattr(owner, name, compile_function(getattr(owner, name), mode))


def compile_function(function: Callable[..., Any], mode: str) -> Callable[..., Any]:
    """Return `function` as it is, compiled, or compiled and recorded as a CUDA graph.

    It must be a function of tensors that writes only into tensors which never move, and decides nothing by their
    values.
    """
    if mode == "eager":
        return function
    torch._dynamo.config.trace_autograd_ops = True  # so that an update is one piece, from the loss to the weights
    compiled = torch.compile(function, dynamic=False, options=INDUCTOR_OPTIONS)
    return compiled if mode == "compile" else CUDAGraph(compiled)


class CUDAGraph:
    """A function that is recorded once and replayed: all its kernels cost one launch.

    The first calls run it as it is. Its arguments are tensors, or made of them, and are copied to buffers of their own;
    what a call returns is overwritten by the next one. Whatever Python did in the recorded call is not done again.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.calls = 0
        self.inputs: list[torch.Tensor] = []

    def __call__(self, *args: Any) -> Any:
        self.calls += 1
        if self.calls <= WARMUP_CALLS:
            return self.function(*args)
        leaves = pytree.tree_leaves(args)
        if self.calls == WARMUP_CALLS + 1:
            self._record(args)
        for buffer, leaf in zip(self.inputs, leaves, strict=True):
            buffer.copy_(leaf)
        self.replay()
        return self.outputs

    def _record(self, args: Any) -> None:
        """Record one call, which does not run it."""
        leaves, shape = pytree.tree_flatten(args)
        # Dynamo guards which arguments are the same tensor: the same must hold of their buffers
        buffers = {id(leaf): leaf.clone() for leaf in leaves}
        self.inputs = [buffers[id(leaf)] for leaf in leaves]
        self.replay, self.outputs = record(lambda: self.function(*pytree.tree_unflatten(self.inputs, shape)))


def record(function: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """Return (a function that does on the device what `work` does there, the tensors that `work` returned).

    Nothing is done yet; each call of the function overwrites those tensors.
    """
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # another thread may wait for the device meanwhile
        outputs = function()
    return graph.replay, outputs
