"""An opponent that is the student of some updates ago."""

import torch
from torch import Tensor

from agents.base import Agent, frozen_copy
from envs.opponents import SelfPlay

Weights = dict[str, Tensor]


class SelfPlayOpponent:
    """Keeps a self-play opponent up to date; until the first refresh it plays at random.

    The opponent's weights and its share of random moves are written in place, into tensors that a captured step knows.

    Args:
        opponent: of the env.
        agent: the student.
        device: where the student lives.
    """

    def __init__(self, opponent: SelfPlay, agent: Agent, device: str | torch.device) -> None:
        self.opponent = opponent
        self.agent = agent
        self.frozen_copy = frozen_copy(agent)
        self.epsilon = torch.ones((), device=device)
        self.weights: Weights | None = None  # None before the first refresh
        opponent.policy = self.frozen_copy.greedy
        opponent.epsilon = self.epsilon

    def refresh(self, updates: int) -> None:
        """Make the opponent what the student is now, if that is due after so many updates."""
        if updates % self.opponent.refresh == 0:
            self.load_state_dict(self.agent.network.state_dict())

    def state_dict(self) -> Weights | None:
        """Return the opponent's weights; None before the first refresh."""
        return self.weights

    def load_state_dict(self, weights: Weights | None) -> None:
        """Take over what `state_dict` returned."""
        if weights is not None:
            self.frozen_copy.network.load_state_dict(weights)
            self.epsilon.fill_(SelfPlay.EPSILON)
            self.weights = self.frozen_copy.network.state_dict()
