"""Other programs' random play, training, look-ups and queries, measured beside ours.

`python -m benchmarks.peers NAME SETTINGS`, with games, training, thresholds, lookups or questions as the name, takes a
JSON object, - reads it from standard input, and prints one with a `rate`: env steps a second of all copies together,
look-ups or questions; `thresholds` prints the mean return of every evaluation instead. It imports nothing of ours but
the clock, and for thresholds our games, so that it runs in an environment that holds the peers alone
(requirements/peers.txt).
Every program plays in its fastest way: those in JAX as one compiled loop of many steps, the others a step at a time.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.timing import rate

STEPS = 100  # in one compiled loop


def gymnasium(game: str, copies: int) -> tuple[Callable[[], Any], int]:
    """Gymnasium's own vector env, one copy after the other."""
    import gymnasium as gym

    games = gym.make_vec({"blackjack": "Blackjack-v1"}[game], num_envs=copies, vectorization_mode="sync")
    games.reset(seed=1)
    return lambda: games.step(games.action_space.sample()), copies


def envpool(game: str, copies: int) -> tuple[Callable[[], Any], int]:
    """Envpool's C++ on all cores."""
    import envpool as pool
    import numpy as np

    names = {"blackjack": "Blackjack-v1", "connect4": "ConnectFour-v1", "snake": "Snake-v1"}
    games = pool.make_gymnasium(names[game], num_envs=copies)
    games.reset()
    chance, actions = np.random.default_rng(1), games.action_space.n
    return lambda: games.step(chance.integers(actions, size=copies)), copies


def pgx(game: str, copies: int) -> tuple[Callable[[], Any], int]:
    """Pgx, both sides at random: every step is one disc."""
    import jax
    import pgx as library
    from pgx.experimental import auto_reset

    env = library.make({"connect4": "connect_four"}[game])
    step = jax.vmap(auto_reset(env.step, env.init))
    state = jax.jit(jax.vmap(env.init))(jax.random.split(jax.random.PRNGKey(1), copies))

    @jax.jit
    def play(state: Any, key: Any) -> Any:
        def once(carry: Any, key: Any) -> Any:
            state, total = carry
            action = jax.random.categorical(key, jax.numpy.log(state.legal_action_mask.astype("float32")), axis=1)
            state = step(state, action, jax.random.split(key, copies))
            return (state, total + state.rewards.sum()), None

        return jax.lax.scan(once, (state, 0.0), jax.random.split(key, STEPS))[0]

    return rolled(play, state), copies * STEPS


def jumanji(game: str, copies: int) -> tuple[Callable[[], Any], int]:
    """Jumanji, with its own automatic reset."""
    import jax
    import jumanji as library
    from jumanji.wrappers import AutoResetWrapper

    env = AutoResetWrapper(library.make({"snake": "Snake-v1"}[game]))
    state, first = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.PRNGKey(1), copies))
    step = jax.vmap(env.step)

    @jax.jit
    def play(state: Any, key: Any) -> Any:
        def once(carry: Any, key: Any) -> Any:
            (state, mask), total = carry
            action = jax.random.categorical(key, jax.numpy.log(mask.astype("float32")), axis=1)
            state, time_step = step(state, action)
            return ((state, time_step.observation.action_mask), total + time_step.reward.sum()), None

        return jax.lax.scan(once, (state, 0.0), jax.random.split(key, STEPS))[0]

    return rolled(play, (state, first.observation.action_mask)), copies * STEPS


def rolled(play: Callable[[Any, Any], Any], state: Any) -> Callable[[], Any]:
    """Return a function that goes on with a compiled loop from where it stopped, and waits for it."""
    import jax

    held = [state, jax.random.PRNGKey(2)]

    def go() -> None:
        held[1], key = jax.random.split(held[1])
        held[0], total = play(held[0], key)
        jax.block_until_ready(total)

    return go


PEERS: dict[str, tuple[Callable[[str, int], tuple[Callable[[], Any], int]], tuple[str, ...]]] = {
    "gymnasium": (gymnasium, ("blackjack",)),
    "envpool": (envpool, ("blackjack", "connect4", "snake")),
    "pgx": (pgx, ("connect4",)),
    "jumanji": (jumanji, ("snake",)),
}


