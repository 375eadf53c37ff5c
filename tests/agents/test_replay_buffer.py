"""The replay buffer against a plain list of transitions, searched one env copy and one time step at a time."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from agents.guidance import METHODS, Guidance
from agents.guidance.base import EMPTY
from agents.replay_buffer import Batch, ReplayBuffer
from envs import make
from envs.base import Env, Spec, State, Step, VecEnv
from envs.rng import sample_legal
from tests.helpers.probes import Walk
from tests.helpers.students import all_equal, bin_centers, save_and_load, uniforms

NUM_ENVS = 3


class Journey:
    """A number from a random start that grows by 1; one step in four terminates, a time limit of four steps truncates.

    The observation is not the state: the state has two ranks and three types.
    """

    spec = Spec("journey", 1, (2, 2), 3, num_reset_uniforms=1, num_step_uniforms=1, time_limit=4)

    def reset(self, u: Tensor) -> State:
        at = (u[:, 0] * 100_000).long() * 10
        return {"at": at, "marks": torch.stack([at % 4 == 0, at % 3 == 0], 1), "share": u[:, 0] * 0}

    def step(self, state: State, action: Tensor, u: Tensor) -> tuple[State, Tensor, Tensor]:
        at = state["at"] + 1
        marks = torch.stack([at % 4 == 0, at % 3 == 0], 1)
        return {"at": at, "marks": marks, "share": u[:, 0]}, at % 7 + u[:, 0] + action, u[:, 0] < 0.25

    def observe(self, state: State) -> tuple[Tensor, Tensor]:
        seen = torch.stack([state["at"].float(), state["share"]], 1)
        action_mask = (state["at"][:, None] + torch.arange(3)) % 3 != 1
        return torch.stack([seen, state["marks"].float()], 1), action_mask


@dataclass
class Transition:
    """One time step of one env copy in Python's own numbers; `last` is where the action led."""

    obs: list
    action: int
    reward: float
    terminated: bool
    truncated: bool
    last: list
    last_mask: list


