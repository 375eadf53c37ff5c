"""Connect Four in words against its keys, over 100,000 positions of random play.

The words are read back by a parser of their own, mirroring and dropping are done on the drawn board.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import envs
from envs.base import State, rows_of
from envs.connect4 import drop
from envs.luck import Luck, pick
from tutors.views import make_view

VIEW = make_view("connect4")
GOLDEN = Path(__file__).parent / "golden" / "connect4_board_v1.txt"
POSITIONS = 100_000
MID_GAME = """
. . . . . . .
. . . O . . .
. . . X . . .
. . X O . . .
. X O X . O .
O X O X . X O
"""  # the board of the golden prompt


@pytest.fixture(scope="module")
def state() -> State:
    """Positions as they come, many of them twice and some mirrored."""
    num_envs = 5000
    env = envs.make("connect4", num_envs, seed=3, opponent="random")
    luck = Luck(4, torch.arange(num_envs), 9)
    step = env.reset()
    seen = []
    for number in range(POSITIONS // num_envs):
        seen.append({name: tensor.clone() for name, tensor in env.state.items()})
        step = env.step(pick(step.legal, luck.draw(number, 1)[:, 0]))
    return {name: torch.cat([part[name] for part in seen]) for name in seen[0]}


@pytest.fixture(scope="module")
def canonical(state: State) -> State:
    return VIEW.canonical(state)[0]


@pytest.fixture(scope="module")
def prompts(canonical: State) -> list[str]:
    return VIEW.words(canonical)


def from_drawing(drawing: str) -> State:
    """A board of X (the student), O and dots as a state of one row."""
    rows = [line.split() for line in drawing.strip().splitlines()]
    mine = theirs = 0
    for height, row in enumerate(reversed(rows)):
        for column, sign in enumerate(row):
            mine |= (sign == "X") << 7 * column + height
            theirs |= (sign == "O") << 7 * column + height
    return {"mine": torch.tensor([mine]), "theirs": torch.tensor([theirs])}


def mirrored(state: State) -> State:
    """Every position's mirror image: column by column from the other side."""
    flipped = {name: torch.zeros_like(cells) for name, cells in state.items()}
    for name, cells in state.items():
        for column in range(7):
            flipped[name] += (cells >> 7 * column) % 128 << 7 * (6 - column)
    return flipped


def different(words: list[str], state: State) -> int:
    """Return how many different questions there are; equal words must be equal keys."""
    keys = [tuple(key) for key in VIEW.key(state).tolist()]
    pairs = set(zip(words, keys, strict=True))
    assert len(pairs) == len(set(words)) == len(set(keys))
    return len(pairs)


def test_equal_words_are_equal_keys_once_canonical(prompts: list[str], canonical: State) -> None:
    assert POSITIONS / 4 < different(prompts, canonical) < POSITIONS


def test_equal_words_are_equal_keys_before_too(state: State, canonical: State) -> None:
    some = rows_of(state, torch.arange(0, POSITIONS, 3))
    both = {name: torch.cat([some[name], mirrored(some)[name]]) for name in some}
    assert different(VIEW.words(both), both) > len(VIEW.key(canonical)[::3].unique(dim=0))


def test_a_key_has_49_bits_and_an_empty_second_half(state: State, canonical: State) -> None:
    for positions in (state, canonical):
        key = VIEW.key(positions)
        assert key.shape == (POSITIONS, 2)
        assert key.dtype == torch.int64
        assert (key[:, 0] >= 0).all()
        assert (key[:, 0] < 2**49).all()
        assert (key[:, 1] == 0).all()


def test_the_largest_key_is_a_board_full_of_the_student_s_discs() -> None:
    full = from_drawing("\n".join(["X X X X X X X"] * 6))
    assert VIEW.key(full).tolist() == [[2**49 - 1, 0]]


def test_a_canonical_position_is_its_own_canonical_position(canonical: State) -> None:
    again, turned = VIEW.canonical(canonical)
    assert all(again[name].equal(canonical[name]) for name in canonical)
    assert not turned.any()


def test_a_position_and_its_mirror_image_are_one_question(state: State, canonical: State) -> None:
    from_mirror, _ = VIEW.canonical(mirrored(state))
    assert VIEW.key(from_mirror).equal(VIEW.key(canonical))
    assert not VIEW.key(mirrored(state)).equal(VIEW.key(state))


