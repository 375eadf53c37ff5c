"""Names, entry points and options against messages written out and files that the tests write."""

import fractions
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import envs
from envs import opponents
from envs.blackjack import Blackjack
from envs.connect4 import Connect4
from envs.gymnasium_vec import GymnasiumVecEnv
from envs.registry import check_options, load_object, parse_options, unknown_name_message
from envs.rendering import DRAWINGS
from envs.snake import Snake
from tests.helpers.env_steps import assert_steps_equal, trajectory


@pytest.fixture
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to an empty directory; the search path is restored afterwards."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_unknown_name_message_suggests_close_match() -> None:
    assert unknown_name_message("game", "chess9", ["go", "chess"]) == (
        "no game is called 'chess9'; there are chess, go; did you mean 'chess'?"
    )


def test_unknown_name_message_suggests_closest_of_several() -> None:
    message = unknown_name_message("game", "connect4", ["connect3x", "connect44", "connects"])
    assert message.endswith("did you mean 'connect44'?")


def test_unknown_name_message_without_close_match_suggests_none() -> None:
    assert unknown_name_message("env", "zzz", ["b", "a"]) == "no env is called 'zzz'; there are a, b"


@pytest.mark.parametrize(
    "known", [{"b": 1, "a": 2}, ("b", "a"), {"a", "b"}, iter(["b", "a"])], ids=["dict", "tuple", "set", "iterator"]
)
def test_unknown_name_message_sorts_any_iterable(known: Any) -> None:
    assert unknown_name_message("env", "zzz", known) == "no env is called 'zzz'; there are a, b"


def test_load_object_from_installed_module() -> None:
    assert load_object("fractions:Fraction") is fractions.Fraction
    assert load_object("collections.abc:Callable") is Callable


def test_load_object_from_file_in_working_directory(working_directory: Path) -> None:
    (working_directory / "names_a_file.py").write_text("class Mine:\n    size = 7\n")
    assert load_object("names_a_file:Mine").size == 7
    assert load_object("names_a_file:Mine") is load_object("names_a_file:Mine")


def test_load_object_from_package_in_working_directory(working_directory: Path) -> None:
    (working_directory / "names_a_package").mkdir()
    (working_directory / "names_a_package" / "inner.py").write_text("answer = 42\n")
    assert load_object("names_a_package.inner:answer") == 42


def test_load_object_after_change_of_working_directory(
    working_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_object("fractions:Fraction")
    (working_directory / "elsewhere").mkdir()
    (working_directory / "elsewhere" / "names_found_later.py").write_text("answer = 43\n")
    monkeypatch.chdir(working_directory / "elsewhere")
    assert load_object("names_found_later:answer") == 43


@pytest.mark.parametrize(
    "place",
    ["names_no_such_module:Mine", "fractions:Fractoin", "fractions", "fractions:", ":Fraction", "", ":", "a b:c"],
)
def test_load_object_missing_raises_with_entry_point(place: str, working_directory: Path) -> None:
    with pytest.raises(ValueError, match="cannot load") as caught:
        load_object(place)
    assert repr(place) in str(caught.value)


def test_load_object_missing_raises_with_reason(working_directory: Path) -> None:
    (working_directory / "names_needs_more.py").write_text("import names_of_nothing\n")
    with pytest.raises(ValueError, match="names_of_nothing"):
        load_object("names_needs_more:Mine")
    with pytest.raises(ValueError, match="Fractoin"):
        load_object("fractions:Fractoin")


def test_parse_options_types() -> None:
    texts = [
        "size=6",
        "cold=-3",
        "death_reward=-0.5",
        "rate=2.5e-4",
        "sab=true",
        "natural=False",
        "loud=TRUE",
        "opponent=negamax:2",
        "Name=Self",
        "equation=a=b",
        "nothing=",
        "version=1.2.3",
    ]
    options = parse_options(texts)
    expected = {
        "size": 6,
        "cold": -3,
        "death_reward": -0.5,
        "rate": 2.5e-4,
        "sab": True,
        "natural": False,
        "loud": True,
        "opponent": "negamax:2",
        "Name": "Self",
        "equation": "a=b",
        "nothing": "",
        "version": "1.2.3",
    }
    assert options == expected
    assert [type(value) for value in options.values()] == [type(value) for value in expected.values()]


@pytest.mark.parametrize("text", ["null", "[1]", '{"a": 1}', '"quoted"'])
def test_parse_options_keeps_other_text(text: str) -> None:
    assert parse_options([f"option={text}"]) == {"option": text}


def test_parse_options_of_nothing_is_empty() -> None:
    assert parse_options([]) == {}
    assert parse_options(()) == {}


def test_parse_options_last_value_wins() -> None:
    assert parse_options(["size=6", "size=8"]) == {"size": 8}


@pytest.mark.parametrize("text", ["size", "", "size 6", "size:6"])
def test_parse_options_without_value_raises(text: str) -> None:
    with pytest.raises(ValueError, match="NAME=VALUE, not") as caught:
        parse_options(["sab=true", text])
    assert repr(text) in str(caught.value)


def make_thing(size: int = 12, rate: float = 0.5, loud: bool = False, name: str = "x") -> None:
    """Take an option of every type."""


class Thing:
    """A class with an option."""

    def __init__(self, size: int = 12) -> None:
        self.size = size


class Plain:
    """A class without options."""


VALID_OPTIONS = [
    {},
    {"size": 3},
    {"rate": 0.25},
    {"rate": 2},
    {"loud": True},
    {"name": "y"},
    {"size": 1, "rate": 1.5, "loud": False, "name": ""},
]


@pytest.mark.parametrize("options", VALID_OPTIONS, ids=str)
def test_check_options_accepts_types_of_defaults(options: dict[str, Any]) -> None:
    check_options("thing", make_thing, options)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("size", "3"),
        ("size", 3.0),
        ("size", None),
        ("rate", "0.5"),
        ("loud", 1),
        ("loud", "yes"),
        ("name", 7),
        ("name", True),
    ],
)
def test_check_options_wrong_type_raises(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"thing.*{option}.*{value}"):
        check_options("thing", make_thing, {option: value})


