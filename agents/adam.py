"""Adam (Kingma & Ba 2015, arXiv:1412.6980, algorithm 1), from the loss to the new weights in one function of tensors.

PyTorch's own cannot be part of a compiled update, which then falls into three pieces. All gradients are one vector
here: one norm, one message to the other ranks, and each line of the paper once.
"""

from typing import Any

import torch
from torch import Tensor, nn

from agents.distributed import all_reduce_mean

BETA1, BETA2 = 0.9, 0.999
EPSILON = 1e-8


def learning_rate_at(step: Tensor, learning_rate: float, anneal: bool, total_steps: int) -> Tensor:
    """Return the learning rate after `step` env steps (0-d): linear down to 0 at the end of the run, or constant."""
    left = (1 - step / total_steps).clamp(min=0) if anneal else torch.ones_like(step, dtype=torch.float32)
    return learning_rate * left


class Adam:
    """Adam with the gradient's norm clipped.

    Args:
        network: whose weights are learned.
        max_grad_norm: the largest norm of the gradient of all weights.
    """

    def __init__(self, network: nn.Module, max_grad_norm: float) -> None:
        self.parameters = list(network.parameters())
        self.max_grad_norm = max_grad_norm
        self.sizes = [parameter.numel() for parameter in self.parameters]
        device = self.parameters[0].device
        self.exp_avg = torch.zeros(sum(self.sizes), device=device)
        self.exp_avg_sq = torch.zeros(sum(self.sizes), device=device)
        self.steps = torch.zeros((), device=device)

    def step(self, loss: Tensor, learning_rate: Tensor | float) -> Tensor:
        """Go one step down the loss, the mean over all ranks, and return the gradient's norm before clipping."""
        grads = torch.autograd.grad(loss, self.parameters)
        with torch.no_grad():
            grad = all_reduce_mean(torch.cat([one.flatten() for one in grads]))
            norm = grad.norm()
            grad = grad * (self.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
            self.steps += 1
            self.exp_avg.lerp_(grad, 1 - BETA1)
            self.exp_avg_sq.lerp_(grad * grad, 1 - BETA2)
            mean = self.exp_avg / (1 - BETA1**self.steps)
            square = self.exp_avg_sq / (1 - BETA2**self.steps)
            update = learning_rate * mean / (square.sqrt() + EPSILON)
            for parameter, part in zip(self.parameters, update.split(self.sizes), strict=True):
                parameter.sub_(part.view_as(parameter))
        return norm

    def state_dict(self) -> dict[str, Tensor]:
        """Return the moving averages of the gradient and its square, and the number of steps."""
        return {"exp_avg": self.exp_avg, "exp_avg_sq": self.exp_avg_sq, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])
