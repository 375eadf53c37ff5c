"""Labels dealt anew and divided by a blank's, against tutors that like a letter and tutors that know an action.

A scripted tutor reads of a prompt only its text: which letter stands for what it finds in the rules or the options.
"""

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

import envs
from envs.base import State, select_rows
from envs.rng import sample_legal
from tests.helpers.scripted_server import Server, serving
from tests.tutors.llm.test_tutor import MODEL, silences
from tutors.llm.api import Labels, Trouble
from tutors.llm.client import Client
from tutors.llm.label_logprobs import RAREST, LabelWay, softmax
from tutors.llm.tutor import VllmTutor
from tutors.prompts import VIEWS, make_view
from tutors.prompts.base import PromptView

EVERY = [(game, name) for game in VIEWS for name in VIEWS[game]]
MEANINGS = {  # how a view's rules or options name its actions, in order; (.) is the letter
    ("blackjack", "table"): (r"\b([A-G]) stick", r"\b([A-G]) hit"),
    ("snake", "full"): (r"(\w) is up", r"(\w) is right", r"(\w) is down", r"(\w) is left"),
    ("snake", "local"): (r"(\w) is ahead", r"(\w) is right", r"(\w) is behind", r"(\w) is left"),
}
Mind = Callable[[str], dict[str, float]]  # the probability of each letter as the answer to a prompt


def told(game: str, name: str | None = None, moves: int = 3, count: int = 12) -> tuple[PromptView, State]:
    """A view and different positions, told."""
    view = make_view(envs.make_game(game), name)
    env = envs.make(game, 300, seed=5)
    step = env.reset()
    generator = torch.manual_seed(0)
    for _ in range(moves):
        step = env.step(sample_legal(step.action_mask, torch.rand(len(step.action_mask), generator=generator)))
    state, _ = view.canonicalize(env.state)
    distinct, which = view.key(state).unique(dim=0, return_inverse=True)
    rows = torch.zeros(len(distinct), dtype=torch.int64).scatter_(0, which, torch.arange(len(which)))
    return view, select_rows(state, rows[:count])


def letter_of(view: PromptView, prompt: str, action: int) -> str:
    """The letter that stands for an action, read from the prompt as a person would."""
    if view.game == "connect4":
        named = re.search(r"seven columns, named (.*?) from left to right", prompt)[1]
        return (tuple("ABCDEFG") if named == "A to G" else named.split(", "))[action]
    (letter,) = re.findall(MEANINGS[view.game, view.name][action], prompt)
    return letter


def offered(prompt: str) -> set[str]:
    """The letters among which a question lets its answer be chosen."""
    line = re.search(r"Options: (.*)\n", prompt)[1]
    return set(re.findall(r"\b[A-G]\b", line))


@contextmanager
def minded(view: PromptView, mind: Mind, **how: Any) -> Iterator[tuple[VllmTutor, Server]]:
    """A tutor of this mind."""

    def answer(index: int, prompt: str, body: dict) -> dict:
        shares = mind(prompt)
        probs = [shares.get(chr(token), 0.0) for token in body["logprob_token_ids"]]
        logs = [math.log(prob) if prob else -9999.0 for prob in probs]
        keys = [f"token_id:{token}" for token in body["logprob_token_ids"]]
        return {"index": index, "logprobs": {"top_logprobs": [dict(zip(keys, logs, strict=True))]}}

    with serving() as server:
        server.answer = answer
        client = Client(server.url)
        try:
            tutor = VllmTutor(view, MODEL, [client], LabelWay(view, **how))
            server.asked.clear()
            yield tutor, server
        finally:
            client.close()


def likes_a(_prompt: str) -> dict[str, float]:
    return {"A": 0.7} | dict.fromkeys("BCDEFG", 0.05)


@pytest.mark.parametrize(("game", "name"), EVERY)
def test_a_liking_for_one_letter_is_averaged_away(game: str, name: str) -> None:
    view, state = told(game, name)
    action_mask = view.action_mask(state)
    whole = action_mask.all(1)
    with minded(view, likes_a, permutations=len(view.labels)) as (tutor, _):
        probs = tutor.advise(state).probs
    if whole.any():
        torch.testing.assert_close(probs[whole], torch.full_like(probs[whole], 1 / len(view.labels)))
    assert not probs[~action_mask].any()
    legal_only = probs.masked_fill(~action_mask, 1).amin(1), probs.amax(1)
    torch.testing.assert_close(*legal_only, msg="each legal action bears each letter once, so all are equal")
    with minded(view, likes_a) as (tutor, _):
        assert (tutor.advise(state).probs[whole, 0] > 0.5).all(), "asked once, the liking shows"


