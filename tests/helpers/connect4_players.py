"""Players of Connect Four whose policies are known."""

import torch

from envs.rng import sample_legal


class Stacker:
    """Drops into one column until it is full: often enough nobody stops it."""

    def greedy(self, obs: torch.Tensor, action_mask: torch.Tensor) -> torch.Tensor:
        return torch.where(action_mask[:, 3], 3, action_mask.long().argmax(1))


class Arbitrary:
    """Drops anywhere, as the discs lie."""

    def greedy(self, obs: torch.Tensor, action_mask: torch.Tensor) -> torch.Tensor:
        weights = torch.arange(obs[0].numel(), device=obs.device).sin()
        return sample_legal(action_mask, (obs.flatten(1) * weights).sum(1) * 7.7 % 1)