def stable_baselines3(algo: str, env: str, device: str, seed: int) -> tuple[Any, dict[str, Any]]:
    """Return one of its students in 8 games, with its own defaults but for the settings that are returned too."""
    import stable_baselines3 as library
    from gymnasium.wrappers import FlattenObservation
    from stable_baselines3.common.env_util import make_vec_env

    settings: dict[str, Any] = {}
    if algo == "dqn":
        settings["learning_starts"] = 1000
    make = {"ppo": library.PPO, "a2c": library.A2C, "dqn": library.DQN}[algo]
    games = make_vec_env(env, n_envs=8, seed=seed, wrapper_class=FlattenObservation)  # it knows no tuples
    net = {"net_arch": [64, 64]}
    student = make("MlpPolicy", games, device=device, seed=seed, policy_kwargs=dict(net), **settings)
    return student, settings | net | {"num_envs": 8}


LEARNERS = {"stable-baselines3": {"cartpole": "CartPole-v1", "blackjack": "Blackjack-v1"}}


def training(program: str, algo: str, game: str, device: str, seconds: float) -> dict[str, Any]:
    """Return how fast a student of another program learns, with 8 games at once, and its settings."""
    import torch

    student, settings = stable_baselines3(algo, LEARNERS[program][game], device, 1)
    student.learn(4096)
    began, steps = time.perf_counter(), student.num_timesteps
    while (spent := time.perf_counter() - began) < seconds:
        student.learn(4096, reset_num_timesteps=False)
    found = (student.num_timesteps - steps) / spent
    return {"rate": found, "settings": settings | {"threads": torch.get_num_threads()}}


OF_TRAINING = tuple(LEARNERS)
COPIES = 8  # env copies of a student of another program
EVAL_EVERY, EVAL_EPISODES = 25_000, 20  # ours evaluates in 500 episodes: so few cost less, and reach a score by chance
# of rl-zoo's tuned settings (DLR-RM/rl-baselines3-zoo, hyperparams); in games that it has not, the library's defaults
ZOO: dict[str, dict[str, dict[str, Any]]] = {
    "gym:CartPole-v1": {
        "ppo": {
            **{"n_steps": 32, "batch_size": 256, "gae_lambda": 0.8, "gamma": 0.98, "n_epochs": 20, "ent_coef": 0.0},
            "learning_rate": lambda left: 0.001 * left,
            "clip_range": lambda left: 0.2 * left,
        },
        "a2c": {"ent_coef": 0.0},
        "dqn": {
            **{"learning_rate": 2.3e-3, "batch_size": 64, "buffer_size": 100_000, "learning_starts": 1000},
            **{"gamma": 0.99, "target_update_interval": 10, "train_freq": 256, "gradient_steps": 128},
            **{"exploration_fraction": 0.16, "exploration_final_eps": 0.04},
            "policy_kwargs": {"net_arch": [256, 256]},
        },
    }
}


def batched_games(env: str, options: dict[str, Any], num_envs: int, seed: int) -> Any:
    """Return our games, batched by their Gymnasium face, as Stable-Baselines3 takes them."""
    import numpy as np
    from stable_baselines3.common.vec_env import VecEnv, VecMonitor

    from envs.gymnasium_api import BatchedEnv

    class Games(VecEnv):
        def __init__(self) -> None:
            self.games = BatchedEnv(env, num_envs, **options)
            super().__init__(num_envs, self.games.single_observation_space, self.games.single_action_space)

        def reset(self) -> Any:
            return self.games.reset(seed=seed)[0]

        def step_async(self, actions: Any) -> None:
            self.actions = actions

        def step_wait(self) -> Any:
            obs, reward, terminated, truncated, info = self.games.step(self.actions)
            done = terminated | truncated
            infos: list[dict[str, Any]] = [{} for _ in range(num_envs)]
            for row in np.flatnonzero(done):
                infos[row] = {"terminal_observation": info["final_obs"][row]}
                infos[row]["TimeLimit.truncated"] = bool(truncated[row])
            return obs, reward, done, infos

        def close(self) -> None:
            """Nothing is open."""

        def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
            return [getattr(self.games, attr_name)] * num_envs

        def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
            setattr(self.games, attr_name, value)

        def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
            return [getattr(self.games, method_name)(*args, **kwargs)]

        def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
            return [False] * num_envs

    return VecMonitor(Games())