@pytest.mark.parametrize(("game", "name"), EVERY)
@pytest.mark.parametrize("calibrate", [False, True])
def test_who_knows_an_action_by_its_meaning_keeps_it_under_any_letter(game: str, name: str, calibrate: bool) -> None:
    view, state = told(game, name)
    count = len(view.labels)
    action_mask = view.action_mask(state)
    words = view.render(state)
    best = {text: int(row.nonzero()[number % int(row.sum()), 0]) for number, (text, row) in
            enumerate(zip(words, action_mask, strict=True))}  # fmt: skip
    by_position = {
        text.removeprefix(view.instructions).partition("Options")[0]: action for text, action in best.items()
    }

    def knows(prompt: str) -> dict[str, float]:
        shares = dict.fromkeys(view.labels, 0.3 / count)
        position = next((position for position in by_position if position in prompt and position), None)
        if position is not None:
            shares[letter_of(view, prompt, by_position[position])] += 0.6
        return shares

    with minded(view, knows, permutations=count, calibrate=calibrate) as (tutor, server):
        advice = tutor.advise(state)
        asked = [prompt for body in server.asked for prompt in body["prompt"]]
    assert advice.probs.argmax(1).tolist() == list(best.values())
    expected = torch.where(action_mask, 0.3 / count, 0.0)
    expected[range(len(words)), list(best.values())] += 0.6
    torch.testing.assert_close(advice.probs, expected / expected.sum(1, keepdim=True))
    torch.testing.assert_close(advice.label_mass, expected.sum(1))
    assert len(set(asked)) == len(asked) == count * len(words)
    assert tutor.stats["asked"] == count * len(words)


@pytest.mark.parametrize("permutations", [1, 2, 3, 4])
def test_prompts_are_permutations_times_positions_and_their_answers_are_averaged(permutations: int) -> None:
    view, state = told("snake", "full")
    with minded(view, likes_a, permutations=permutations) as (tutor, server):
        advice = tutor.advise(state)
        assert sum(len(body["prompt"]) for body in server.asked) == permutations * 12 == tutor.stats["asked"]
    ways = LabelWay(view, permutations)
    for row, action_mask in enumerate(view.action_mask(state).tolist()):
        expected = [0.0] * 4
        for told_anew in ways.views:
            shares = [likes_a("")[label] * may for label, may in zip(told_anew.labels, action_mask, strict=True)]
            for action in range(4):
                expected[action] += shares[action] / sum(shares) / permutations
        assert advice.probs[row].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("game", "name"), EVERY)
def test_every_order_is_another_and_with_all_of_them_each_action_bears_each_letter(game: str, name: str) -> None:
    view = make_view(envs.make_game(game), name)
    for permutations in range(1, len(view.labels) + 1):
        way = LabelWay(view, permutations)
        dealt = [one.labels for one in way.views]
        assert dealt[0] == view.labels
        assert len(set(dealt)) == len(dealt) == permutations
        for action in range(len(view.labels)):
            assert len({labels[action] for labels in dealt}) == permutations
        assert all(sorted(labels) == sorted(view.labels) for labels in dealt)


@pytest.mark.parametrize(("game", "name"), EVERY)
def test_words_with_the_letters_in_their_own_order_are_the_words(game: str, name: str) -> None:
    view, state = told(game, name)
    same = view.relabelled(view.labels)
    assert same.render(state) == view.render(state)
    assert same.content_free_prompt() == view.content_free_prompt()


@pytest.mark.parametrize(("game", "name"), EVERY)
def test_a_letter_stands_for_the_same_action_wherever_it_is_written(game: str, name: str) -> None:
    view, state = told(game, name)
    action_mask = view.action_mask(state).tolist()
    for labels in [view.labels[::-1], view.labels[1:] + view.labels[:1]]:
        dealt = view.relabelled(labels)
        assert dealt.instructions == dealt.render_instructions()
        assert view.labels == make_view(envs.make_game(game), name).labels, "the view itself is left as it was"
        for text, own, may in zip(dealt.render(state), view.render(state), action_mask, strict=True):
            assert [letter_of(dealt, text, action) for action in range(len(labels))] == list(labels)
            assert offered(text) == {label for label, action_mask in zip(labels, may, strict=True) if action_mask}
            position = re.compile(r"top row first:\n(.*)\nOptions|Ahead.*\nOptions|Your sum.*\nOptions", re.DOTALL)
            assert position.search(text)[0] == position.search(own)[0], "nothing but the letters changes"
            assert text.endswith("\nAnswer:")


