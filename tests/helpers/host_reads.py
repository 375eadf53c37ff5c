"""Refuse every operation on tensors after which the host would have to wait for the device.

The mode sees every operation that reaches PyTorch's dispatcher. It cannot see `tolist` on a CPU; CUDA's own check,
where there is a device, can.
"""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

READ_BACK = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal", "is_nonzero")


class NoHostReads(TorchDispatchMode):
    """Fail at operations that read values back, or whose result's shape depends on values."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = func.__name__.split(".")[0]
        assert name not in READ_BACK, f"{name} reads values back"
        if name in ("index", "index_put", "index_put_"):
            assert not any(one is not None and one.dtype == torch.bool for one in args[1]), "a mask as an index"
        return func(*args, **(kwargs or {}))