def thresholds(
    program: str, algo: str, env: str, options: dict[str, Any], seed: int, total_steps: int
) -> dict[str, Any]:
    """Train a student of another program, print the mean return of every evaluation, and return the settings."""
    import numpy as np
    import stable_baselines3 as library
    import torch
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy

    options = {name: int(value) for name, value in options.items()}

    def make(seed: int, **more: Any) -> Any:
        if env.startswith("gym:"):
            return make_vec_env(env.removeprefix("gym:"), n_envs=COPIES, seed=seed)
        return batched_games(env, options | more, COPIES, seed)

    def mean_return(student: Any, games: Any) -> float:
        if env != "blackjack":
            return float(np.mean(evaluate_policy(student, games, EVAL_EPISODES)[0]))
        from envs.blackjack import Blackjack
        from envs.blackjack_exact import value_of_greedy

        def greedy(obs: Any, action_mask: Any) -> Any:
            return torch.as_tensor(student.predict(obs.numpy(), deterministic=True)[0])

        return value_of_greedy(Blackjack(), greedy)

    class Evaluate(BaseCallback):
        evaluated = 0

        def _on_step(self) -> bool:
            if self.num_timesteps // EVAL_EVERY > self.evaluated:
                self.evaluated = self.num_timesteps // EVAL_EVERY
                found = {"mean_return": mean_return(self.model, games), "global_step": self.num_timesteps}
                print(json.dumps(found), flush=True)
            return True

    limit = {"time_limit": 500} if env == "snake" else {}  # ours stops snakes that circle, this cannot
    games = make(seed + 1_000_003, **limit)
    settings = ZOO.get(env, {}).get(algo, {})
    kind = {"ppo": library.PPO, "a2c": library.A2C, "dqn": library.DQN}[algo]
    student = kind("MlpPolicy", make(seed), device="cpu", seed=seed, **settings)
    student.learn(total_steps, callback=Evaluate())
    return {"settings": {name: str(value) for name, value in settings.items()} | {"num_envs": COPIES}}


def games(program: str, game: str, copies: int, seconds: float) -> dict[str, Any]:
    """Return how fast another program plays at random."""
    make, _ = PEERS[program]
    return {"rate": rate(*make(game, copies), seconds)}


def lookups(entries: int, capacity: int, queries: int, hits: float, seconds: float) -> dict[str, Any]:
    """Return the look-ups a second of FBGEMM's hash table on the CPU, filled with so many random keys of 62 bits.

    It finds a number of 64 bits for a key of 64 bits by linear probing, and holds nothing else.
    """
    import fbgemm_gpu  # noqa: F401, makes torch.ops.fbgemm
    import torch

    generator = torch.Generator().manual_seed(1)
    keys = torch.randint(1 << 62, (entries,), generator=generator)
    table = torch.full((capacity, 2), -1)
    whole = torch.tensor([0, capacity])
    fbgemm = torch.ops.fbgemm
    fbgemm.pruned_hashmap_insert(keys, torch.arange(entries), torch.tensor([0, entries]), table, whole)
    known = keys[torch.randint(entries, (queries,), generator=generator)]
    is_known = torch.rand(queries, generator=generator) < hits
    asked = torch.where(is_known, known, torch.randint(1 << 62, (queries,), generator=generator))
    offsets = torch.tensor([0, queries])

    def look_up() -> torch.Tensor:
        return fbgemm.pruned_hashmap_lookup(asked, offsets, table, whole)

    assert (look_up() >= 0).equal(is_known), "a key that was put is found, another is not"
    return {"rate": rate(look_up, queries, seconds)}


def questions(url: str, model: str, ids: list[int], prompts: list[str], at_once: int) -> dict[str, Any]:
    """Return questions a second through the openai client, one request a question.

    Args:
        ids: tokens of the labels.
        at_once: requests that are under way at most; never more than 64.
    """
    import asyncio

    from openai import AsyncOpenAI

    async def ask_all() -> float:
        client = AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        room = asyncio.Semaphore(min(at_once, 64))

        async def ask(prompt: str) -> None:
            async with room:
                await client.completions.create(
                    model=model,
                    prompt=prompt,
                    max_tokens=1,
                    temperature=0,
                    logprobs=1,
                    extra_body={"logprob_token_ids": ids, "return_tokens_as_token_ids": True},
                )

        await ask(prompts[0])
        began = time.perf_counter()
        await asyncio.gather(*(ask(prompt) for prompt in prompts[1:]))
        return (len(prompts) - 1) / (time.perf_counter() - began)

    return {"rate": asyncio.run(ask_all())}


def main() -> None:
    """Measure what the command line names."""
    measures: dict[str, Callable[..., Any]] = {
        "games": games,
        "training": training,
        "thresholds": thresholds,
        "questions": questions,
        "lookups": lookups,
    }
    settings = json.load(sys.stdin) if sys.argv[2] == "-" else json.loads(sys.argv[2])
    print(json.dumps(measures[sys.argv[1]](**settings)))


if __name__ == "__main__":
    main()
