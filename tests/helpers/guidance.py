"""One time step of many env copies with advice in half of them, on which every method of guidance is tried."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from agents import AGENTS
from agents.guidance import METHODS, Guidance, GuidanceConfig
from agents.policy import Decision, masked_argmax, masked_log_softmax
from envs.base import Step
from tests.helpers.students import uniforms

ROWS, ACTIONS, GAMMA = 400, 5, 0.9
PAIRS = [(name, algo) for name, method in METHODS.items() for algo in method.students]


class Case(NamedTuple):
    """What a method's hooks get in one time step."""

    decision: Decision
    advice: Tensor  # (ROWS, ACTIONS), zeros in about half of the rows; one-hot in some
    action_mask: Tensor
    u: Tensor


class Stored(NamedTuple):
    """Transitions as `Guidance.loss` and `Guidance.advantage` see them."""

    action_mask: Tensor
    action: Tensor
    advice: Tensor
    followed: Tensor


def make_case(has_policy: bool) -> Case:
    """Return a time step of ROWS env copies: random masks, scores, decisions, advice and uniforms."""
    action_mask = uniforms(1, ROWS, ACTIONS) < 0.6
    action_mask[torch.arange(ROWS), (uniforms(2, ROWS) * ACTIONS).long()] = True
    scores = uniforms(3, ROWS, ACTIONS) * 2 - 1
    if has_policy:
        scores = masked_log_softmax(2 * scores, action_mask)
    advice = (uniforms(4, ROWS, ACTIONS) ** 3) * action_mask
    certain = F.one_hot(masked_argmax(advice, action_mask), ACTIONS)
    advice = torch.where((uniforms(5, ROWS) < 0.3)[:, None], certain, advice / advice.sum(1, keepdim=True))
    has_advice = uniforms(6, ROWS) < 0.5
    greedy = masked_argmax(scores, action_mask)
    action = torch.where(uniforms(7, ROWS) < 0.5, greedy, masked_argmax(uniforms(8, ROWS, ACTIONS), action_mask))
    decision = Decision(action, greedy, scores, uniforms(9, ROWS))
    return Case(decision, advice * has_advice[:, None], action_mask, uniforms(10, ROWS, ACTIONS + 1))


def make_method(name: str, algo: str, strength: float = 0.7, reward_scale: float = 0.2) -> Guidance:
    """Return a method for that kind of student, at a strength."""
    config = GuidanceConfig(name, reward_scale=reward_scale)
    method = config.make(algo, AGENTS[algo][0].has_policy, "cpu", ROWS, GAMMA)
    method.strength.fill_(strength)
    return method


def act(name: str, algo: str, strength: float = 0.7) -> tuple[Guidance, Case, Stored]:
    """Return a method, a time step, and what is stored of it after the method has acted."""
    method = make_method(name, algo, strength)
    case = make_case(method.has_policy)
    action, followed = method.act(case.decision, case.advice, case.action_mask, case.u)
    return method, case, Stored(case.action_mask, action, case.advice, followed)


def make_next_step(seed: int) -> Step:
    """Return a step with random rewards and ends; nothing else of it is read."""
    end, unused = uniforms(20 + seed, ROWS), torch.zeros(ROWS)
    ends = (end < 0.2, (end > 0.2) & (end < 0.4))
    return Step(unused, unused, uniforms(30 + seed, ROWS), *ends, unused, unused, {}, {})


def sampled_shares(name: str) -> tuple[list[float], list[float], Tensor, Tensor]:
    """Return of a method at strength 0.6: shares of actions where followed, its policy there, actions, followed.

    One state, in 20,000 env copies. Three actions are legal. The tutor's probabilities are 0.6, 0.39 and 0.01; the
    student's own decision is action 0.
    """
    num_envs = 20_000
    method = GuidanceConfig(name).make("ppo", True, "cpu", num_envs, 0.9)
    method.strength.fill_(0.6)
    action_mask = torch.tensor([[True, True, True, False]]).expand(num_envs, -1)
    scores = masked_log_softmax(torch.tensor([[0.3, -0.5, 0.9, 0.0]]).expand(num_envs, -1), action_mask)
    advice = torch.tensor([[0.6, 0.39, 0.01, 0.0]]).expand(num_envs, -1)
    own = action_mask.long().argmax(1)
    decision = Decision(own, masked_argmax(scores, action_mask), scores, torch.zeros(num_envs))
    action, followed = method.act(decision, advice, action_mask, uniforms(13, num_envs, 5))
    policy = method.policy(scores, action_mask, advice, followed)[followed].exp().mean(0)
    shares = torch.bincount(action[followed], minlength=4) / int(followed.sum())
    return shares.tolist(), policy.tolist(), action, followed
