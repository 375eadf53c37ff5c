"""The scripted tutor against the search whose moves it names, and against the chances its accuracy promises.

Shares are held against Hoeffding's bound: for n independent trials, each in [0, 1], a mean lies further
than sqrt(ln(2 / p) / 2n) from what is expected with probability p at most; p is 1e-9.
"""

import math

import pytest
import torch
from torch import Tensor

import envs
from envs.base import State, rows_of
from envs.connect4 import legal_columns
from envs.luck import Luck, pick
from envs.opponents import search
from tutors.scripted import ScriptedTutor, one_hot
from tutors.views import make_view

VIEW = make_view("connect4")
DEPTH = 2


def positions(num_envs: int = 400, steps: int = 12, every: int = 2) -> State:
    """Different canonical positions from random play, full columns among them."""
    env = envs.make("connect4", num_envs, seed=1, opponent="random")
    luck = Luck(2, torch.arange(num_envs), 9)
    step = env.reset()
    seen = []
    for number in range(steps):
        step = env.step(pick(step.legal, luck.draw(number, 1)[:, 0]))
        if number % every == 0:
            seen.append({name: tensor.clone() for name, tensor in env.state.items()})
    state, _ = VIEW.canonical({name: torch.cat([part[name] for part in seen]) for name in seen[0]})
    _, which = VIEW.key(state)[:, 0].unique(return_inverse=True)
    first = torch.zeros(which.max() + 1, dtype=torch.int64).scatter_(0, which, torch.arange(len(which)))
    return rows_of(state, first)


STATE = positions()
ROWS = len(STATE["mine"])
LEGAL = legal_columns(STATE["mine"] | STATE["theirs"])
VALUES = search(STATE["mine"], STATE["theirs"], DEPTH)
BEST = VALUES.amax(1, keepdim=True) == VALUES


def moves(accuracy: float, seed: int = 0, state: State = STATE) -> Tensor:
    advice = ScriptedTutor(VIEW, accuracy, DEPTH, seed).advise(state)
    return advice.probs.argmax(1)


def bound(trials: int) -> float:
    return math.sqrt(math.log(2 / 1e-9) / (2 * trials))


def share(chosen: Tensor) -> float:
    return chosen.float().mean().item()


def test_the_positions_can_tell_good_from_bad() -> None:
    assert ROWS > 1000
    assert not LEGAL.all(), "some columns are full"
    assert 0.1 < share((BEST & LEGAL).sum(1) / LEGAL.sum(1)) < 0.6


@pytest.mark.parametrize("accuracy", [0.0, 0.5, 1.0])
def test_advice_is_one_legal_action_for_every_row(accuracy: float) -> None:
    advice = ScriptedTutor(VIEW, accuracy, DEPTH).advise(STATE)
    assert advice.probs.dtype == torch.float32
    assert advice.given.dtype == torch.bool
    assert (advice.probs.sort(1).values == torch.tensor([0.0] * 6 + [1.0])).all(), "one-hot"
    assert advice.given.all()
    assert (advice.label_mass == 1).all()
    assert LEGAL.gather(1, advice.probs.argmax(1)[:, None]).all()


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_accuracy_1_always_names_a_best_move_of_the_search(depth: int) -> None:
    rows = rows_of(STATE, torch.arange(0, ROWS, 1 if depth < 4 else 20))
    action = ScriptedTutor(VIEW, 1.0, depth).advise(rows).probs.argmax(1)
    values = search(rows["mine"], rows["theirs"], depth).tolist()
    assert all(row[chosen] == max(row) for row, chosen in zip(values, action.tolist(), strict=True))


def test_of_several_best_moves_each_is_named_now_and_then() -> None:
    several = BEST.sum(1) > 1
    rank = (BEST.cumsum(1) - 1).gather(1, moves(1.0)[:, None])[:, 0]
    position = (rank / (BEST.sum(1) - 1))[several]  # 0: the leftmost of the best, 1: the rightmost
    assert abs(position.mean().item() - 0.5) < bound(len(position))
    assert {0.0, 1.0} <= set(position.tolist())


def test_accuracy_0_is_spread_evenly_over_the_legal_moves() -> None:
    action = moves(0.0)
    for count in (6, 7):  # each number of legal moves by itself
        rows = LEGAL.sum(1) == count
        assert rows.sum() > 50
        rank = (LEGAL.cumsum(1) - 1).gather(1, action[:, None])[rows, 0]
        for place in range(count):
            assert abs(share(rank == place) - 1 / count) < bound(int(rows.sum()))


