"""The replay ring against a plain list of lived moments, searched one game and one moment at a time."""

import io
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from agents.guidance import METHODS
from agents.replay_buffer import Batch, ReplayBuffer
from envs import make
from envs.base import Env, Spec, State, Step, VecEnv
from envs.rng import sample_legal
from tests.helpers.probes import Walk

GAMES = 3


class Journey:
    """A number from a random start that grows by 1; every third game ends by luck, a clock of four steps the others.

    The number is not seen as it is kept: the state has two ranks and three types.
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
class Lived:
    """One moment of one game, in Python's own numbers; `last` is where the action led."""

    seen: list
    action: int
    reward: float
    terminated: bool
    truncated: bool
    last: list
    last_legal: list


def moments_of(step: Step, action: Tensor, after: Step) -> list[Lived]:
    columns = (
        step.obs,
        action,
        after.reward,
        after.terminated,
        after.truncated,
        after.final_obs,
        after.final_action_mask,
    )
    return [Lived(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def live(replay: ReplayBuffer, env: Env, moments: int, step: Step | None = None, seed: int = 0) -> tuple[list, Step]:
    """Play at random; return the moments lived, [moment][game], and the last step."""
    chance = torch.Generator().manual_seed(seed)
    step, lived = env.reset() if step is None else step, []
    for _ in range(moments):
        action = torch.randint(0, env.spec.num_actions, (env.num_envs,), generator=chance)
        after = env.step(action)
        replay.add(step, action, after)
        lived.append(moments_of(step, action, after))
        step = after
    return lived, step


def by_definition(lived: list, first: int, game: int, n_step: int, gamma: float) -> tuple[list, list]:
    """(numbers, places): what n steps from there bring, fewer where the game ends on the way."""
    reward, discount = 0.0, 1.0
    for moment in range(first, first + n_step):
        one = lived[moment][game]
        reward += discount * one.reward
        discount *= gamma
        if one.terminated:
            discount = 0.0
        if one.terminated or one.truncated:
            break
    start = lived[first][game]
    return [reward, discount], [start.seen, start.action, one.last, one.last_legal]


def rows_of(batch: Batch) -> list[tuple[list, list]]:
    columns = (batch.reward, batch.discount, batch.obs, batch.action, batch.next_obs, batch.next_action_mask)
    return [(list(row[:2]), list(row[2:])) for row in zip(*(column.tolist() for column in columns), strict=True)]


def evenly(numbers: int) -> Tensor:
    """The middles of as many equal parts of [0, 1)."""
    return (torch.arange(numbers) + 0.5) / numbers


def assert_alike(ours: list, theirs: list) -> None:
    """Equal as sets of rows: what was seen, done and reached to the bit, sums of rewards but for rounding."""
    ours, theirs = (sorted(rows, key=lambda row: str(row[1])) for rows in (ours, theirs))
    assert [places for _, places in ours] == [places for _, places in theirs]
    for (numbers, _), (expected, _) in zip(ours, theirs, strict=True):
        assert numbers == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(("gamma", "n_step"), [(0.9, 1), (0.9, 2), (0.5, 3), (1.0, 3), (0.0, 3), (0.9, 7)])
@pytest.mark.parametrize(
    ("buffer_size", "moments"),
    [(30, 7), (30, 10), (30, 11), (30, 23), (30, 40), (32, 23), (21, 33), (300, 90), (90, 200)],
)
def test_what_is_sampled_is_what_was_lived_in_the_latest_moments_and_each_equally_often(
    buffer_size: int, moments: int, gamma: float, n_step: int
) -> None:
    """The newest n - 1 moments never begin; what the ring has written over is gone."""
    env = VecEnv(Journey(), GAMES, seed=2)
    replay = ReplayBuffer(buffer_size, env)
    lived, _ = live(replay, env, moments)
    oldest = max(0, moments - buffer_size // GAMES)
    firsts = [(first, game) for first in range(oldest, moments - n_step + 1) for game in range(GAMES)]
    expected = [by_definition(lived, first, game, n_step, gamma) for first, game in firsts]
    found = rows_of(replay.sample(evenly(4 * len(expected)), n_step, gamma))
    assert_alike(found, expected * 4)


def test_the_journeys_of_these_tests_end_in_every_way_and_at_every_distance() -> None:
    env = VecEnv(Journey(), GAMES, seed=2)
    lived, _ = live(ReplayBuffer(300, env), env, 90)
    ends = {
        (how, next((k for k in range(7) if getattr(lived[first + k][game], how)), None))
        for first in range(80)
        for game in range(GAMES)
        for how in ("terminated", "truncated")
    }
    assert {(how, distance) for how in ("terminated", "truncated") for distance in range(4)} <= ends
    assert len({str(one.seen) for moment in lived for one in moment}) == 90 * GAMES, "each moment has a look of its own"


def test_a_sample_has_the_types_of_a_batch() -> None:
    env = VecEnv(Journey(), GAMES)
    replay = ReplayBuffer(30, env)
    live(replay, env, 5)
    batch = replay.sample(evenly(8), 2, 0.9)
    assert batch.obs.shape == batch.next_obs.shape == (8, 2, 2)
    assert batch.next_action_mask.shape == (8, 3)
    assert batch.action.shape == batch.reward.shape == batch.discount.shape == (8,)
    assert [column.dtype for column in batch[:7]] == [
        torch.float32, torch.int64, *[torch.float32] * 3, torch.bool, torch.bool
    ]  # fmt: skip


def test_the_ends_of_the_luck_are_written_rows() -> None:
    env = VecEnv(Journey(), GAMES)
    replay = ReplayBuffer(30, env)
    lived, _ = live(replay, env, 4)
    ends = rows_of(replay.sample(torch.tensor([0.0, 1 - 2.0**-24]), 2, 0.9))
    assert_alike(ends[:1], [by_definition(lived, 0, 0, 2, 0.9)])
    assert_alike(ends[1:], [by_definition(lived, 2, GAMES - 1, 2, 0.9)])


def test_of_one_moment_every_game_is_to_be_had() -> None:
    env = VecEnv(Journey(), 1000)
    replay = ReplayBuffer(1000, env)
    lived, _ = live(replay, env, 3)
    assert_alike(
        rows_of(replay.sample(evenly(1000), 1, 0.9)), [by_definition(lived, 2, game, 1, 0.9) for game in range(1000)]
    )


def test_what_comes_next_after_a_truncated_game_is_its_last_position_and_not_the_fresh_deal() -> None:
    env = VecEnv(Walk(), 4, seed=1)
    replay = ReplayBuffer(100, env)
    live(replay, env, 9)
    batch = replay.sample(evenly(36), 1, 0.9)
    led_to = batch.obs[:, 0] + 1 + batch.action
    assert batch.next_obs[:, 0].equal(led_to)
    assert batch.reward.equal(led_to)
    assert (batch.next_obs[:, 1] == 3).sum() == 12, "the clock ran out three times in four games"
    assert batch.discount.tolist() == pytest.approx([0.9] * 36), "a game cut short has a future"
    for clock in (1, 2, 3):
        action_mask = batch.next_action_mask[batch.next_obs[:, 1] == clock]
        assert (action_mask == torch.tensor([(clock + action) % 3 != 1 for action in range(2)])).all()


def test_sampling_changes_nothing() -> None:
    env = VecEnv(Journey(), GAMES)
    replay = ReplayBuffer(30, env)
    live(replay, env, 12)
    before = through_a_file(replay.state_dict())
    one, other = (replay.sample(evenly(50), 3, 0.9) for _ in range(2))
    assert all(a.equal(b) for a, b in zip(one[:7], other[:7], strict=True))
    for column in one[:7]:
        column.zero_()
    assert str(through_a_file(replay.state_dict())) == str(before)


def test_a_ring_survives_saving_and_goes_on() -> None:
    env, elsewhere = VecEnv(Journey(), GAMES, seed=4), VecEnv(Journey(), GAMES, seed=5)
    replay, other = ReplayBuffer(30, env), ReplayBuffer(30, elsewhere)
    _, step = live(replay, env, 14)
    live(other, elsewhere, 3)
    other.load_state_dict(through_a_file(replay.state_dict()))
    for _ in range(12):
        ours, theirs = (ring.sample(evenly(40), 3, 0.9) for ring in (other, replay))
        assert all(a.equal(b) for a, b in zip(ours[:7], theirs[:7], strict=True))
        action = torch.zeros(GAMES, dtype=torch.int64)
        after = env.step(action)
        for ring in (replay, other):
            ring.add(step, action, after)
        step = after


def test_a_ring_never_moves() -> None:
    env = VecEnv(Journey(), GAMES)
    replay = ReplayBuffer(30, env)

    def places() -> list[int]:
        state = replay.state_dict()
        kinds = ("states", "final_states", "extras")
        parts = [part for kind in kinds for part in state.pop(kind).values()] + list(state.values())
        return [part.data_ptr() for part in parts]

    before = places()
    assert len(set(before)) == len(before)
    live(replay, env, 23)
    replay.load_state_dict(through_a_file(replay.state_dict()))
    assert places() == before


def test_what_a_method_keeps_comes_back_with_its_moment_and_survives_saving() -> None:
    """Each game's mark is the number of its moment; targets of two steps belong to the first."""
    env = VecEnv(Journey(), GAMES)
    replay, other = (ReplayBuffer(30, env, {"mark": ((2,), torch.int64)}) for _ in range(2))
    step, seen = env.reset(), {}
    for moment in range(9):
        action = torch.zeros(GAMES, dtype=torch.int64)
        marks = torch.stack([torch.arange(GAMES), torch.full((GAMES,), moment)], 1)
        seen |= {(game, moment): step.obs[game].tolist() for game in range(GAMES)}
        after = env.step(action)
        replay.add(step, action, after, {"mark": marks})
        step = after
    other.load_state_dict(through_a_file(replay.state_dict()))
    for ring in (replay, other):
        batch = ring.sample(evenly(60), 2, 0.9)
        assert [seen[game, moment] for game, moment in batch.extras["mark"].tolist()] == batch.obs.tolist()


@pytest.mark.parametrize("n_step", [1, 2, 3])
@pytest.mark.parametrize("moments", [6, 27])
def test_what_is_kept_of_the_moment_after_the_last_one_is_zeros_where_there_is_none(n_step: int, moments: int) -> None:
    """None: the game ended before, or nobody has been there yet."""
    env = VecEnv(Journey(), GAMES)
    replay = ReplayBuffer(30, env, {"mark": ((2,), torch.int64)})
    step, ended = env.reset(), []
    for moment in range(moments):
        action = torch.zeros(GAMES, dtype=torch.int64)
        after = env.step(action)
        marks = torch.stack([torch.arange(GAMES), torch.full((GAMES,), moment)], 1)
        replay.add(step, action, after, {"mark": marks})
        ended.append((after.terminated | after.truncated).tolist())
        step = after
    batch = replay.sample(evenly(300), n_step, 0.9)
    nobody = 0
    for (game, moment), found in zip(batch.extras["mark"].tolist(), batch.next_extras["mark"].tolist(), strict=True):
        there = moment + n_step < moments and not any(ended[at][game] for at in range(moment, moment + n_step))
        assert found == ([game, moment + n_step] if there else [0, 0])
        nobody += not there
    assert 0 < nobody < 300


def test_two_boards_of_connect_four_are_32_bytes_where_two_observations_are_672() -> None:
    env = make("connect4", 5)
    state = ReplayBuffer(100, env).state_dict()
    kept = [*state["states"].values(), *state["final_states"].values()]
    assert sum(ring.nbytes for ring in kept) == 100 * 32
    assert 2 * env.reset().obs[0].nbytes == 672


def through_a_file(state: dict) -> dict:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("n_step", [1, 3])
def test_a_bonus_is_paid_as_it_is_worth_when_it_is_learned_from(n_step: int) -> None:
    env = make("blackjack", 6, 1)
    replay = ReplayBuffer(60, env, {"bonus": ((), torch.float32)})
    method = METHODS["modulate"](False, "cpu")
    step = env.reset()
    for turn in range(20):
        action = sample_legal(step.action_mask, torch.rand(6, generator=torch.manual_seed(turn)))
        after = env.step(action)
        replay.add(step, action, after, {"bonus": 2 * after.reward})
        step = after.as_initial()
    plain = replay.sample(evenly(40), n_step, 0.9)
    assert plain.reward.any()
    for strength in (0.0, 0.5, 1.0):
        method.strength.fill_(strength)
        felt = replay.sample(evenly(40), n_step, 0.9, method.felt)
        torch.testing.assert_close(felt.reward, plain.reward * (1 + 2 * 0.2 * strength))
