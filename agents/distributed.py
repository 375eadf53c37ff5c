"""Several processes that train one student: `torchrun --nproc_per_node=K train.py …`.

Each rank steps its share of the env copies and learns from them; gradients are averaged, so all ranks hold the same
weights. Without torchrun there is one rank, and these functions return what they are given.
"""

import os
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

BROADCAST_TIMEOUT = timedelta(days=1)  # rank 0 may start a server of a large model while the others wait
cpu_group: Any = None  # the group in which ranks exchange objects without their devices


def init(device: str) -> str:
    """Join the other ranks if torchrun started this process, and return this rank's device.

    NCCL connects CUDA devices, one a rank; gloo connects CPUs.

    Raises:
        ValueError: this machine has fewer GPUs than ranks.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return device
    if device.startswith("cuda"):
        number, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if number >= there:
            raise ValueError(f"process {number} has no GPU of its own: there are {there}; or pass --device cpu")
        device = f"cuda:{number}"
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
        global cpu_group
        cpu_group = dist.new_group(backend="gloo", timeout=BROADCAST_TIMEOUT)
    return device


def shutdown() -> None:
    """Leave the other ranks."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """Return this process's rank."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Return the sum of all ranks' tensors, which must have one shape. The argument is overwritten."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def all_reduce_mean(tensor: Tensor) -> Tensor:
    """Return the mean of all ranks' tensors, as `all_reduce_sum` does."""
    return all_reduce_sum(tensor) / world_size()


def shard_size(whole: int) -> int:
    """Return this rank's part of a whole number; the parts of all ranks add up to it."""
    return whole * (rank() + 1) // world_size() - whole * rank() // world_size()


def all_gather_sum(counts: Mapping[str, float]) -> dict[str, float]:
    """Return the sums of all ranks' counts by name, which some of them may lack; no device waits."""
    boxes: list[Any] = [counts] * world_size()
    if world_size() > 1:
        dist.all_gather_object(boxes, dict(counts), group=cpu_group)
    return {name: sum(box.get(name, 0) for box in boxes) for box in boxes for name in box}


def broadcast_object(something: Any) -> Any:
    """Return rank 0's `something`; all ranks wait for it, but not their devices."""
    box = [something]
    if world_size() > 1:
        dist.broadcast_object_list(box, group=cpu_group)
    return box[0]
