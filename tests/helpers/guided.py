"""Students with a method of guidance, whose networks have learned to use extra inputs."""

from dataclasses import replace
from typing import Any

import torch

import envs
from agents.guidance import GuidanceConfig
from agents.on_policy import OnPolicy
from envs.base import Env, Step
from tests.helpers.students import uniforms
from training.config import default_config, make_agent, make_env
from tutors import TutorConfig


def guided_student(algo: str, env: Env, guidance: str) -> Any:
    """Return a student of Connect Four with a method of guidance."""
    config = replace(default_config(algo, "connect4"), num_envs=env.num_envs, tutoring=TutorConfig("scripted"))
    return make_agent(replace(config, guiding=GuidanceConfig(guidance)), env)


def connect4(num_envs: int) -> Env:
    return envs.make("connect4", num_envs, 1)


def guided_rollout(
    guidance: str, game: str, env_kwargs: tuple[str, ...] = (), **settings: Any
) -> tuple[OnPolicy, Step]:
    """Return a PPO student whose rollout is full of advised transitions, and the step that follows."""
    config = default_config("ppo", game)
    agent_config = replace(config.agent, num_steps=32, network="mlp", **settings)
    options = {"guiding": GuidanceConfig(guidance), "tutoring": TutorConfig("scripted")}
    config = replace(config, agent=agent_config, num_envs=8, env_kwargs=env_kwargs, **options)
    env = make_env(config, "cpu")
    agent = make_agent(config, env)
    for layer in agent.network.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.weight.data += 0.1 * uniforms(7, *layer.weight.shape)
    step = env.reset()
    for at in range(32):
        decision = agent.act(step.obs, step.action_mask)
        advice = step.action_mask * uniforms(at, *step.action_mask.shape)
        advice = advice / advice.sum(1, keepdim=True)
        if agent.guidance.uses_advice_as_input:
            decision = agent.decide(step.obs, step.action_mask, advice)
        u = uniforms(100 + at, 8, step.action_mask.shape[1] + 1)
        action, followed = agent.guidance.act(decision, advice, step.action_mask, u)
        next_step = env.step(action)
        reward, bonus = agent.guidance.reward(next_step, action, advice)
        agent.observe(step, decision, action, next_step, reward, advice, followed, bonus)
        step = next_step.as_initial()
    return agent, step
