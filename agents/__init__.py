"""Students: they know tensors and a Spec, never a game, never a tutor."""

from agents.base import Agent
from agents.dqn import DQN, DQNConfig

__all__ = ["AGENTS", "Agent", "DQNConfig"]

AGENTS = {"dqn": (DQN, DQNConfig)}  # each student with its hyper-parameters
