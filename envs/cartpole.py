"""CartPole: balance a pole on a cart. The game that everybody's programs are timed with; it has no view.

obs      (4,) float32: the cart's place in metres and its speed, the pole's angle in radians and its speed.
action   0 pushes left, 1 pushes right. Both are always legal.
reward   +1 a step, the last one included.
ends     when the cart has gone further than 2.4 m or the pole leans by more than 12 degrees; cut short after 500 steps.
luck     deal: the four numbers, uniform in ±0.05. play: none.

`python train.py --env envs.cartpole:CartPole`. Source: Gymnasium's CartPole-v1 (Barto, Sutton & Anderson 1983,
doi:10.1109/TSMC.1983.6313077), with single precision in place of double.
"""

import math

import torch
from torch import Tensor

from envs.base import Spec, State

GRAVITY = 9.8  # m/s^2
CART, POLE = 1.0, 0.1  # kg
HALF_LENGTH = 0.5  # of the pole, m
FORCE = 10.0  # N
TAU = 0.02  # s between two steps
FURTHEST = 2.4  # m
STEEPEST = 12 * 2 * math.pi / 360  # rad


class CartPole:
    """The rules."""

    spec = Spec("cartpole", 1, (4,), 2, num_reset_uniforms=4, num_step_uniforms=0, time_limit=500)

    def reset(self, u: Tensor) -> State:
        return dict(zip(("place", "speed", "angle", "turning"), (0.1 * u - 0.05).unbind(1), strict=True))

    def step(self, state: State, action: Tensor, u: Tensor) -> tuple[State, Tensor, Tensor]:
        place, speed, angle, turning = state.values()
        cart, pole = accelerations(angle, turning, torch.where(action == 1, FORCE, -FORCE))
        place, speed = place + TAU * speed, speed + TAU * cart
        angle, turning = angle + TAU * turning, turning + TAU * pole
        terminated = (place.abs() > FURTHEST) | (angle.abs() > STEEPEST)
        moved = {"place": place, "speed": speed, "angle": angle, "turning": turning}
        return moved, torch.ones_like(place), terminated

    def observe(self, state: State) -> tuple[Tensor, Tensor]:
        obs = torch.stack(list(state.values()), 1)
        return obs, torch.ones(len(obs), 2, dtype=torch.bool, device=obs.device)


def accelerations(angle: Tensor, turning: Tensor, force: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cart's (m/s^2) and the pole's (rad/s^2). Source: Florian 2007, "Correct equations", eq. 23 and 24."""
    mass, moment = CART + POLE, POLE * HALF_LENGTH
    sine, cosine = angle.sin(), angle.cos()
    push = (force + moment * turning.square() * sine) / mass
    pole = (GRAVITY * sine - cosine * push) / (HALF_LENGTH * (4 / 3 - POLE * cosine.square() / mass))
    return push - moment * pole * cosine / mass, pole