def test_whether_it_is_right_says_nothing_about_what_else_it_names() -> None:
    action = moves(0.5)
    bad = LEGAL & ~BEST
    rows = bad.gather(1, action[:, None])[:, 0] & (bad.sum(1) > 1)
    rank = (bad.cumsum(1) - 1).gather(1, action[:, None])[:, 0]
    position = (rank / (bad.sum(1) - 1))[rows]  # 0: the leftmost of the bad moves, 1: the rightmost
    assert abs(position.mean().item() - 0.5) < bound(len(position))


@pytest.mark.parametrize("accuracy", [0.0, 0.25, 0.5, 0.9])
def test_a_best_move_is_named_as_often_as_the_accuracy_promises(accuracy: float) -> None:
    by_luck = share(BEST.sum(1) / LEGAL.sum(1))  # a random move may be a best one too
    named = share(BEST.gather(1, moves(accuracy)[:, None]))
    assert abs(named - (accuracy + (1 - accuracy) * by_luck)) < bound(ROWS)


def test_the_same_position_gets_the_same_answer_again() -> None:
    tutor = ScriptedTutor(VIEW, 0.5, DEPTH)
    first = tutor.advise(STATE).probs
    assert tutor.advise(STATE).probs.equal(first)
    assert ScriptedTutor(VIEW, 0.5, DEPTH).advise(STATE).probs.equal(first)


def test_the_rest_of_the_batch_does_not_matter() -> None:
    expected = moves(0.5)
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(0))
    assert moves(0.5, state=rows_of(STATE, order)).equal(expected[order])
    for row in range(0, ROWS, 97):
        assert moves(0.5, state=rows_of(STATE, torch.tensor([row]))).item() == expected[row]


def test_another_seed_is_wrong_elsewhere() -> None:
    wrong = [~BEST.gather(1, moves(0.5, seed)[:, None])[:, 0] for seed in (0, 1)]
    assert share(wrong[0]) > 0.2
    both = share(wrong[0] & wrong[1])
    # wrong in both: a random move twice, and a bad one twice, in each position by itself
    bad = 1 - BEST.sum(1) / LEGAL.sum(1)
    assert abs(both - (0.5 * bad).square().mean().item()) < bound(ROWS)


def test_a_more_accurate_tutor_is_right_wherever_a_less_accurate_one_was() -> None:
    less, more = moves(0.4), moves(0.8)
    assert BEST.gather(1, more[:, None])[less == moves(1.0)].all()


def test_the_identity_tells_tutors_apart() -> None:
    tutors = [
        ScriptedTutor(VIEW, 0.5, 2, 0),
        ScriptedTutor(VIEW, 0.6, 2, 0),
        ScriptedTutor(VIEW, 0.5, 3, 0),
        ScriptedTutor(VIEW, 0.5, 2, 1),
    ]
    assert len({tutor.identity for tutor in tutors}) == 4
    assert tutors[0].identity == ScriptedTutor(VIEW, 0.5, 2, 0).identity


@pytest.mark.parametrize("accuracy", [-0.1, 1.1, math.nan, math.inf])
def test_an_accuracy_out_of_range_is_refused(accuracy: float) -> None:
    with pytest.raises(ValueError, match="accuracy"):
        ScriptedTutor(VIEW, accuracy)


def test_every_row_asked_is_counted() -> None:
    tutor = ScriptedTutor(VIEW, 1.0, 1)
    tutor.advise(rows_of(STATE, torch.arange(5)))
    tutor.advise(rows_of(STATE, torch.arange(2)))
    assert tutor.stats["asked"] == 7


def test_asking_changes_no_position() -> None:
    before = {name: tensor.clone() for name, tensor in STATE.items()}
    moves(0.5)
    assert all(STATE[name].equal(before[name]) for name in before)


def test_one_hot_names_one_action_a_row() -> None:
    advice = one_hot(torch.tensor([2, 0]), 3)
    assert advice.probs.tolist() == [[0, 0, 1], [1, 0, 0]]
    assert advice.given.tolist() == [True, True]
    assert advice.label_mass.tolist() == [1, 1]
