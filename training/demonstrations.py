"""Episodes as demonstrations for offline learners: a dataset of Minari.

Observations are those that a student sees, float32; an info holds `action_mask`. An episode of a game of ours knows its
env, which `recover_environment` makes; of a Gymnasium env, whose own observations may have another form, it does not.
"""

import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from envs.base import Env
from envs.gymnasium_api import GAMES
from envs.registry import parse_options
from training.config import Config
from training.evaluation import Policy, Result, Transition, run_episodes
from training.hints import install_command

COLUMNS = ("obs", "action_mask", "action", "reward", "terminated", "truncated")


class Demonstrations:
    """The first episode of each env copy, as it is played.

    Args:
        env: the copies.
    """

    def __init__(self, env: Env) -> None:
        self.env = env
        self.steps: dict[str, list[np.ndarray]] = {name: [] for name in (*COLUMNS, "final_obs", "final_action_mask")}
        self.running: list[np.ndarray] = []

    def add(self, transition: Transition) -> None:
        """Take a time step of all copies; of one whose episode is cut, it was truncated."""
        step, next_step = transition.step, transition.next_step
        found = {
            "obs": step.obs,
            "action_mask": step.action_mask,
            "action": transition.action,
            "reward": next_step.reward,
            "terminated": next_step.terminated,
            "truncated": next_step.truncated | transition.cut,
            "final_obs": next_step.final_obs,
            "final_action_mask": next_step.final_action_mask,
        }
        for name, tensor in found.items():
            self.steps[name].append(tensor.cpu().numpy())
        self.running.append(transition.running.cpu().numpy())

    def buffers(self) -> list[Any]:
        """Return the episodes as Minari takes them: of T actions, T + 1 observations."""
        from minari.data_collector import EpisodeBuffer

        lengths = np.stack(self.running).sum(0)
        columns = {name: np.stack(parts) for name, parts in self.steps.items()}
        found = []
        for copy, length in enumerate(lengths.tolist()):
            obs, mask, action, reward, terminated, truncated = (columns[name][:length, copy] for name in COLUMNS)
            last_obs, last_mask = (columns[f"final_{name}"][length - 1 : length, copy] for name in COLUMNS[:2])
            found.append(
                EpisodeBuffer(
                    id=copy,
                    observations=np.concatenate([obs, last_obs]),
                    actions=action,
                    rewards=reward,
                    terminations=terminated,
                    truncations=truncated,
                    infos={"action_mask": np.concatenate([mask, last_mask]).astype(np.int8)},
                )
            )
        return found


def write_demonstrations(policy: Policy, env: Env, config: Config, dataset: str, who: str) -> Result:
    """Play the first episode of each env copy, keep them as a dataset of Minari, and return how good they are.

    Raises:
        ValueError: minari is not installed, there is such a dataset already, or its name is none.
    """
    try:
        import h5py  # noqa: F401, in which minari writes
        import minari
        from minari.dataset.minari_dataset import parse_dataset_id
        from minari.storage import get_dataset_path
    except ImportError as error:
        raise ValueError(f"--minari requires {error.name}: {install_command('-e', '.[minari]')}") from error
    try:
        parse_dataset_id(dataset)
        if Path(get_dataset_path(dataset)).exists():
            raise ValueError(f"there is a dataset {dataset} already: choose another name or version")
        demonstrations = Demonstrations(env)
        result = run_episodes(policy, env, record=demonstrations.add)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that a dataset could also name its author and its code
            minari.create_dataset_from_buffers(
                dataset,
                demonstrations.buffers(),
                **spaces_of_dataset(env, config),
                algorithm_name=f"tutored: {who}",
                description=f"{env.spec.shown_title()}, played by the {who} of a run of {config.algo}",
                data_format="hdf5",
                jpeg_encoding=False,
            )
    except (ValueError, OSError) as error:
        raise ValueError(f"--minari {dataset}: {error}") from error
    return result


def spaces_of_dataset(env: Env, config: Config) -> dict[str, Any]:
    """Return the env of a game of ours; of another one the spaces of what is recorded."""
    options = parse_options(config.env_kwargs)
    ids = [name for name, game in GAMES.items() if game == config.env]
    if ids and options.get("opponent") != "self":
        return {"env": gym.make(f"envs.gymnasium_api:{ids[0]}-v0", **options)}
    spec = env.spec
    obs_space = gym.spaces.Box(-np.inf, np.inf, spec.obs_shape, np.float32)
    return {"observation_space": obs_space, "action_space": gym.spaces.Discrete(spec.num_actions)}
