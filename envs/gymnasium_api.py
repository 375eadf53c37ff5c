"""Our games as Gymnasium envs: `gym.make("envs.gymnasium_api:Connect4-v0")`, and batched by `gym.make_vec`.

TorchBlackjack-v0, Connect4-v0 and Snake-v0 take the options of their games as keyword arguments. An info holds
`action_mask`, int8 as in Gymnasium's own envs, and in Blackjack `gymnasium_obs`, the observation of Blackjack-v1.
"""

from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from torch import Tensor

from envs.base import Spec, State, VecEnv
from envs.blackjack import gymnasium_obs
from envs.registry import make, make_game
from envs.rendering import DRAWINGS
from envs.rng import ENV_STREAM, CounterRNG

Info = dict[str, Any]


class SingleEnv(gym.Env):
    """One copy of a game as a Gymnasium env.

    Args:
        game: a key of `envs.ENVS`, or module:Class.
        render_mode: None, ansi or rgb_array.
        options: keyword arguments of the game.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi", "rgb_array"], "render_fps": 4}  # noqa: RUF012

    def __init__(self, game: str, render_mode: str | None = None, **options: Any) -> None:
        self.game = make_game(game, **options)
        self.render_mode = render_mode
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode is {render_mode!r}; it must be None, 'ansi' or 'rgb_array'")
        if render_mode is not None and self.game.spec.name not in DRAWINGS:
            raise ValueError(f"{game} cannot be rendered; there are drawings of {', '.join(DRAWINGS)}")
        self.observation_space, self.action_space = spaces_of(self.game.spec)
        self.draws = 0  # from the generator, since it was seeded
        self.states: list[State] = []  # of the episode so far; empty before the first reset
        self.is_over = True  # or has not begun

    @property
    def state(self) -> State:
        """Return the current state, one row, as the game represents it."""
        return self.states[-1]

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[np.ndarray, Info]:
        """Start a new episode; a seed restarts the random numbers."""
        check_reset_options(options, ())
        super().reset(seed=seed)
        if seed is not None or not self.states:
            self.rng = CounterRNG(int(self.np_random.integers(1 << 31)), torch.tensor([0]), ENV_STREAM)
            self.draws = 0
        self.states = [self.game.reset(self._draw(self.game.spec.num_reset_uniforms))]
        self.is_over = False
        return self._observe()

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, Info]:
        """Apply one action.

        Raises:
            ValueError: there is no such action.
            gymnasium.error.ResetNeeded: the episode is over, or none has begun.
        """
        if self.is_over:
            raise gym.error.ResetNeeded("no episode goes on: call reset before step")
        if not self.action_space.contains(action):
            raise ValueError(f"the action is {action!r}; it must be in {self.action_space}")
        u = self._draw(self.game.spec.num_step_uniforms)
        state, reward, terminated = self.game.step(self.states[-1], torch.tensor([int(action)]), u)
        self.states.append(state)
        limit = self.game.spec.time_limit
        truncated = limit is not None and len(self.states) > limit and not bool(terminated)
        self.is_over = bool(terminated) or truncated
        obs, info = self._observe()
        return obs, float(reward), bool(terminated), truncated, info

    def render(self) -> Any:
        """Return the current state as text, or as an image (height, width, 3) uint8."""
        if self.render_mode is None:
            return None
        drawing = DRAWINGS[self.game.spec.name]
        draw = drawing.text if self.render_mode == "ansi" else drawing.image
        return draw(self.game.spec, self.states)

    def _draw(self, columns: int) -> Tensor:
        """Return the next uniforms (1, columns)."""
        self.draws += 1
        return self.rng.uniform(self.draws, columns)

    def _observe(self) -> tuple[np.ndarray, Info]:
        obs, action_mask = self.game.observe(self.states[-1])
        info = info_of(self.game.spec, self.states[-1], action_mask)
        return obs[0].numpy(), {name: value[0].numpy() for name, value in info.items()}


class BatchedEnv(gym.vector.VectorEnv):
    """N copies of a game in lockstep, with autoreset in the same step (AutoresetMode.SAME_STEP).

    In an info, `final_obs` is the observation before the autoreset, `final_info` the info beside it, and `_final_obs`
    and `_final_info` say where there was one. Any other entry is there for all copies, which its name with a `_` says.

    Args:
        game: a key of `envs.ENVS`, or module:Class.
        num_envs: N.
        output: numpy arrays; or torch tensors on the device, with actions that are not checked.
        device: of all tensors.
        options: keyword arguments of the game.
    """

    metadata: dict[str, Any] = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(
        self,
        game: str,
        num_envs: int,
        output: Literal["numpy", "torch"] = "numpy",
        device: str = "cpu",
        render_mode: None = None,
        **options: Any,
    ) -> None:
        if render_mode is not None:
            raise ValueError(
                f"render_mode is {render_mode!r}; a batch is not drawn, and gym.make returns one copy that is"
            )
        if output not in ("numpy", "torch"):
            raise ValueError(f"output is {output!r}; it must be 'numpy' or 'torch'")
        self.name = game
        self.options = options
        self.output = output
        self.device = device
        self.num_envs = num_envs
        self.render_mode = None
        self.single_observation_space, self.single_action_space = spaces_of(make_game(game, **options).spec)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.env: VecEnv | None = None  # none before the first reset

    def reset(self, *, seed: Any = None, options: Info | None = None) -> tuple[Any, Info]:
        """Start a new episode in every copy, or where `options["reset_mask"]`, (N,) bool, says so.

        A seed, one number for all, restarts the random numbers of all copies.

        Raises:
            ValueError: an unknown option, no mask of the copies, a mask beside a seed, or several seeds.
        """
        check_reset_options(options, ("reset_mask",))
        rows = None if not options or "reset_mask" not in options else self._rows(options["reset_mask"])
        if seed is not None and (rows is not None or not isinstance(seed, int | np.integer)):
            raise ValueError(f"seed is {seed!r}; it must be one whole number, which restarts all copies")
        super().reset(seed=None if seed is None else int(seed))
        if seed is not None or self.env is None:
            env_seed = int(self.np_random.integers(1 << 31))
            env = make(self.name, self.num_envs, env_seed, self.device, **self.options)
            assert isinstance(env, VecEnv), "a game of ours"
            self.env = env
        step = self.env.reset() if rows is None else self.env.reset_rows(rows)
        return self._out(step.obs), self._info(step.state, step.action_mask)

    def _rows(self, reset_mask: Any) -> Tensor:
        """Return which copies a reset mask names, (N,) bool."""
        mask = torch.as_tensor(reset_mask, device=self.device) if isinstance(reset_mask, np.ndarray | Tensor) else None
        if mask is None or mask.dtype != torch.bool or mask.shape != (self.num_envs,) or not bool(mask.any()):
            given = type(reset_mask).__name__ if mask is None else f"{mask.dtype} of shape {tuple(mask.shape)}"
            raise ValueError(
                f"reset_mask is {given}; it must be an array of {self.num_envs} booleans, at least one of them true"
            )
        return mask

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, Info]:
        """Apply one action to every copy."""
        assert self.env is not None, "the first call must be reset"
        if self.output == "numpy" and not self.action_space.contains(np.asarray(actions)):
            raise ValueError(f"the actions are {actions}; they must be in {self.action_space}")
        step = self.env.step(torch.as_tensor(actions, dtype=torch.int64, device=self.device))
        info, ended = self._info(step.state, step.action_mask), step.terminated | step.truncated
        info["final_obs"], info["final_info"] = (
            self._out(step.final_obs),
            self._info(step.final_state, step.final_action_mask),
        )
        info["_final_obs"], info["_final_info"] = self._out(ended.clone()), self._out(ended)
        fields = (step.obs, step.reward, step.terminated, step.truncated)
        obs, reward, terminated, truncated = map(self._out, fields)
        return obs, reward, terminated, truncated, info

    def _out(self, tensor: Tensor) -> Any:
        return tensor if self.output == "torch" else tensor.cpu().numpy()

    def _info(self, state: State, action_mask: Tensor) -> Info:
        """Return an info of all copies, each entry beside where it is there: everywhere."""
        assert self.env is not None
        found: Info = {}
        for name, value in info_of(self.env.spec, state, action_mask).items():
            found[name], found[f"_{name}"] = self._out(value), self._out(torch.ones_like(action_mask[:, 0]))
        return found


def check_reset_options(options: Info | None, known: tuple[str, ...]) -> None:
    """Raise ValueError for an option of `reset` that there is not: it would be ignored."""
    for name in options or {}:
        if name not in known:
            raise ValueError(f"reset has no option {name!r}; there are {', '.join(known) or 'none'}")


def spaces_of(spec: Spec) -> tuple[gym.spaces.Box, gym.spaces.Discrete]:
    """Return the spaces of observations, which lie between -1 and 1, and of actions."""
    return gym.spaces.Box(-1, 1, spec.obs_shape, np.float32), gym.spaces.Discrete(spec.num_actions)


def info_of(spec: Spec, state: State, action_mask: Tensor) -> dict[str, Tensor]:
    """Return what an info holds beside the observation of `state`."""
    info = {"action_mask": action_mask.to(torch.int8)}
    return info | {"gymnasium_obs": gymnasium_obs(state)} if spec.name == "blackjack" else info


GAMES = {"TorchBlackjack": "blackjack", "Connect4": "connect4", "Snake": "snake"}  # Blackjack is Gymnasium's own
for name, game in GAMES.items():
    gym.register(
        f"{name}-v0",
        "envs.gymnasium_api:SingleEnv",
        vector_entry_point="envs.gymnasium_api:BatchedEnv",
        kwargs={"game": game},
    )
