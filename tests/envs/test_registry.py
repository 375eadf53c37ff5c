"""What is called by a name, against texts written out and files that the tests write into a folder of their own."""

import fractions
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from envs.registry import check_options, load_object, parse_options, unknown_name_message


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that one is in; the search path is afterwards what it was."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_near_miss_is_answered_with_what_was_meant() -> None:
    assert unknown_name_message("game", "chess9", ["go", "chess"]) == (
        "no game is called 'chess9'; there are chess, go; did you mean 'chess'?"
    )


def test_of_several_near_ones_the_nearest_is_offered() -> None:
    message = unknown_name_message("game", "connect4", ["connect3x", "connect44", "connects"])
    assert message.endswith("did you mean 'connect44'?")


def test_a_name_like_no_other_gets_no_guess() -> None:
    assert unknown_name_message("env", "zzz", ["b", "a"]) == "no env is called 'zzz'; there are a, b"


@pytest.mark.parametrize(
    "known", [{"b": 1, "a": 2}, ("b", "a"), {"a", "b"}, iter(["b", "a"])], ids=["dict", "tuple", "set", "iterator"]
)
def test_known_names_come_in_any_form_and_are_told_in_order(known: Any) -> None:
    assert unknown_name_message("env", "zzz", known) == "no env is called 'zzz'; there are a, b"


def test_a_name_is_loaded_from_an_installed_module() -> None:
    assert load_object("fractions:Fraction") is fractions.Fraction
    assert load_object("collections.abc:Callable") is Callable


def test_a_name_is_loaded_from_a_file_in_the_folder_one_is_in(here: Path) -> None:
    (here / "names_a_file.py").write_text("class Mine:\n    size = 7\n")
    assert load_object("names_a_file:Mine").size == 7
    assert load_object("names_a_file:Mine") is load_object("names_a_file:Mine")


def test_a_name_is_loaded_from_a_package_in_the_folder_one_is_in(here: Path) -> None:
    (here / "names_a_package").mkdir()
    (here / "names_a_package" / "inner.py").write_text("answer = 42\n")
    assert load_object("names_a_package.inner:answer") == 42


def test_a_file_is_found_in_the_folder_one_goes_to_later(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_object("fractions:Fraction")
    (here / "elsewhere").mkdir()
    (here / "elsewhere" / "names_found_later.py").write_text("answer = 43\n")
    monkeypatch.chdir(here / "elsewhere")
    assert load_object("names_found_later:answer") == 43


@pytest.mark.parametrize(
    "place",
    ["names_no_such_module:Mine", "fractions:Fractoin", "fractions", "fractions:", ":Fraction", "", ":", "a b:c"],
)
def test_what_is_not_there_is_refused_by_what_was_asked_for(place: str, here: Path) -> None:
    with pytest.raises(ValueError, match="cannot load") as caught:
        load_object(place)
    assert repr(place) in str(caught.value)


def test_the_reason_is_told_why_something_is_not_there(here: Path) -> None:
    (here / "names_needs_more.py").write_text("import names_of_nothing\n")
    with pytest.raises(ValueError, match="names_of_nothing"):
        load_object("names_needs_more:Mine")
    with pytest.raises(ValueError, match="Fractoin"):
        load_object("fractions:Fractoin")


def test_options_are_numbers_true_false_or_text() -> None:
    told = [
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
    options = parse_options(told)
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
def test_what_is_no_number_nor_true_nor_false_is_text(text: str) -> None:
    assert parse_options([f"option={text}"]) == {"option": text}


def test_no_texts_are_no_options() -> None:
    assert parse_options([]) == {}
    assert parse_options(()) == {}


def test_the_last_of_two_values_counts() -> None:
    assert parse_options(["size=6", "size=8"]) == {"size": 8}


@pytest.mark.parametrize("text", ["size", "", "size 6", "size:6"])
def test_an_option_without_a_value_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="NAME=VALUE, not") as caught:
        parse_options(["sab=true", text])
    assert repr(text) in str(caught.value)


def make_thing(size: int = 12, rate: float = 0.5, loud: bool = False, name: str = "x") -> None:
    """What has an option of every kind."""


class Thing:
    """What has an option and is a class."""

    def __init__(self, size: int = 12) -> None:
        self.size = size


class Plain:
    """What has no options."""


GOOD = [
    {},
    {"size": 3},
    {"rate": 0.25},
    {"rate": 2},
    {"loud": True},
    {"name": "y"},
    {"size": 1, "rate": 1.5, "loud": False, "name": ""},
]


@pytest.mark.parametrize("options", GOOD, ids=str)
def test_options_of_the_right_kind_are_taken(options: dict[str, Any]) -> None:
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
def test_an_option_of_another_kind_is_refused(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"thing.*{option}.*{value}"):
        check_options("thing", make_thing, {option: value})


@pytest.mark.parametrize("option", ["size", "rate"])
def test_true_is_not_a_number(option: str) -> None:
    with pytest.raises(ValueError, match=f"thing.*{option}.*True"):
        check_options("thing", make_thing, {option: True})


def test_every_option_is_looked_at() -> None:
    with pytest.raises(ValueError, match="size"):
        check_options("thing", make_thing, {"name": "y", "rate": 1.0, "size": "3"})


@pytest.mark.parametrize("make", [make_thing, Thing], ids=["a function", "a class"])
def test_an_unknown_option_is_answered_with_those_there_are_and_the_closest(make: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"no option of thing is called 'sise'; there are .*size") as caught:
        check_options("thing", make, {"sise": 3})
    assert str(caught.value).endswith("did you mean 'size'?")


def test_all_options_there_are_are_told() -> None:
    with pytest.raises(ValueError, match="there are loud, name, rate, size"):
        check_options("thing", make_thing, {"zzz": 3})


def test_where_there_are_no_options_that_is_said() -> None:
    check_options("plain", Plain, {})
    with pytest.raises(ValueError, match="plain has no options"):
        check_options("plain", Plain, {"size": 3})


def test_an_option_that_must_be_given_may_be_of_any_kind() -> None:
    def make(size: int, name: str = "x") -> None:
        pass

    for value in (3, "3", 0.5, True):
        check_options("thing", make, {"size": value})


def test_checking_does_not_make_the_thing() -> None:
    def make(size: int = 3) -> None:
        raise AssertionError("it was made")

    check_options("thing", make, {"size": 4})