def test_a_canonical_position_is_the_position_or_its_mirror_image_as_told(state: State) -> None:
    canonical, turned = VIEW.canonical(state)
    image = mirrored(state)
    assert turned.dtype == torch.int64
    assert 0.2 < turned.float().mean() < 0.8
    for name in state:
        assert canonical[name].equal(torch.where(turned == 1, image[name], state[name]))


def test_making_canonical_changes_no_position(state: State) -> None:
    before = {name: tensor.clone() for name, tensor in state.items()}
    VIEW.canonical(state)
    assert all(state[name].equal(before[name]) for name in before)


def dropped(state: State, column: Tensor) -> State:
    return {"mine": drop(state["mine"], state["theirs"], column), "theirs": state["theirs"]}


def test_symmetry_says_where_an_action_goes(state: State) -> None:
    canonical, turned = VIEW.canonical(state)
    assert VIEW.symmetry.shape == (2, 7)
    for action in range(7):
        here = dropped(state, torch.full_like(turned, action))
        there = dropped(canonical, VIEW.symmetry[turned, action])
        assert VIEW.key(VIEW.canonical(here)[0]).equal(VIEW.key(VIEW.canonical(there)[0]))
        assert VIEW.legal(state)[:, action].equal(
            VIEW.legal(canonical).gather(1, VIEW.symmetry[turned, action][:, None])[:, 0]
        )


def test_symmetry_maps_a_drawn_board_and_its_answers() -> None:
    left = from_drawing(MID_GAME)
    right = mirrored(left)
    told = {int(VIEW.canonical(side)[1]) for side in (left, right)}
    assert told == {0, 1}
    for side, two_crosses in ((left, 1), (right, 5)):  # the only column of two Xs and nothing else
        canonical, turned = VIEW.canonical(side)
        column = VIEW.symmetry[turned, two_crosses].item()
        board = VIEW.words(canonical)[0].removeprefix(VIEW.rules).splitlines()[:6]
        assert [line.split()[column] for line in board] == list("....XX")


def test_words_read_back_are_the_position(canonical: State) -> None:
    some = rows_of(canonical, torch.arange(0, POSITIONS, 50))
    for row, words in enumerate(VIEW.words(some)):
        board, options, ask = words.removeprefix(VIEW.rules).rsplit("\n", 2)
        back = from_drawing(board)
        assert back["mine"] == some["mine"][row]
        assert back["theirs"] == some["theirs"][row]
        top = board.splitlines()[0].split()
        open_columns = [label for label, sign in zip("ABCDEFG", top, strict=True) if sign == "."]
        assert options == "Options: " + " ".join(open_columns)
        assert ask == "Answer:"


def test_words_list_only_legal_columns(canonical: State) -> None:
    crowded = (~VIEW.legal(canonical)).any(1).nonzero()[:500, 0]
    assert len(crowded) == 500
    some = rows_of(canonical, crowded)
    for words, legal in zip(VIEW.words(some), VIEW.legal(some).tolist(), strict=True):
        listed = words.splitlines()[-2].removeprefix("Options: ").split()
        assert listed == [label for label, may in zip(VIEW.labels, legal, strict=True) if may]


def test_every_prompt_begins_with_the_rules(prompts: list[str]) -> None:
    assert all(words.startswith(VIEW.rules) for words in prompts)


def test_there_is_one_letter_for_each_action() -> None:
    assert VIEW.labels == ("A", "B", "C", "D", "E", "F", "G")
    assert VIEW.symmetry.shape[1] == len(VIEW.labels)


def test_the_golden_prompt_has_not_changed() -> None:
    """A changed prompt is a changed experiment: raise the view's version and draw a new golden file."""
    assert (VIEW.name, VIEW.version) == ("board", 1)
    assert VIEW.words(from_drawing(MID_GAME)) == [GOLDEN.read_text()]


def test_values_are_those_of_the_student_s_moves() -> None:
    state = from_drawing("""
        . . . . . . .
        . . . . . . .
        . . . . . . .
        . . . . . . O
        . . . . . . O
        X X X . . . O
    """)
    values = VIEW.values(state, 2)[0]
    assert values.argmax() == 3, "four in a line beats stopping the opponent's"
    swapped = {"mine": state["theirs"], "theirs": state["mine"]}
    assert VIEW.values(swapped, 2)[0].argmax() == 6
