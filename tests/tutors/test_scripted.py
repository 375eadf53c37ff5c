"""The scripted tutor of every view against the view's values, and against the chances its accuracy promises.

Shares are held against Hoeffding's bound: for n independent trials, each in [0, 1], a mean lies further
than sqrt(ln(2 / p) / 2n) from what is expected with probability p at most; p is 1e-9. A trial is one position
asked with one seed; a view that tells few positions apart is asked with many seeds.
"""

import functools
import math
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import envs
from envs.base import State, num_rows, select_rows
from envs.opponents import search
from envs.rng import CounterRNG, sample_legal
from tests.helpers.echo_view import EchoView
from tests.helpers.probes import Echo
from tests.helpers.views import EVERY_VIEW
from tutors import TutorConfig, open_advisor
from tutors.prompts import make_view
from tutors.prompts.base import PromptView
from tutors.scripted import ScriptedTutor, one_hot
from tutors.store.identity import digest_of, identity_of

OPTIONS = {"connect4": {"opponent": "random"}, "snake": {"size": 6}}
DEPTH = 2
ALL_LEGAL = ("blackjack", "gym:FrozenLake8x8-v1")  # games in which every action is legal everywhere
TRIALS = 3000


class Case(NamedTuple):
    """Different canonical positions from play, and the expert's values of their actions."""

    view: PromptView
    state: State
    rows: int
    seeds: int
    action_mask: Tensor
    best: Tensor

    def moves(self, accuracy: float, seed: int = 0, state: State | None = None) -> Tensor:
        """The named actions, (rows,); of all positions unless others are given."""
        positions = self.state if state is None else state
        return ScriptedTutor(self.view, accuracy, DEPTH, seed).advise(positions).probs.argmax(1)

    def trials(self, accuracy: float) -> Tensor:
        """The named actions with one seed after the other, (seeds * rows,)."""
        return torch.cat([self.moves(accuracy, seed) for seed in range(self.seeds)])

    def each(self, tensor: Tensor) -> Tensor:
        """The same for every seed."""
        return tensor.repeat(self.seeds, 1)

    @property
    def bad(self) -> Tensor:
        return self.action_mask & ~self.best