@pytest.mark.parametrize("option", ["size", "rate"])
def test_check_options_bool_is_not_a_number(option: str) -> None:
    with pytest.raises(ValueError, match=f"thing.*{option}.*True"):
        check_options("thing", make_thing, {option: True})


def test_check_options_checks_every_option() -> None:
    with pytest.raises(ValueError, match="size"):
        check_options("thing", make_thing, {"name": "y", "rate": 1.0, "size": "3"})


@pytest.mark.parametrize("make", [make_thing, Thing], ids=["a function", "a class"])
def test_check_options_unknown_raises_with_closest(make: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"no option of thing is called 'sise'; there are .*size") as caught:
        check_options("thing", make, {"sise": 3})
    assert str(caught.value).endswith("did you mean 'size'?")


def test_check_options_unknown_raises_with_all_known() -> None:
    with pytest.raises(ValueError, match="there are loud, name, rate, size"):
        check_options("thing", make_thing, {"zzz": 3})


def test_check_options_without_options_raises() -> None:
    check_options("plain", Plain, {})
    with pytest.raises(ValueError, match="plain has no options"):
        check_options("plain", Plain, {"size": 3})


def test_check_options_without_default_accepts_any_type() -> None:
    def make(size: int, name: str = "x") -> None:
        pass

    for value in (3, "3", 0.5, True):
        check_options("thing", make, {"size": value})


def test_check_options_does_not_call_make() -> None:
    def make(size: int = 3) -> None:
        raise AssertionError("make was called")

    check_options("thing", make, {"size": 4})


def test_make_unknown_env_raises_with_known_ones() -> None:
    for make_it in (lambda: envs.make("conect4", 1), lambda: envs.make_game("conect4")):
        with pytest.raises(ValueError, match="no env is called 'conect4'") as caught:
            make_it()
        assert all(name in str(caught.value) for name in (*envs.ENVS, "gym:ID", "module:Class"))
        assert str(caught.value).endswith("did you mean 'connect4'?")


def test_make_unknown_opponent_raises_with_known_ones() -> None:
    with pytest.raises(ValueError, match="no opponent is called 'tacticl'") as caught:
        envs.make("connect4", 1, opponent="tacticl")
    assert all(name in str(caught.value) for name in ("random", "tactical", "negamax:DEPTH", "self"))
    assert str(caught.value).endswith("did you mean 'tactical'?")


def test_make_returns_game_of_that_name() -> None:
    kinds = {"blackjack": Blackjack, "connect4": Connect4, "snake": Snake}
    assert list(envs.ENVS) == list(kinds)
    for name, kind in kinds.items():
        assert isinstance(envs.make_game(name), kind)
        assert isinstance(envs.make(name, 1).game, kind)


