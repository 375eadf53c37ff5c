"""Students: they know tensors and a Spec, never a game, never a tutor."""

from agents.a2c import A2C, A2CConfig
from agents.base import Agent
from agents.dqn import DQN, DQNConfig
from agents.ppo import PPO, PPOConfig

__all__ = ["AGENTS", "A2CConfig", "Agent", "DQNConfig", "PPOConfig"]

AGENTS = {"dqn": (DQN, DQNConfig), "ppo": (PPO, PPOConfig), "a2c": (A2C, A2CConfig)}  # with their hyper-parameters