def transitions_of(step: Step, action: Tensor, next_step: Step) -> list[Transition]:
    columns = (
        step.obs,
        action,
        next_step.reward,
        next_step.terminated,
        next_step.truncated,
        next_step.final_obs,
        next_step.final_action_mask,
    )
    return [Transition(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def add(replay: ReplayBuffer, step: Step, action: Tensor, next_step: Step, **stored: Tensor) -> None:
    """Store one time step as DQN does."""
    ends = {"terminated": next_step.terminated, "truncated": next_step.truncated}
    replay.add(step, next_step, action=action, reward=next_step.reward, **ends, **stored)


def fill(replay: ReplayBuffer, env: Env, time_steps: int, step: Step | None = None, seed: int = 0) -> tuple[list, Step]:
    """Act at random; return the transitions, [time step][env copy], and the last step."""
    generator = torch.Generator().manual_seed(seed)
    step, transitions = env.reset() if step is None else step, []
    for _ in range(time_steps):
        action = torch.randint(0, env.spec.num_actions, (env.num_envs,), generator=generator)
        next_step = env.step(action)
        add(replay, step, action, next_step)
        transitions.append(transitions_of(step, action, next_step))
        step = next_step
    return transitions, step


def by_definition(transitions: list, first: int, env_id: int, n_step: int, gamma: float) -> tuple[list, list]:
    """Return (numbers, the rest): what n steps from there bring, fewer where the episode ends on the way."""
    reward, discount = 0.0, 1.0
    for time_step in range(first, first + n_step):
        one = transitions[time_step][env_id]
        reward += discount * one.reward
        discount *= gamma
        if one.terminated:
            discount = 0.0
        if one.terminated or one.truncated:
            break
    start = transitions[first][env_id]
    return [reward, discount], [start.obs, start.action, one.last, one.last_mask]


def rows_of(batch: Batch) -> list[tuple[list, list]]:
    columns = (batch.reward, batch.discount, batch.obs, batch.action, batch.next_obs, batch.next_action_mask)
    return [(list(row[:2]), list(row[2:])) for row in zip(*(column.tolist() for column in columns), strict=True)]


def assert_same_rows(ours: list, theirs: list) -> None:
    """Equal as sets of rows: observations and actions to the bit, sums of rewards but for rounding."""
    ours, theirs = (sorted(rows, key=lambda row: str(row[1])) for rows in (ours, theirs))
    assert [rest for _, rest in ours] == [rest for _, rest in theirs]
    for (numbers, _), (expected, _) in zip(ours, theirs, strict=True):
        assert numbers == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(("gamma", "n_step"), [(0.9, 1), (0.9, 2), (0.5, 3), (1.0, 3), (0.0, 3), (0.9, 7)])
@pytest.mark.parametrize(
    ("buffer_size", "time_steps"),
    [(30, 7), (30, 10), (30, 11), (30, 23), (30, 40), (32, 23), (21, 33), (300, 90), (90, 200)],
)
def test_replay_sample_holds_the_latest_transitions_each_equally_often(
    buffer_size: int, time_steps: int, gamma: float, n_step: int
) -> None:
    """The newest n - 1 time steps never begin a transition; what the ring has overwritten is gone."""
    env = VecEnv(Journey(), NUM_ENVS, seed=2)
    replay = ReplayBuffer(buffer_size, env)
    transitions, _ = fill(replay, env, time_steps)
    oldest = max(0, time_steps - buffer_size // NUM_ENVS)
    firsts = [(first, env_id) for first in range(oldest, time_steps - n_step + 1) for env_id in range(NUM_ENVS)]
    expected = [by_definition(transitions, first, env_id, n_step, gamma) for first, env_id in firsts]
    found = rows_of(replay.sample(bin_centers(4 * len(expected)), n_step, gamma))
    assert_same_rows(found, expected * 4)


def test_journeys_of_these_tests_end_in_every_way_and_at_every_distance() -> None:
    env = VecEnv(Journey(), NUM_ENVS, seed=2)
    transitions, _ = fill(ReplayBuffer(300, env), env, 90)
    ends = {
        (how, next((k for k in range(7) if getattr(transitions[first + k][env_id], how)), None))
        for first in range(80)
        for env_id in range(NUM_ENVS)
        for how in ("terminated", "truncated")
    }
    assert {(how, distance) for how in ("terminated", "truncated") for distance in range(4)} <= ends
    assert len({str(one.obs) for row in transitions for one in row}) == 90 * NUM_ENVS, "no observation occurs twice"


def test_replay_sample_has_the_shapes_and_types_of_a_batch() -> None:
    env = VecEnv(Journey(), NUM_ENVS)
    replay = ReplayBuffer(30, env)
    fill(replay, env, 5)
    batch = replay.sample(bin_centers(8), 2, 0.9)
    assert batch.obs.shape == batch.next_obs.shape == (8, 2, 2)
    assert batch.action_mask.shape == batch.next_action_mask.shape == (8, 3)
    assert batch.action.shape == batch.reward.shape == batch.discount.shape == (8,)
    assert {name: column.dtype for name, column in batch._asdict().items() if column is not EMPTY} == {
        "obs": torch.float32,
        "action_mask": torch.bool,
        "action": torch.int64,
        "reward": torch.float32,
        "discount": torch.float32,
        "next_obs": torch.float32,
        "next_action_mask": torch.bool,
    }
    assert batch.advice is batch.followed is batch.next_advice is EMPTY


def test_replay_sample_with_uniforms_at_their_ends_returns_stored_rows() -> None:
    env = VecEnv(Journey(), NUM_ENVS)
    replay = ReplayBuffer(30, env)
    transitions, _ = fill(replay, env, 4)
    ends = rows_of(replay.sample(torch.tensor([0.0, 1 - 2.0**-24]), 2, 0.9))
    assert_same_rows(ends[:1], [by_definition(transitions, 0, 0, 2, 0.9)])
    assert_same_rows(ends[1:], [by_definition(transitions, 2, NUM_ENVS - 1, 2, 0.9)])


def test_replay_sample_of_one_time_step_reaches_every_env_copy() -> None:
    env = VecEnv(Journey(), 1000)
    replay = ReplayBuffer(1000, env)
    transitions, _ = fill(replay, env, 3)
    expected = [by_definition(transitions, 2, env_id, 1, 0.9) for env_id in range(1000)]
    assert_same_rows(rows_of(replay.sample(bin_centers(1000), 1, 0.9)), expected)


def test_replay_next_obs_after_a_truncation_is_the_last_state_and_not_the_reset() -> None:
    env = VecEnv(Walk(), 4, seed=1)
    replay = ReplayBuffer(100, env)
    fill(replay, env, 9)
    batch = replay.sample(bin_centers(36), 1, 0.9)
    led_to = batch.obs[:, 0] + 1 + batch.action
    assert batch.next_obs[:, 0].equal(led_to)
    assert batch.reward.equal(led_to)
    assert (batch.next_obs[:, 1] == 3).sum() == 12, "the time limit was reached three times in four env copies"
    assert batch.discount.tolist() == pytest.approx([0.9] * 36), "a truncated episode has a future"
    for elapsed in (1, 2, 3):
        action_mask = batch.next_action_mask[batch.next_obs[:, 1] == elapsed]
        assert (action_mask == torch.tensor([(elapsed + action) % 3 != 1 for action in range(2)])).all()


def test_replay_sample_changes_nothing() -> None:
    env = VecEnv(Journey(), NUM_ENVS)
    replay = ReplayBuffer(30, env)
    fill(replay, env, 12)
    before = save_and_load(replay.state_dict())
    one, other = (replay.sample(bin_centers(50), 3, 0.9) for _ in range(2))
    assert all_equal(one, other)
    for column in one[:7]:
        column.zero_()
    assert str(save_and_load(replay.state_dict())) == str(before)


def test_replay_loaded_from_a_checkpoint_goes_on_as_the_saved_one() -> None:
    env, elsewhere = VecEnv(Journey(), NUM_ENVS, seed=4), VecEnv(Journey(), NUM_ENVS, seed=5)
    replay, other = ReplayBuffer(30, env), ReplayBuffer(30, elsewhere)
    _, step = fill(replay, env, 14)
    fill(other, elsewhere, 3)
    other.load_state_dict(save_and_load(replay.state_dict()))
    for _ in range(12):
        assert all_equal(*(ring.sample(bin_centers(40), 3, 0.9) for ring in (other, replay)))
        action = torch.zeros(NUM_ENVS, dtype=torch.int64)
        next_step = env.step(action)
        for ring in (replay, other):
            add(ring, step, action, next_step)
        step = next_step


@pytest.mark.parametrize("guidance", ["none", "distill"])
def test_replay_tensors_never_move(guidance: str) -> None:
    env = VecEnv(Journey(), NUM_ENVS)
    replay = ReplayBuffer(30, env, METHODS[guidance](False, "cpu"))

    def addresses() -> list[int]:
        state = replay.state_dict()
        tensors = [ring for name in ("states", "final_states") for ring in state.pop(name).values()]
        return [tensor.data_ptr() for tensor in (*tensors, *state.values()) if tensor.numel()]

    before = addresses()
    assert len(set(before)) == len(before)
    for at in range(23):
        action = torch.zeros(NUM_ENVS, dtype=torch.int64)
        step, next_step = env.current(), env.step(action)
        add(replay, step, action, next_step, **(advice_at(at) if guidance == "distill" else {}))
    replay.load_state_dict(save_and_load(replay.state_dict()))
    assert addresses() == before


def advice_at(time_step: int) -> dict[str, Tensor]:
    """Return the three stored columns of a time step; each row of advice names its env copy and time step."""
    env_ids = torch.arange(NUM_ENVS).float()
    advice = torch.stack([env_ids, torch.full((NUM_ENVS,), time_step + 1.0), env_ids * 0 + 1], 1)
    return {"advice": advice, "followed": (env_ids + time_step) % 2 == 0, "bonus": env_ids + 10 * time_step}


def advised_replay(time_steps: int) -> tuple[ReplayBuffer, list[list[bool]], dict[tuple[int, int], list]]:
    """Return a buffer with advice, where episodes ended, and the observation of each (env copy, time step)."""
    env = VecEnv(Journey(), NUM_ENVS)
    replay = ReplayBuffer(30, env, METHODS["distill"](False, "cpu"))
    step, ended, obs = env.reset(), [], {}
    for time_step in range(time_steps):
        action = torch.zeros(NUM_ENVS, dtype=torch.int64)
        obs |= {(env_id, time_step): step.obs[env_id].tolist() for env_id in range(NUM_ENVS)}
        next_step = env.step(action)
        add(replay, step, action, next_step, **advice_at(time_step))
        ended.append((next_step.terminated | next_step.truncated).tolist())
        step = next_step
    return replay, ended, obs


@pytest.mark.parametrize("n_step", [1, 2])
def test_replay_advice_and_followed_are_those_of_the_first_state_also_after_a_checkpoint(n_step: int) -> None:
    replay, _, obs = advised_replay(13)
    other, _, _ = advised_replay(2)
    other.load_state_dict(save_and_load(replay.state_dict()))
    for ring in (replay, other):
        batch = ring.sample(bin_centers(60), n_step, 0.9)
        for found, followed, seen in zip(
            batch.advice.tolist(), batch.followed.tolist(), batch.obs.tolist(), strict=True
        ):
            env_id, time_step = int(found[0]), int(found[1]) - 1
            assert seen == obs[env_id, time_step]
            assert followed == ((env_id + time_step) % 2 == 0)


@pytest.mark.parametrize("n_step", [1, 2, 3])
@pytest.mark.parametrize("time_steps", [6, 27])
def test_replay_next_advice_is_zero_after_last_step(n_step: int, time_steps: int) -> None:
    """After the last step of an episode, and after the newest one, where no advice is known yet."""
    replay, ended, _ = advised_replay(time_steps)
    batch = replay.sample(bin_centers(300), n_step, 0.9)
    unknown = 0
    for first, found in zip(batch.advice.tolist(), batch.next_advice.tolist(), strict=True):
        env_id, at = int(first[0]), int(first[1]) - 1
        follows = at + n_step < time_steps and not any(ended[one][env_id] for one in range(at, at + n_step))
        assert found == ([env_id, at + n_step + 1, 1] if follows else [0, 0, 0])
        unknown += not follows
    assert 0 < unknown < 300


@pytest.mark.parametrize("stores_advice", [False, True])
def test_replay_loaded_from_one_that_stores_other_columns_has_no_advice(stores_advice: bool) -> None:
    """A student goes on with a method of guidance that it did not have before, or without the one that it had."""
    env = VecEnv(Journey(), NUM_ENVS)
    plain, (advised, _, _) = ReplayBuffer(30, env), advised_replay(7)
    _, step = fill(plain, env, 7)
    source, target = (plain, advised) if stores_advice else (advised, ReplayBuffer(30, env))
    target.load_state_dict(save_and_load(source.state_dict()))
    batch = target.sample(bin_centers(30), 1, 0.9)
    assert_same_rows(rows_of(batch), rows_of(source.sample(bin_centers(30), 1, 0.9)))
    if not stores_advice:
        assert batch.advice is EMPTY
        return
    assert not any(column.any() for column in (batch.advice, batch.followed, batch.next_advice, target.bonus))
    action = torch.zeros(NUM_ENVS, dtype=torch.int64)
    add(target, step, action, env.step(action), **advice_at(7))
    advice = target.sample(bin_centers(24), 1, 0.9).advice
    assert advice.any(1).sum() == 3, "the newest time step of eight alone has advice"


def test_replay_without_stored_advice_takes_no_memory_for_it() -> None:
    replay = ReplayBuffer(30, VecEnv(Journey(), NUM_ENVS), Guidance(False, "cpu"))
    assert sum(column.numel() for column in (replay.advice, replay.followed, replay.bonus)) == 0


def test_replay_states_of_connect_four_are_32_bytes_where_observations_are_672() -> None:
    env = make("connect4", 5)
    state = ReplayBuffer(100, env).state_dict()
    rings = [*state["states"].values(), *state["final_states"].values()]
    assert sum(ring.nbytes for ring in rings) == 100 * 32
    assert 2 * env.reset().obs[0].nbytes == 672


@pytest.mark.parametrize("n_step", [1, 3])
def test_replay_bonus_is_worth_what_it_is_worth_when_it_is_sampled(n_step: int) -> None:
    env = make("blackjack", 6, 1)
    method = METHODS["modulate"](False, "cpu")
    replay = ReplayBuffer(60, env, method)
    step = env.reset()
    for at in range(20):
        action = sample_legal(step.action_mask, uniforms(at, 6))
        next_step = env.step(action)
        stored = {"advice": torch.zeros(6, 2), "followed": torch.zeros(6, dtype=torch.bool)}
        add(replay, step, action, next_step, **stored, bonus=2 * next_step.reward)
        step = next_step.as_initial()
    plain = replay.sample(bin_centers(40), n_step, 0.9)
    assert plain.reward.any()
    for strength in (0.0, 0.5, 1.0):
        method.strength.fill_(strength)
        shaped = replay.sample(bin_centers(40), n_step, 0.9)
        torch.testing.assert_close(shaped.reward, plain.reward * (1 + 2 * 0.2 * strength))
