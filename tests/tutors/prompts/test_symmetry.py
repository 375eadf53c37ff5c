"""Views without symmetry, against the same positions with symmetry and against the games.

That a mirrored board is a question of its own is what makes the gain of symmetry measurable.
"""

import math
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

import envs
from envs.base import Env, State, cat_states, num_rows, select_rows
from envs.connect4 import draw, mirror
from envs.rng import CounterRNG, sample_legal
from tests.helpers.views import EVERY_VIEW, game_of
from tutors.advice_table import AdviceTable
from tutors.advisor import Advisor
from tutors.prompts import make_view
from tutors.prompts.base import PromptView
from tutors.recorded import RecordedTutor
from tutors.scripted import ScriptedTutor
from tutors.store import AdviceStore, identity_of

WITH_SYMMETRY = [(game, name) for game, name in EVERY_VIEW if game in ("connect4", "snake")]
OPTIONS = {"connect4": {"opponent": "random"}, "snake": {"size": 6}}
STEPS, NUM_ENVS, DEPTH = 30, 64, 2


def played(game_name: str) -> tuple[Env, State, Tensor, Tensor]:
    """(env, positions of random play, what is legal there, what is seen)."""
    env = envs.make(game_name, NUM_ENVS, 3, **OPTIONS.get(game_name, {}))
    rng, step, seen = CounterRNG(4, torch.arange(NUM_ENVS), 9), env.reset(), []
    for number in range(STEPS):
        seen.append((step.state, step.action_mask, step.obs))
        step = env.step(sample_legal(step.action_mask, rng.uniform(number, 1)[:, 0]))
    states, action_masks, obs = zip(*seen, strict=True)
    state = cat_states(states)
    return env, state, torch.cat(action_masks), torch.cat(obs)


def keys_of(view: PromptView, state: State) -> list[tuple[int, ...]]:
    return [tuple(key) for key in view.key(view.canonicalize(state)[0]).tolist()]


def both(game_name: str, name: str) -> tuple[PromptView, PromptView]:
    game = game_of(game_name, **OPTIONS.get(game_name, {}))
    return make_view(game, name), make_view(game, name, symmetry=False)


@pytest.mark.parametrize(("game_name", "name"), EVERY_VIEW)
def test_a_position_is_told_as_it_lies(game_name: str, name: str) -> None:
    _, state, action_mask, _ = played(game_name)
    _, view = both(game_name, name)
    canonical, transform = view.canonicalize(state)
    assert transform.dtype == torch.int64
    assert not transform.any()
    assert view.symmetry.tolist() == [list(range(action_mask.shape[1]))]
    assert view.action_mask(canonical).equal(action_mask)
    words, keys = view.render(canonical), [tuple(key) for key in view.key(canonical).tolist()]
    assert len(set(zip(words, keys, strict=True))) == len(set(words)) == len(set(keys)) > 10


@pytest.mark.parametrize(("game_name", "name"), WITH_SYMMETRY)
def test_what_is_a_question_with_symmetry_is_several_without(game_name: str, name: str) -> None:
    _, state, _, _ = played(game_name)
    view, lying = both(game_name, name)
    images: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
    for one, other in zip(keys_of(view, state), keys_of(lying, state), strict=True):
        images.setdefault(one, set()).add(other)
    assert len(set(keys_of(lying, state))) == sum(map(len, images.values())), "no question belongs to two"
    assert max(map(len, images.values())) > 1
    assert max(map(len, images.values())) <= len(view.symmetry)


@pytest.mark.parametrize(("game_name", "name"), WITH_SYMMETRY)
def test_an_expert_holds_the_same_of_a_position_as_it_lies(game_name: str, name: str) -> None:
    _, state, _, _ = played(game_name)
    state = select_rows(state, torch.arange(0, num_rows(state), 7))
    view, lying = both(game_name, name)
    canonical, transform = view.canonicalize(state)
    assert transform.any()
    expected = view.expert_values(canonical, DEPTH).gather(1, view.symmetry[transform])
    assert lying.expert_values(lying.canonicalize(state)[0], DEPTH).equal(expected)


def test_a_drawn_board_is_the_game_s() -> None:
    _, state, _, _ = played("connect4")
    _, view = both("connect4", "board")
    boards = zip(state["mine"].tolist(), state["theirs"].tolist(), strict=True)
    for words, (mine, theirs) in zip(view.render(view.canonicalize(state)[0]), boards, strict=True):
        assert draw(mine, theirs, ".XO") in words


def test_a_snake_s_board_is_the_game_s() -> None:
    _, state, _, obs = played("snake")
    _, view = both("snake", "full")
    for words, planes in zip(view.render(view.canonicalize(state)[0]), obs, strict=True):
        board = words.removeprefix(view.instructions).splitlines()[:6]
        cells = torch.tensor([[sign == "@" for sign in line.split()] for line in board])
        assert cells.equal(planes[1].bool())
        fruit = torch.tensor([[sign == "*" for sign in line.split()] for line in board])
        assert fruit.equal(planes[3].bool())


