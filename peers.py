"""Other programs at play and at learning, for benchmark.py to stand beside.

`peers.py games PROGRAM GAME COPIES SECONDS` and `peers.py training PROGRAM ALGO GAME DEVICE SECONDS` print
env steps a second of all copies together, `peers.py questions` questions a second, `peers.py lookups …` look-ups a
second, as a line of JSON. It imports nothing of ours, so that it runs in an environment that holds the peers alone
(requirements/peers.txt). Every program plays in its fastest way: those in JAX as one compiled loop of many steps, the
others a step at a time.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

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
            state, moment = step(state, action)
            return ((state, moment.observation.action_mask), total + moment.reward.sum()), None

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


def rate(go: Callable[[], Any], steps: int, seconds: float) -> float:
    """Return steps a second of calling `go`, which makes `steps`, for that long after a warm-up."""
    go()
    go()
    calls, began = 0, time.perf_counter()
    while (spent := time.perf_counter() - began) < seconds:
        go()
        calls += 1
    return calls * steps / spent


def stable_baselines3(algo: str, env: str, device: str, seed: int) -> tuple[Any, dict[str, Any]]:
    """Return one of its students in 8 games, with its own defaults but for the settings that are returned too."""
    import stable_baselines3 as library
    from gymnasium.wrappers import FlattenObservation
    from stable_baselines3.common.env_util import make_vec_env

    told: dict[str, Any] = {}
    if algo == "dqn":
        told["learning_starts"] = 1000
    make = {"ppo": library.PPO, "a2c": library.A2C, "dqn": library.DQN}[algo]
    games = make_vec_env(env, n_envs=8, seed=seed, wrapper_class=FlattenObservation)  # it knows no tuples
    net = {"net_arch": [64, 64]}
    student = make("MlpPolicy", games, device=device, seed=seed, policy_kwargs=dict(net), **told)
    return student, told | net | {"num_envs": 8}


LEARNERS = {"stable-baselines3": {"cartpole": "CartPole-v1", "blackjack": "Blackjack-v1"}}


def training(program: str, algo: str, game: str, device: str, seconds: str) -> None:
    """Print how fast a student of another program learns, with 8 games at once, and its settings."""
    import torch

    student, told = stable_baselines3(algo, LEARNERS[program][game], device, 1)
    student.learn(4096)
    began, steps = time.perf_counter(), student.num_timesteps
    while (spent := time.perf_counter() - began) < float(seconds):
        student.learn(4096, reset_num_timesteps=False)
    found = (student.num_timesteps - steps) / spent
    print(json.dumps({"rate": found, "settings": told | {"threads": torch.get_num_threads()}}))


def games(program: str, game: str, copies: str, seconds: str) -> None:
    """Print how fast another program plays at random."""
    print(json.dumps(rate(*PEERS[program][0](game, int(copies)), float(seconds))))


def lookups(entries: str, capacity: str, queries: str, hits: str, seconds: str) -> None:
    """Print the look-ups a second of FBGEMM's hash table on the CPU, filled with so many random keys of 62 bits.

    It finds a number of 64 bits for a key of 64 bits by linear probing, and holds nothing else.
    """
    import fbgemm_gpu  # noqa: F401, makes torch.ops.fbgemm
    import torch

    chance = torch.Generator().manual_seed(1)
    keys = torch.randint(1 << 62, (int(entries),), generator=chance)
    table = torch.full((int(capacity), 2), -1)
    whole = torch.tensor([0, int(capacity)])
    fbgemm = torch.ops.fbgemm
    fbgemm.pruned_hashmap_insert(keys, torch.arange(len(keys)), torch.tensor([0, len(keys)]), table, whole)
    count = int(queries)
    known = keys[torch.randint(len(keys), (count,), generator=chance)]
    is_known = torch.rand(count, generator=chance) < float(hits)
    asked = torch.where(is_known, known, torch.randint(1 << 62, (count,), generator=chance))
    found = fbgemm.pruned_hashmap_lookup(asked, torch.tensor([0, count]), table, whole)
    assert (found >= 0).equal(is_known), "a key that was put is found, another is not"
    go = rate(
        lambda: fbgemm.pruned_hashmap_lookup(asked, torch.tensor([0, count]), table, whole), count, float(seconds)
    )
    print(json.dumps(go))


def questions() -> None:
    """Ask a server through the openai client, one request a question, and print questions a second.

    Standard input says what: a JSON object of url, model, prompts, ids (of the labels' tokens) and at_once.
    """
    import asyncio

    from openai import AsyncOpenAI

    told = json.load(sys.stdin)

    async def ask_all() -> float:
        client = AsyncOpenAI(base_url=f"{told['url']}/v1", api_key="none", max_retries=0)
        room = asyncio.Semaphore(min(told["at_once"], 64))

        async def ask(prompt: str) -> None:
            async with room:
                await client.completions.create(
                    model=told["model"],
                    prompt=prompt,
                    max_tokens=1,
                    temperature=0,
                    logprobs=1,
                    extra_body={"logprob_token_ids": told["ids"], "return_tokens_as_token_ids": True},
                )

        await ask(told["prompts"][0])
        began = time.perf_counter()
        await asyncio.gather(*(ask(prompt) for prompt in told["prompts"][1:]))
        return (len(told["prompts"]) - 1) / (time.perf_counter() - began)

    print(json.dumps(asyncio.run(ask_all())))


if __name__ == "__main__":
    {"games": games, "training": training, "questions": questions, "lookups": lookups}[sys.argv[1]](*sys.argv[2:])
