"""CartPole: balance a pole on a cart. Every library is timed with it; it has no prompt view.

obs      (4,) float32: the cart's position in metres and its velocity, the pole's angle in radians and its angular
         velocity.
action   0 pushes left, 1 pushes right. Both are always legal.
reward   +1 per step, the last one included.
ends     terminated when the cart is further than 2.4 m from the centre or the pole leans by more than 12 degrees;
         truncated after 500 steps.
random   reset: the four numbers, uniform in ±0.05. step: nothing.
source   Gymnasium's CartPole-v1 (Barto, Sutton & Anderson 1983, doi:10.1109/TSMC.1983.6313077), with single precision
         in place of double.

`python train.py --env envs.cartpole:CartPole`.
"""

import math

import torch
from torch import Tensor

from envs.base import Spec, State

GRAVITY = 9.8  # m/s^2
CART_MASS = 1.0  # kg
POLE_MASS = 0.1  # kg
HALF_LENGTH = 0.5  # of the pole, m
FORCE = 10.0  # N
TAU = 0.02  # s between two steps
MAX_POSITION = 2.4  # m
MAX_ANGLE = 12 * 2 * math.pi / 360  # rad


class CartPole:
    """The rules, in the form that `VecEnv` steps."""

    spec = Spec(
        *("cartpole", 1, (4,), 2),
        num_reset_uniforms=4,
        num_step_uniforms=0,
        time_limit=500,
        title="CartPole",
        return_range=(1.0, 500.0),
        return_unit="time steps",
    )

    def reset(self, u: Tensor) -> State:
        position, velocity, angle, angular_velocity = (0.1 * u - 0.05).unbind(1)
        return {"position": position, "velocity": velocity, "angle": angle, "angular_velocity": angular_velocity}

    def step(self, state: State, action: Tensor, u: Tensor) -> tuple[State, Tensor, Tensor]:
        force = torch.where(action == 1, FORCE, -FORCE)
        cart, pole = accelerations(state["angle"], state["angular_velocity"], force)
        position = state["position"] + TAU * state["velocity"]
        angle = state["angle"] + TAU * state["angular_velocity"]
        terminated = (position.abs() > MAX_POSITION) | (angle.abs() > MAX_ANGLE)
        after = {
            "position": position,
            "velocity": state["velocity"] + TAU * cart,
            "angle": angle,
            "angular_velocity": state["angular_velocity"] + TAU * pole,
        }
        return after, torch.ones_like(position), terminated

    def observe(self, state: State) -> tuple[Tensor, Tensor]:
        obs = torch.stack(list(state.values()), 1)
        return obs, torch.ones(len(obs), 2, dtype=torch.bool, device=obs.device)


def accelerations(angle: Tensor, angular_velocity: Tensor, force: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cart's (m/s^2) and the pole's (rad/s^2). Source: Florian 2007, "Correct equations", eq. 23 and 24."""
    mass, moment = CART_MASS + POLE_MASS, POLE_MASS * HALF_LENGTH
    sine, cosine = angle.sin(), angle.cos()
    push = (force + moment * angular_velocity.square() * sine) / mass
    pole = (GRAVITY * sine - cosine * push) / (HALF_LENGTH * (4 / 3 - POLE_MASS * cosine.square() / mass))
    return push - moment * pole * cosine / mass, pole