def test_columns_whose_letters_are_not_in_order_are_listed() -> None:
    view = make_view(envs.make_game("connect4"))
    assert "named A to G from" in view.instructions
    assert "named G, A, B, C, D, E, F from" in view.relabelled(tuple("GABCDEF")).instructions


class Fixed(PromptView):
    """A view whose words name an action by a letter of their own."""

    game, name, version, labels, instructions = "connect4", "fixed", 1, tuple("ABCDEFG"), "A is left."


def test_a_view_that_cannot_deal_its_letters_anew_is_refused() -> None:
    view = Fixed(envs.make_game("connect4"))
    assert LabelWay(view).views == [view]
    with pytest.raises(ValueError, match=r"fixed of connect4.*--label-permutations"):
        LabelWay(view, permutations=2)


@pytest.mark.parametrize("permutations", [0, -1, 8])
def test_more_ways_than_letters_are_refused(permutations: int) -> None:
    with pytest.raises(ValueError, match=f"{permutations} permutations of 7 letters; there can be 1 to 7"):
        LabelWay(make_view(envs.make_game("connect4")), permutations)


def calibrated_by_definition(probs: list[float], blank: list[float], action_mask: list[bool]) -> list[float]:
    """p / p_blank over the legal actions, without a logarithm; a blank counts as exp(RAREST) at least."""
    weights = [
        prob / max(before, math.exp(RAREST)) if may else 0.0
        for prob, before, may in zip(probs, blank, action_mask, strict=True)
    ]
    return [weight / sum(weights) for weight in weights]


@pytest.mark.parametrize(
    ("probs", "blank", "action_mask"),
    [
        ([0.4, 0.3, 0.1, 0.1], [0.5, 0.2, 0.1, 0.1], [True, True, True, True]),
        ([0.4, 0.3, 0.1, 0.1], [0.5, 0.2, 0.1, 0.1], [False, True, True, False]),
        ([0.4, 0.3, 0.0, 0.1], [0.5, 0.2, 0.1, 0.1], [True, True, True, True]),
        ([0.4, 0.3, 0.1, 0.1], [0.5, 0.2, 0.0, 0.1], [True, True, True, True]),
        ([0.4, 0.3, 0.0, 0.1], [0.5, 0.2, 0.0, 0.1], [True, True, True, True]),
        ([0.4, 0.3, 0.1, 0.1], [0.5, 0.2, 1e-30, 0.1], [True, True, True, False]),
        ([0.0, 0.0, 0.2, 0.0], [0.5, 0.2, 0.1, 0.1], [True, True, True, True]),
    ],
)
def test_calibration_divides_by_what_is_answered_without_a_position(
    probs: list[float], blank: list[float], action_mask: list[bool]
) -> None:
    view = make_view(envs.make_game("snake"), "full")
    way = LabelWay(view, calibrate=True)
    way.learn_blanks([logs_of(blank)])
    verdict, mass = way.judge([logs_of(probs)], action_mask)
    assert verdict == pytest.approx(calibrated_by_definition(probs, blank, action_mask), rel=1e-9)
    assert mass == pytest.approx(sum(prob for prob, may in zip(probs, action_mask, strict=True) if may))
    plain = LabelWay(view)
    plain.learn_blanks([logs_of(blank)])
    weights = [prob if may else 0.0 for prob, may in zip(probs, action_mask, strict=True)]
    assert plain.judge([logs_of(probs)], action_mask)[0] == pytest.approx([weight / sum(weights) for weight in weights])


def logs_of(probs: list[float]) -> tuple[float, ...]:
    return tuple(math.log(prob) if prob else -math.inf for prob in probs)


def test_calibration_takes_a_liking_for_a_letter_away_at_the_price_of_one_prompt() -> None:
    view, state = told("blackjack")
    with minded(view, likes_a, calibrate=True) as (tutor, server):
        advice = tutor.advise(state)
        assert sum(len(body["prompt"]) for body in server.asked) == 12
    torch.testing.assert_close(advice.probs, torch.full((12, 2), 0.5))
    torch.testing.assert_close(advice.label_mass, torch.full((12,), 0.75))