def test_make_passes_options_to_game() -> None:
    assert envs.make_game("connect4").opponent is opponents.tactical
    assert envs.make("connect4", 1, opponent="random").game.opponent is opponents.random
    assert envs.make("connect4", 1, opponent="negamax:3").game.opponent.depth == 3
    assert envs.make("connect4", 1, opponent="self", refresh=9).game.opponent.refresh == 9
    snake = envs.make("snake", 1, size=5, time_limit=17, death_reward=-1)
    assert snake.spec.obs_shape[1:] == (5, 5)
    assert snake.spec.time_limit == 17
    assert snake.game.death_reward == -1
    assert envs.make_game("snake", size=4).spec.obs_shape[1:] == (4, 4)
    hand = envs.make_game("blackjack", sab=False, natural=True)
    assert (hand.sab, hand.natural) == (False, True)


@pytest.mark.parametrize(
    ("game", "option", "there_are"),
    [
        ("snake", "sise", "death_reward, size, time_limit; did you mean 'size'"),
        ("connect4", "oponent", "opponent, refresh; did you mean 'opponent'"),
        ("blackjack", "opponent", "natural, sab"),
        ("snake", "opponent", "death_reward, size, time_limit"),
    ],
)
def test_make_unknown_option_raises_with_known_ones(game: str, option: str, there_are: str) -> None:
    for make_it in (envs.make_game, lambda name, **options: envs.make(name, 1, **options)):
        with pytest.raises(ValueError, match=f"no option of {game} is called '{option}'; there are {there_are}"):
            make_it(game, **{option: 1})


@pytest.mark.parametrize(
    ("game", "option", "value"),
    [
        ("snake", "size", "eight"),
        ("snake", "size", 6.5),
        ("snake", "death_reward", "much"),
        ("blackjack", "sab", 1),
        ("blackjack", "natural", "yes"),
        ("connect4", "opponent", 2),
        ("connect4", "refresh", "often"),
    ],
)
def test_make_option_of_wrong_type_raises(game: str, option: str, value: Any) -> None:
    for make_it in (envs.make_game, lambda name, **options: envs.make(name, 1, **options)):
        with pytest.raises(ValueError, match=f"{game}: {option} must be of type .*, not {value!r}"):
            make_it(game, **{option: value})


CUSTOM_GAMES = """
import torch
from envs.base import Spec


class Coin:
    spec = Spec("coin", 1, (1,), 2, num_reset_uniforms=1, num_step_uniforms=1, time_limit=None)

    def __init__(self, pays: float = 1.0, sides: int = 2) -> None:
        self.pays, self.sides = pays, sides

    def reset(self, u):
        return {"side": (u[:, 0] * self.sides).long()}

    def step(self, state, action, u):
        won = state["side"] == action
        return state, won * self.pays, torch.ones_like(won)

    def observe(self, state):
        return state["side"][:, None].float(), torch.ones(len(state["side"]), 2, dtype=torch.bool)


def heavy(pays: float = 8.0):
    return Coin(pays)


class Bare(Coin):
    def __init__(self) -> None:
        super().__init__()
"""


