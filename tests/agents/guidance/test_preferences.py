"""Preferences: a reward that is fitted to comparisons explains them, and is added as a bonus."""

import pytest
import torch
from torch import Tensor

from agents.guidance import Guidance
from agents.guidance.preferences import Preferences
from envs.base import Step
from tests.helpers.guidance import make_method, make_next_step
from tests.helpers.students import uniforms


def episodes_of_known_worth(number: int) -> tuple[list[Tensor], Tensor]:
    """Return episodes of five steps in which the first number observed is what a step is worth, and their sums."""
    episodes = [uniforms(50 + one, 5, 3) * 2 - 1 for one in range(number)]
    return episodes, torch.stack([episode[:, 0].sum() for episode in episodes])


def shaped_reward(method: Guidance, next_step: Step) -> Tensor:
    """Return the reward that is learned from, in a step without advice."""
    none = torch.zeros(len(next_step.reward), 3)
    return method.shaped(*method.reward(next_step, none[:, 0].long(), none))


def test_preferences_fit_a_reward_that_explains_the_comparisons() -> None:
    episodes, worth = episodes_of_known_worth(30)
    pairs = [(one, other) for one in range(30) for other in range(30) if one != other]
    first_probs = [float(worth[one] > worth[other]) for one, other in pairs]
    method, other = (make_method("preferences", "ppo", 0.8, reward_scale=0.5) for _ in range(2))
    assert isinstance(method, Preferences)
    assert method.fit(episodes, pairs, first_probs, 1) > 0.95
    states = torch.cat(episodes)
    next_step = make_next_step(0)._replace(reward=torch.zeros(len(states)), final_obs=states)
    found = shaped_reward(method, next_step) / (0.8 * 0.5)
    assert found.mean() == pytest.approx(0, abs=1e-3)
    assert found.std() == pytest.approx(1, abs=1e-3)
    assert torch.corrcoef(torch.stack([found, states[:, 0]]))[0, 1] > 0.9
    assert shaped_reward(other, next_step).equal(next_step.reward), "nothing is fitted yet"
    other.load_state_dict(method.state_dict())
    assert shaped_reward(other, next_step).equal(shaped_reward(method, next_step))


def test_preferences_read_the_state_that_a_step_led_to_and_not_the_reset() -> None:
    episodes, _ = episodes_of_known_worth(2)
    method = make_method("preferences", "ppo", 1.0)
    assert isinstance(method, Preferences)
    method.fit(episodes, [(0, 1)], [1.0], 1)
    reset, final = uniforms(1, 8, 3), uniforms(2, 8, 3)
    next_step = make_next_step(0)._replace(reward=torch.zeros(8), obs=reset, final_obs=final)
    others = next_step._replace(obs=final)
    assert shaped_reward(method, next_step).equal(shaped_reward(method, others))
    assert not shaped_reward(method, next_step).equal(shaped_reward(method, next_step._replace(final_obs=reset)))