def test_each_order_is_divided_by_its_own_blank() -> None:
    way = LabelWay(make_view(envs.make_game("snake"), "local"), permutations=4)
    assert way.blanks() == [one.content_free_prompt() for one in way.views]
    assert len(set(way.blanks())) == 4
    way = LabelWay(make_view(envs.make_game("blackjack")), permutations=2, calibrate=True)
    way.learn_blanks([logs_of([0.6, 0.1]), logs_of([0.1, 0.6])])
    verdict, _ = way.judge([logs_of([0.6, 0.1]), logs_of([0.1, 0.6])], [True, True])
    assert verdict == pytest.approx([0.5, 0.5])
    verdict, _ = way.judge([logs_of([0.1, 0.6]), logs_of([0.1, 0.6])], [True, True])
    assert verdict == pytest.approx([(1 / 37 + 1 / 2) / 2, (36 / 37 + 1 / 2) / 2])


def test_the_label_mass_is_what_is_on_legal_letters_averaged_over_the_orders() -> None:
    view = make_view(envs.make_game("blackjack"))
    way = LabelWay(view, permutations=2)
    assert way.judge([logs_of([0.2, 0.1]), logs_of([0.5, 0.4])], [True, True])[1] == pytest.approx(0.6)
    verdict, mass = way.judge([logs_of([0.2, 0.1]), logs_of([0.5, 0.1])], [True, False])
    assert verdict == [1, 0]
    assert mass == pytest.approx((0.2 + 0.1) / 2), "the second time the legal action bears the letter B"


def test_too_little_label_mass_is_silence_and_shows_what_there_was() -> None:
    view = make_view(envs.make_game("blackjack"))
    way = LabelWay(view, min_mass=0.3)
    assert isinstance(way.judge([logs_of([0.2, 0.11])], [True, True])[0], list)
    verdict, mass = way.judge([logs_of([0.2, 0.09])], [True, True])
    assert isinstance(verdict, Trouble)
    assert verdict == "low_label_mass"
    assert mass == pytest.approx(0.29)
    assert way.judge([logs_of([0.2, 0.5])], [True, False]) == ("low_label_mass", pytest.approx(0.2))


def test_without_any_legal_letter_there_is_silence_even_where_no_mass_is_asked_for() -> None:
    way = LabelWay(make_view(envs.make_game("blackjack")), min_mass=0)
    assert way.judge([logs_of([0.0, 0.9])], [True, False]) == ("low_label_mass", 0)
    assert way.judge([(-math.inf, -math.inf)], [True, True]) == ("low_label_mass", 0)


def test_rounding_never_makes_the_mass_more_than_one() -> None:
    way = LabelWay(make_view(envs.make_game("blackjack")))
    assert way.judge([(1e-4, -0.5)], [True, True])[1] == 1


def test_one_order_without_an_answer_is_no_answer() -> None:
    way = LabelWay(make_view(envs.make_game("blackjack")), permutations=2)
    assert way.judge([logs_of([0.2, 0.1]), Trouble("reset")], [True, True]) == ("reset", 0)


def test_one_order_that_was_refused_makes_only_its_position_silent() -> None:
    view, state = told("blackjack")
    poison = view.relabelled(("B", "A")).render(state)[5]

    def mind(prompt: str) -> dict[str, float]:
        return {} if poison in prompt else likes_a(prompt)

    with minded(view, mind, permutations=2, min_mass=0.5) as (tutor, _):
        advice = tutor.advise(state)
        assert (~advice.valid).nonzero()[:, 0].tolist() == [5]
        assert silences(tutor) == {"low_label_mass": 1}
    assert advice.label_mass[5].item() == pytest.approx(0.75 / 2)


def test_what_is_asked_for_are_the_letters_in_the_view_s_own_order() -> None:
    view = make_view(envs.make_game("snake"), "full")
    way = LabelWay(view, permutations=4, calibrate=True)
    assert way.wanted(0) == Labels(view.labels)
    assert way.tries == 1
    assert way.identity == {"mode": "label", "permutations": 4, "calibrated": True}


def test_softmax_holds_at_both_ends() -> None:
    assert softmax([-math.inf, 0.0, -math.inf]) == [0, 1, 0]
    assert softmax([-5000.0, -5000.0]) == [0.5, 0.5]
    assert softmax([700.0, 0.0, 700.0]) == pytest.approx([0.5, 0, 0.5])
    assert softmax([-math.inf] * 3) == [0, 0, 0]
