"""Sampled positions against the rules of the games, plain counts and the chances of a fair draw."""

import math
from collections import Counter

import pytest
import torch
from torch import Tensor

import envs
from envs.base import State, VecEnv, num_rows
from envs.opponents import search
from envs.snake import EMPTY, HEAD
from tests.helpers.echo_view import EchoView
from tests.helpers.probes import Echo
from tests.helpers.views import EVERY_VIEW
from tutors.positions import (
    NUM_ENVS,
    best_actions,
    expert_actions,
    mixed_play,
    most_visited,
    sample_positions,
    unique_rows,
)
from tutors.prompts import make_view
from tutors.prompts.base import PromptView

NUM_POSITIONS = {"blackjack": 280, "gym:FrozenLake8x8-v1": 52}  # hands; of 53 fields one is hardly ever reached
OPTIONS = {"snake": {"size": 6}}  # on 12 x 12 cells the expert's search is slow


def some(game: str, name: str, count: int, seed: int = 3) -> tuple[PromptView, State]:
    env = envs.make(game, 64, seed, **OPTIONS.get(game, {}))
    view = make_view(env.game, name)
    return view, sample_positions(env, view, count, seed)


def keys_of(view: PromptView, state: State) -> list[tuple[int, ...]]:
    return [tuple(key) for key in view.key(view.canonicalize(state)[0]).tolist()]


def test_unique_rows_finds_the_first_row_of_each_key() -> None:
    keys = torch.tensor([[3, 1], [2, 9], [3, 1], [3, 0], [2, 9]])
    distinct, inverse, first = unique_rows(keys)
    assert distinct.tolist() == [[2, 9], [3, 0], [3, 1]]
    assert inverse.tolist() == [2, 0, 2, 1, 0]
    assert first.tolist() == [1, 3, 0]


@pytest.mark.parametrize(("game", "name"), EVERY_VIEW)
def test_sampled_positions_are_distinct_playable_and_reproducible(game: str, name: str) -> None:
    count = 20 if name == "local" else 300
    view, state = some(game, name, count)
    rows = num_rows(state)
    assert rows == min(count, NUM_POSITIONS.get(game, count))
    keys = keys_of(view, state)
    assert len(set(keys)) == rows
    env = envs.make(game, 1, **OPTIONS.get(game, {}))
    action_mask = env.game.observe(state)[1]
    assert action_mask.any(1).all()
    canonical, transform = view.canonicalize(state)
    assert torch.equal(action_mask, view.action_mask(canonical).gather(1, view.symmetry[transform]))
    for part, tensor in some(game, name, count)[1].items():
        assert torch.equal(tensor, state[part])
    if name in ("board", "full"):
        assert len(set(keys) & set(keys_of(view, some(game, name, count, seed=4)[1]))) < 150


def test_no_sampled_position_is_terminal() -> None:
    _, state = some("connect4", "board", 500)
    for mine, theirs in zip(state["mine"].tolist(), state["theirs"].tolist(), strict=True):
        cells = [{(b // 7, b % 7) for b in range(49) if board >> b & 1} for board in (mine, theirs)]
        for discs in cells:
            for column, row in discs:
                for right, up in ((0, 1), (1, 0), (1, 1), (1, -1)):
                    assert any((column + right * i, row + up * i) not in discs for i in range(4))
        assert len(cells[0] | cells[1]) < 42
        assert len(cells[1]) - len(cells[0]) in (0, 1)


def test_sampled_positions_come_from_whole_episodes() -> None:
    _, state = some("connect4", "board", 500)
    discs = [bin(mine | theirs).count("1") for mine, theirs in zip(*(s.tolist() for s in state.values()), strict=True)]
    assert min(discs) < 8
    assert max(discs) > 25
    _, snakes = some("snake", "full", 300)
    view = make_view(envs.make_game("snake", **OPTIONS["snake"]), "full")
    board = view.canonicalize(snakes)[0]["board"]
    lengths = ((board < EMPTY) | (board == HEAD)).flatten(1).sum(1)
    assert lengths.max() > 12
    assert (lengths < 6).any()


def test_all_visited_positions_are_equally_likely_to_be_sampled() -> None:
    view, everything = some("blackjack", "table", 10_000)
    keys = keys_of(view, everything)
    assert len(keys) == 280
    drawn = Counter(key for seed in range(15) for key in keys_of(view, some("blackjack", "table", 40, seed)[1]))
    assert sum(drawn.values()) == 600
    expected = 600 / 280
    chi2 = sum((drawn[key] - expected) ** 2 / expected for key in keys)
    assert chi2 < 279 + 5 * math.sqrt(2 * 279)


def test_half_of_the_actions_of_mixed_play_are_the_expert_s() -> None:
    class Watched(VecEnv):
        right, played = 0, 0

        def step(self, action: Tensor):
            self.right += int((action == self.state["hidden"]).sum())
            self.played += len(action)
            return super().step(action)

    env = Watched(Echo(4), NUM_ENVS, 1)
    view = EchoView(Echo(4))
    view.walls = False
    assert sorted(sample_positions(env, view, 3, 1)["hidden"].tolist()) != []
    assert env.right / env.played == pytest.approx(1 / 2 + 1 / 2 / 4, abs=0.01)


def test_expert_actions_are_the_env_s_own_under_symmetry() -> None:
    view, state = some("connect4", "board", 300)
    values = search(state["mine"], state["theirs"], 2)
    assert view.canonicalize(state)[1].sum() > 50
    assert torch.equal(expert_actions(view, state), values == values.amax(1, keepdim=True))


def test_best_actions_are_all_legal_ones_of_the_largest_value() -> None:
    values = torch.tensor([[9, 1, 1, 0], [2, 2, 2, 3]])
    action_mask = torch.tensor([[False, True, True, True], [True] * 4])
    assert best_actions(values, action_mask).tolist() == [[False, True, True, False], [False, False, False, True]]


def test_most_visited_positions_are_those_of_a_plain_count() -> None:
    env = envs.make("connect4", NUM_ENVS, 3)
    view = make_view(env.game)
    found = most_visited(env, view, 50, mixed_play(env, view, 3))
    env = envs.make("connect4", NUM_ENVS, 3)
    counts: Counter[int] = Counter()
    for turn, state in enumerate(mixed_play(env, view, 3)):
        if turn == 100:  # rounds end at whole hundreds, and 25,600 are five thousand or more
            break
        counts.update(view.key(view.canonicalize(state)[0])[:, 0].tolist())
    keys = view.key(view.canonicalize(found)[0])[:, 0].tolist()
    assert len(set(keys)) == 50
    assert sorted((counts[key] for key in keys), reverse=True) == [count for _, count in counts.most_common(50)]
    assert [counts[key] for key in keys] == sorted((counts[key] for key in keys), reverse=True)


@pytest.mark.parametrize("seed", [1, 2])
def test_small_game_is_visited_completely_and_cut_to_the_limit(seed: int) -> None:
    env = envs.make("blackjack", NUM_ENVS, seed)
    view = make_view(env.game)
    assert num_rows(most_visited(env, view, 281, mixed_play(env, view, seed))) == 280
    assert num_rows(most_visited(env, view, 7, mixed_play(env, view, seed))) == 7