def test_a_snake_s_surroundings_are_named_as_they_lie() -> None:
    _, state, action_mask, obs = played("snake")
    view, lying = both("snake", "local")
    assert "A is up, B is right, C is down, D is left." in lying.instructions
    assert "A is ahead, B is right, C is behind, D is left." in view.instructions
    for words, may, planes in zip(lying.render(lying.canonicalize(state)[0]), action_mask.tolist(), obs, strict=True):
        sides = dict(re.findall(r"^(Up|Right|Down|Left): (.*)$", words, re.MULTILINE))
        assert [side != "your neck" for side in sides.values()] == may
        (row, column), (fruit_row, fruit_column) = (plane.nonzero()[0].tolist() for plane in (planes[1], planes[3]))
        assert (sides["Up"] == "wall") == (row == 0)
        assert (sides["Left"] == "wall") == (column == 0)
        ways = {"up": fruit_row < row, "right": fruit_column > column, "down": fruit_row > row,
                "left": fruit_column < column}  # fmt: skip
        assert re.search(r"^Fruit: (.*)$", words, re.MULTILINE)[1] == ", ".join(way for way, so in ways.items() if so)


def asked_about(view: PromptView, states: list[State], budget: float = math.inf) -> tuple[int, Advisor]:
    tutor = ScriptedTutor(view, 1.0, DEPTH)
    advisor = Advisor(view, tutor, AdviceTable(7, budget, capacity=1 << 14), None)
    for state in states:
        advice = advisor.advise(state, torch.ones(num_rows(state), dtype=torch.bool))
        plain = make_view(envs.make_game("connect4"))
        values, action_mask = plain.expert_values(state, DEPTH), plain.action_mask(state)  # of each board as it lies
        best = (values == values.masked_fill(~action_mask, -1000).amax(1, keepdim=True)) & action_mask
        assert best.gather(1, advice.probs.argmax(1, keepdim=True)).all(), "the advice fits the board"
    return tutor.stats["asked"], advisor


def test_boards_and_their_images_are_twice_as_many_questions_and_the_advice_fits_each() -> None:
    _, state, _, _ = played("connect4")
    view, lying = both("connect4", "board")
    image = {name: mirror(cells) for name, cells in state.items()}
    like = sum(one == other for one, other in zip(set_of(state), set_of(state, image), strict=True))
    with_symmetry, _ = asked_about(view, [state, image])
    without, _ = asked_about(lying, [state, image])
    assert with_symmetry > 500
    assert without == 2 * with_symmetry - like


def set_of(state: State, image: State | None = None) -> list[tuple[int, int]]:
    """Each different board up to reflection once, in order of coming up; or what its image is."""
    other = {name: mirror(cells) for name, cells in state.items()}
    seen: dict[tuple[int, int], tuple[int, int]] = {}
    pairs = [list(zip(one["mine"].tolist(), one["theirs"].tolist(), strict=True)) for one in (state, other)]
    for board, flipped in zip(*pairs, strict=True):
        if flipped not in seen:
            seen.setdefault(board, flipped)
    return list(seen if image is None else seen.values())


@pytest.mark.parametrize(("game_name", "name"), WITH_SYMMETRY)
def test_answers_without_symmetry_have_an_identity_of_their_own(game_name: str, name: str, tmp_path: Path) -> None:
    env, state, _, _ = played(game_name)
    view, lying = both(game_name, name)
    url = tmp_path / "advice.sqlite"
    tutor = ScriptedTutor(lying)
    stored = AdviceStore(url, identity_of(env.spec, lying, tutor.identity))
    advisor = Advisor(lying, tutor, AdviceTable(env.spec.num_actions, math.inf, capacity=1 << 14), stored)
    advisor.advise(state, torch.ones(num_rows(state), dtype=torch.bool))
    stored.close()
    other = AdviceStore(url, identity_of(env.spec, view, tutor.identity))
    assert other.count() == 0
    other.close()
    again = RecordedTutor(str(url), env.spec, lying)
    assert again.advise(lying.canonicalize(state)[0]).valid.all()
    again.close()
    with pytest.raises(ValueError, match=f"no answers about {game_name} {name}, only {game_name} {name} without symm"):
        RecordedTutor(str(url), env.spec, view)


def test_a_game_without_symmetry_has_nothing_to_switch_off() -> None:
    view, same = both("blackjack", "table")
    assert same.name == view.name
    assert same.instructions == view.instructions


def test_letters_can_be_dealt_anew_without_symmetry() -> None:
    _, view = both("snake", "local")
    permuted = view.relabelled(("B", "A", "D", "C"))
    assert "B is up, A is right, D is down, C is left." in permuted.instructions
    assert len(permuted.symmetry) == 1


class Turning(PromptView):
    """A view whose author did not think of doing without."""

    game, name, version, labels, instructions = "coin", "side", 1, ("A", "B"), ""
    symmetry = torch.tensor([[0, 1], [1, 0]])


def test_a_view_of_one_s_own_says_whether_it_can_do_without_its_symmetry() -> None:
    with pytest.raises(ValueError, match="requires its symmetry"):
        Turning(None).without_symmetry()