@functools.cache
def case_of(game_name: str, name: str, num_envs: int = 400, steps: int = 24) -> Case:
    """Positions of random play, snakes of two cells and full columns among them."""
    env = envs.make(game_name, num_envs, 1, **OPTIONS.get(game_name, {}))
    view, rng = make_view(env.game, name), CounterRNG(2, torch.arange(num_envs), 9)
    step = env.reset()
    seen = []
    for number in range(steps):
        step = env.step(sample_legal(step.action_mask, rng.uniform(number, 1)[:, 0]))
        if number % 2 == 0:
            seen.append(view.canonicalize(env.state)[0])
    state = {key: torch.cat([part[key] for part in seen]) for key in seen[0]}
    _, which = view.key(state).unique(dim=0, return_inverse=True)
    first = torch.zeros(which.max() + 1, dtype=torch.int64).scatter_(0, which, torch.arange(len(which)))
    state = select_rows(state, first)
    action_mask = view.action_mask(state)
    values = view.expert_values(state, DEPTH).double().masked_fill(~action_mask, -torch.inf)
    rows = num_rows(state)
    return Case(view, state, rows, -(-TRIALS // rows), action_mask, values == values.amax(1, keepdim=True))


@pytest.fixture(params=EVERY_VIEW, ids="-".join)
def case(request: pytest.FixtureRequest) -> Case:
    return case_of(*request.param)


@pytest.fixture
def connect4() -> Case:
    return case_of("connect4", "board")


def bound(trials: int) -> float:
    return math.sqrt(math.log(2 / 1e-9) / (2 * trials))


def share(chosen: Tensor) -> float:
    return chosen.double().mean().item()


def chosen_of(allowed: Tensor, action: Tensor) -> Tensor:
    """Whether each row's action is allowed."""
    return allowed.gather(1, action[:, None])[:, 0]


def place_in(allowed: Tensor, action: Tensor) -> Tensor:
    """Where each row's action lies between its leftmost allowed one (0) and its rightmost (1), if there are several."""
    rank = (allowed.cumsum(1) - 1).gather(1, action[:, None])[:, 0]
    return (rank / (allowed.sum(1) - 1))[chosen_of(allowed, action) & (allowed.sum(1) > 1)]


def test_the_positions_can_tell_good_from_bad(case: Case) -> None:
    assert case.rows > 20
    assert 0.1 < share(case.best.sum(1) / case.action_mask.sum(1)) < 0.7
    assert not case.action_mask.all() or case.view.game in ALL_LEGAL, "some actions are illegal"


@pytest.mark.parametrize("accuracy", [0.0, 0.5, 1.0])
def test_advice_is_one_legal_action_for_every_row(case: Case, accuracy: float) -> None:
    advice = ScriptedTutor(case.view, accuracy, DEPTH).advise(case.state)
    assert advice.probs.dtype == torch.float32
    assert advice.valid.dtype == torch.bool
    assert advice.probs.shape == case.action_mask.shape
    assert (advice.probs.sort(1).values[:, :-1] == 0).all()
    assert (advice.probs.amax(1) == 1).all()
    assert advice.valid.all()
    assert (advice.label_mass == 1).all()
    assert chosen_of(case.action_mask, advice.probs.argmax(1)).all()


def test_accuracy_1_always_names_a_best_action(case: Case) -> None:
    for seed in range(3):
        assert chosen_of(case.best, case.moves(1.0, seed)).all()


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_accuracy_1_names_a_best_disc_of_a_search_of_that_depth(connect4: Case, depth: int) -> None:
    rows = select_rows(connect4.state, torch.arange(0, connect4.rows, 1 if depth < 4 else 20))
    action = ScriptedTutor(connect4.view, 1.0, depth).advise(rows).probs.argmax(1)
    values = search(rows["mine"], rows["theirs"], depth).tolist()
    assert all(row[chosen] == max(row) for row, chosen in zip(values, action.tolist(), strict=True))


def test_of_several_best_moves_each_is_named_now_and_then(case: Case) -> None:
    place = place_in(case.each(case.best), case.trials(1.0))
    if len(place) == 0:
        assert case.view.game == "blackjack", "no two actions are worth the same"
        return
    assert abs(place.mean().item() - 0.5) < bound(len(place))
    assert {0.0, 1.0} <= set(place.tolist())


def test_accuracy_0_is_spread_evenly_over_the_legal_moves(case: Case) -> None:
    action, action_mask = case.trials(0.0), case.each(case.action_mask)
    counts = [count for count in range(1, 8) if (action_mask.sum(1) == count).sum() > 200]
    assert counts
    for count in counts:  # each number of legal moves by itself
        rows = action_mask.sum(1) == count
        rank = (action_mask.cumsum(1) - 1).gather(1, action[:, None])[rows, 0]
        for place in range(count):
            assert abs(share(rank == place) - 1 / count) < bound(int(rows.sum()))


def test_whether_it_is_right_says_nothing_about_what_else_it_names(case: Case) -> None:
    place = place_in(case.each(case.bad), case.trials(0.5))
    if len(place) == 0:
        assert case.view.game == "blackjack", "there is only one bad action"
        return
    assert abs(place.mean().item() - 0.5) < bound(len(place))


@pytest.mark.parametrize("accuracy", [0.0, 0.25, 0.5, 0.9])
def test_a_best_move_is_named_as_often_as_the_accuracy_promises(case: Case, accuracy: float) -> None:
    by_luck = share(case.best.sum(1) / case.action_mask.sum(1))  # a random move may be a best one too
    named = chosen_of(case.each(case.best), case.trials(accuracy))
    assert abs(share(named) - (accuracy + (1 - accuracy) * by_luck)) < bound(len(named))


def test_the_same_question_gets_the_same_answer_again(case: Case) -> None:
    tutor = ScriptedTutor(case.view, 0.5, DEPTH)
    first = tutor.advise(case.state).probs
    assert tutor.advise(case.state).probs.equal(first)
    assert ScriptedTutor(case.view, 0.5, DEPTH).advise(case.state).probs.equal(first)


def test_a_stochastic_tutor_errs_elsewhere_each_time_and_as_often(case: Case) -> None:
    tutor = ScriptedTutor(case.view, 0.5, DEPTH, stochastic=True)
    times = [chosen_of(case.best, tutor.advise(case.state).probs.argmax(1)) for _ in range(20)]
    by_luck = share(case.best.sum(1) / case.action_mask.sum(1))
    assert abs(share(torch.stack(times)) - (0.5 + 0.5 * by_luck)) < bound(20 * case.rows)
    both = (0.5 + 0.5 * case.best.sum(1) / case.action_mask.sum(1)).square().mean().item()
    assert abs(share(torch.stack(times[1:]) & times[0]) - both) < 2 * bound(case.rows), (
        "two times know nothing of each other"
    )
    sure = ScriptedTutor(case.view, 1.0, DEPTH, stochastic=True)
    assert chosen_of(case.best, sure.advise(case.state).probs.argmax(1)).all()


def test_a_stochastic_tutor_goes_on_where_its_count_of_questions_says(case: Case) -> None:
    first, second = (ScriptedTutor(case.view, 0.5, DEPTH, stochastic=True) for _ in range(2))
    first.advise(case.state)
    second.stats.update(first.stats)
    assert first.advise(case.state).probs.equal(second.advise(case.state).probs)


def test_the_rest_of_the_batch_does_not_matter(case: Case) -> None:
    expected = case.moves(0.5)
    order = torch.randperm(case.rows, generator=torch.Generator().manual_seed(0))
    assert case.moves(0.5, state=select_rows(case.state, order)).equal(expected[order])
    for row in range(0, case.rows, 97):
        assert case.moves(0.5, state=select_rows(case.state, torch.tensor([row]))).item() == expected[row]


def test_another_seed_is_wrong_elsewhere(case: Case) -> None:
    """Wrong with both of two seeds: a random move twice, and a bad one twice, in each position by itself."""
    wrong = ~chosen_of(case.each(case.best), case.trials(0.5)).view(case.seeds, case.rows)
    following = ~torch.stack([chosen_of(case.best, case.moves(0.5, seed)) for seed in range(1000, 1000 + case.seeds)])
    assert share(wrong) > 0.1
    bad = 1 - case.best.sum(1) / case.action_mask.sum(1)
    assert abs(share(wrong & following) - (0.5 * bad).square().mean().item()) < bound(wrong.numel())


def test_a_more_accurate_tutor_is_right_wherever_a_less_accurate_one_was(case: Case) -> None:
    less, more = case.moves(0.4), case.moves(0.8)
    assert chosen_of(case.best, more)[less == case.moves(1.0)].all()


def test_the_identity_tells_tutors_apart(connect4: Case) -> None:
    view = connect4.view
    tutors = [
        ScriptedTutor(view, 0.5, 2, 0),
        ScriptedTutor(view, 0.6, 2, 0),
        ScriptedTutor(view, 0.5, 3, 0),
        ScriptedTutor(view, 0.5, 2, 1),
        ScriptedTutor(view, 0.5, 2, 0, stochastic=True),
    ]
    assert len({str(tutor.identity) for tutor in tutors}) == 5
    assert tutors[0].identity == ScriptedTutor(view, 0.5, 2, 0).identity


def test_a_tutor_that_names_all_best_gives_them_equal_shares(case: Case) -> None:
    advice = ScriptedTutor(case.view, 1.0, DEPTH, names_all=True).advise(case.state)
    for row in range(case.rows):
        best = case.best[row].tolist()
        assert advice.probs[row].tolist() == pytest.approx([one / sum(best) for one in best])
    assert advice.valid.all()
    assert (advice.label_mass == 1).all()
    several = case.best.sum(1) > 1
    assert several.any() or case.view.game == "blackjack", "no two actions are worth the same"


def test_a_tutor_that_names_all_best_errs_where_the_plain_one_does_and_as_that(case: Case) -> None:
    for seed in range(3):
        plain = ScriptedTutor(case.view, 0.5, DEPTH, seed).advise(case.state).probs
        found = ScriptedTutor(case.view, 0.5, DEPTH, seed, names_all=True).advise(case.state).probs
        wrong = ~chosen_of(case.best, plain.argmax(1))
        assert wrong.any()
        assert found[wrong].equal(plain[wrong])
        assert (found > 0)[plain > 0].all(), "what the plain one names is among them"
        shares = case.best / case.best.sum(1, keepdim=True)
        assert ((found == plain) | (found == shares)).all()


def test_answers_that_name_all_best_are_stored_apart(connect4: Case) -> None:
    view = connect4.view
    game = envs.make_game("connect4")
    plain, names_all = (ScriptedTutor(view, 0.5, 2, names_all=flag) for flag in (False, True))
    digests = {digest_of(identity_of(game.spec, view, tutor.identity))[0] for tutor in (plain, names_all)}
    assert len(digests) == 2
    assert "names_all" not in plain.identity, "what earlier versions stored is found"


@pytest.mark.parametrize("names_all", [False, True])
def test_tutor_all_best_is_an_option_of_a_run(names_all: bool, tmp_path: Path) -> None:
    config = TutorConfig("scripted", tutor_depth=1, tutor_all_best=names_all)
    game = envs.make_game("connect4")
    state = game.reset(torch.full((1, game.spec.num_reset_uniforms), 0.2))
    with open_advisor(config, game, 0, tmp_path, "cpu") as advisor:
        assert advisor is not None
        probs = advisor.advise(state, torch.ones(1, dtype=torch.bool)).probs
        assert advisor.tutor.identity.get("names_all", False) == names_all
    assert float(probs.sum()) == pytest.approx(1)


@pytest.mark.parametrize("accuracy", [-0.1, 1.1, math.nan, math.inf])
def test_an_accuracy_out_of_range_is_refused(case: Case, accuracy: float) -> None:
    with pytest.raises(ValueError, match="accuracy"):
        ScriptedTutor(case.view, accuracy)


@pytest.mark.parametrize("depth", [0, -1])
def test_a_search_that_looks_nowhere_is_refused(connect4: Case, depth: int) -> None:
    with pytest.raises(ValueError, match=f"{depth}; it must be at least 1"):
        ScriptedTutor(connect4.view, 1.0, depth)


def test_every_row_asked_is_counted(case: Case) -> None:
    tutor = ScriptedTutor(case.view, 1.0, 1)
    tutor.advise(select_rows(case.state, torch.arange(5)))
    tutor.advise(select_rows(case.state, torch.arange(2)))
    assert tutor.stats["asked"] == 7


def test_asking_changes_no_position(case: Case) -> None:
    before = {name: tensor.clone() for name, tensor in case.state.items()}
    case.moves(0.5)
    assert all(case.state[name].equal(before[name]) for name in before)


def test_one_hot_names_one_action_a_row() -> None:
    advice = one_hot(torch.tensor([2, 0]), 3)
    assert advice.probs.tolist() == [[0, 0, 1], [1, 0, 0]]
    assert advice.valid.tolist() == [True, True]
    assert advice.label_mass.tolist() == [1, 1]


def test_scripted_tutor_names_no_illegal_action_whatever_its_value() -> None:
    class Greedy(EchoView):
        def expert_values(self, state: State, depth: int) -> Tensor:
            return torch.tensor([[9.0, -1.0, -2.0, -3.0]]).expand(num_rows(state), 4)

        def action_mask(self, state: State) -> Tensor:
            return torch.tensor([[False, True, True, True]]).expand(num_rows(state), 4)

    advice = ScriptedTutor(Greedy(Echo(4)), 1.0, 1, seed=0).advise({"hidden": torch.zeros(5, dtype=torch.int64)})
    assert advice.probs.argmax(1).tolist() == [1] * 5