@pytest.fixture
def custom_games(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of a module in the working directory that no other test has imported."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    module = f"custom_games_{next(UNIQUE)}"
    (tmp_path / f"{module}.py").write_text(CUSTOM_GAMES)
    return module


UNIQUE = itertools.count()


def test_make_custom_game_from_working_directory(custom_games: str) -> None:
    env = envs.make(f"{custom_games}:Coin", 40, seed=3, pays=2.5)
    step = env.reset()
    assert set(step.obs.flatten().tolist()) == {0.0, 1.0}
    after = env.step(torch.zeros(40, dtype=torch.int64))
    assert torch.equal(after.reward, 2.5 * (step.obs[:, 0] == 0))
    assert after.terminated.all()
    assert torch.equal(after.final_obs, step.obs)
    assert not torch.equal(after.obs, step.obs)


def test_make_custom_game_with_first_env_id_equals_shard(custom_games: str) -> None:
    whole = trajectory(envs.make(f"{custom_games}:Coin", 20, seed=3), 10)
    shard = envs.make(f"{custom_games}:Coin", 5, seed=3, first_env_id=15)
    assert_steps_equal(trajectory(shard, 10, first_env_id=15), whole, slice(15, 20))


def test_make_game_calls_class_or_function(custom_games: str) -> None:
    assert envs.make_game(f"{custom_games}:Coin", pays=3).pays == 3
    assert envs.make_game(f"{custom_games}:heavy").pays == 8.0
    assert envs.make_game(f"{custom_games}:Bare").pays == 1.0


def test_make_custom_game_checks_options(custom_games: str) -> None:
    with pytest.raises(ValueError, match=f"no option of {custom_games}:Coin is called 'pay'; .*did you mean 'pays'"):
        envs.make_game(f"{custom_games}:Coin", pay=3)
    with pytest.raises(ValueError, match=f"{custom_games}:Coin: sides must be of type int, not 'two'"):
        envs.make(f"{custom_games}:Coin", 1, sides="two")
    with pytest.raises(ValueError, match=f"{custom_games}:Bare has no options"):
        envs.make_game(f"{custom_games}:Bare", pays=3)


def test_make_missing_custom_game_raises(custom_games: str) -> None:
    for place in (f"{custom_games}:Dice", "env_no_such_module:Coin", f"{custom_games}:"):
        with pytest.raises(ValueError, match=f"cannot load '{place}'"):
            envs.make(place, 1)
        with pytest.raises(ValueError, match=f"cannot load '{place}'"):
            envs.make_game(place)


def test_make_game_of_non_callable_raises() -> None:
    with pytest.raises(ValueError, match="math:pi"):
        envs.make_game("math:pi")


def test_make_gym_id_passes_all_arguments() -> None:
    """Seed, first env id and options are those that were given."""
    made = envs.make("gym:FrozenLake-v1", 3, 4, "cpu", 2, map_name="8x8")
    assert isinstance(made, GymnasiumVecEnv)
    assert made.spec.name == "gym:FrozenLake-v1"
    assert made.spec.obs_shape == (64,)
    alone = GymnasiumVecEnv("FrozenLake-v1", 3, seed=4, first_env_id=2, map_name="8x8")
    assert_steps_equal(trajectory(made, 30), trajectory(alone, 30))
    others = envs.make("gym:FrozenLake-v1", 3, 5, first_env_id=2, map_name="8x8")
    later, later_alone = trajectory(others, 30)[-1], trajectory(alone, 30)[-1]
    assert not torch.equal(later.obs, later_alone.obs)


def test_make_unknown_gym_id_or_option_raises() -> None:
    with pytest.raises(ValueError, match=r"gym:CartPol-v1 cannot be made: .*CartPole"):
        envs.make("gym:CartPol-v1", 1)
    with pytest.raises(ValueError, match=r"gym:CartPole-v1 cannot be made: .*sise"):
        envs.make("gym:CartPole-v1", 1, sise=3)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("CartPole-v1", "gym:CartPole-v1"),
        ("cartpole", "gym:CartPole-v1"),
        ("Taxi", r"gym:Taxi-v\d"),
        ("Snake", "snake"),
    ],
)
def test_gymnasium_id_without_its_prefix_is_named_with_it(typed: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"did you mean '{meant}'"):
        envs.make(typed, 1)


@pytest.mark.parametrize(
    ("game", "options", "said"),
    [
        ("snake", {"size": 2}, "at least 3 x 3"),
        ("snake", {"size": -4}, "at least 3 x 3"),
        ("snake", {"death_reward": 1.0}, "must be 0, or a negative number"),
        ("snake", {"death_reward": float("nan")}, "must be 0, or a negative number"),
        ("snake", {"death_reward": -float("inf")}, "must be 0, or a negative number"),
        ("connect4", {"refresh": 5}, "refresh has no effect against tactical: it is of opponent=self"),
        ("connect4", {"opponent": "negamax:0"}, "the depth of the search must be"),
        ("connect4", {"opponent": "self", "refresh": 0}, "at least 1 update"),
    ],
)
def test_senseless_options_are_refused(game: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        envs.make(game, 1, **options)


def test_own_game_draws_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `render` alone its text is its state, a tensor a line."""
    (tmp_path / "drawn.py").write_text(
        "import numpy as np\nfrom dataclasses import replace\nfrom envs.blackjack import Blackjack\n"
        "class Drawn(Blackjack):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.spec = replace(self.spec, name='drawn')\n"
        "    def render(self, states):\n        return np.full((8, 8, 3), len(states), dtype=np.uint8)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    env = envs.make("drawn:Drawn", 2)
    drawing = DRAWINGS.pop("drawn")
    step = env.reset()
    assert drawing.image(env.spec, [step.state, step.state]).tolist() == [[[2] * 3] * 8] * 8
    lines = drawing.text(env.spec, [step.state]).splitlines()
    assert lines == [f"{name}: {tensor[0].tolist()}" for name, tensor in step.state.items()]
