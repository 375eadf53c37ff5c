"""Who is worth asking about."""

import torch
from torch import Tensor


def consult_probability(step: int, theta: int, p_init: float = 1.0, p_final: float = 0.1) -> float:
    """Return P after `step` env steps: linear from `p_init` to `p_final` over `theta` steps, then constant.

    Source: Toral & Lazebnik 2025, arXiv:2509.08329, as summarised: P = P_init - (step / theta)(P_init -
    P_final). Their theta is not known; ours is a setting.
    """
    progress = min(step / theta, 1.0) if theta > 0 else 1.0
    return p_init - progress * (p_init - p_final)


def by_chance(probability: float, luck: Tensor) -> Tensor:
    """Ask with `probability`, for each row on its own. (N,) bool for luck (N,) in [0, 1)."""
    return luck < torch.tensor(probability, device=luck.device)
