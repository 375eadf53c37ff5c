"""Permutations and calibration, against tutors that prefer a label and tutors that know an action.

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
from tests.helpers.llm_tutors import MODEL, failures, positions_of
from tests.helpers.scripted_server import Server, serving
from tests.helpers.views import EVERY_VIEW, game_of
from tutors.llm.api import Failure, LabelRequest, Output
from tutors.llm.label_logprobs import MIN_CONTENT_FREE_LOGPROB, LabelLogprobs, softmax_or_zeros
from tutors.llm.pool import EndpointPool
from tutors.llm.tutor import VllmTutor
from tutors.prompts import make_view
from tutors.prompts.base import PromptView

MEANINGS = {  # how a view's rules or options name its actions, in order; (.) is the letter
    ("blackjack", "table"): (r"\b([A-G]) stick", r"\b([A-G]) hit"),
    ("blackjack", "hand"): (r"\b([A-G]) stand", r"\b([A-G]) hit"),
    ("snake", "map"): (r"\b([A-G]) up", r"\b([A-G]) right", r"\b([A-G]) down", r"\b([A-G]) left"),
    ("snake", "full"): (r"(\w) is up", r"(\w) is right", r"(\w) is down", r"(\w) is left"),
    ("snake", "local"): (r"(\w) is ahead", r"(\w) is right", r"(\w) is behind", r"(\w) is left"),
    ("gym:FrozenLake8x8-v1", "lake"): (r"(\w) is left", r"(\w) is down", r"(\w) is right", r"(\w) is up"),
}
POSITION = re.compile(  # what of a prompt is the position, whatever its labels
    r"(top row first:\n|Ahead|Your sum|You are in row|Your hand:|\n\||The map:\n).*\nOptions", re.DOTALL
)
LabelProbabilities = Callable[[str], dict[str, float]]  # the probability of each letter as the answer to a prompt


def letter_of(view: PromptView, prompt: str, action: int) -> str:
    """The letter that stands for an action, read from the prompt as a person would."""
    if view.name == "grid":
        return re.search(r"\n (.*)\n\|", prompt)[1].split()[action]
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
def tutor_with(view: PromptView, probabilities: LabelProbabilities, **how: Any) -> Iterator[tuple[VllmTutor, Server]]:
    """A tutor whose model answers with these probabilities."""

    def answer(index: int, prompt: str, body: dict) -> dict:
        shares = probabilities(prompt)
        probs = [shares.get(chr(token), 0.0) for token in body["logprob_token_ids"]]
        logs = [math.log(prob) if prob else -9999.0 for prob in probs]
        keys = [f"token_id:{token}" for token in body["logprob_token_ids"]]
        return {"index": index, "logprobs": {"top_logprobs": [dict(zip(keys, logs, strict=True))]}}

    with serving() as server:
        server.answer = answer
        pool = EndpointPool([server.url])
        try:
            tutor = VllmTutor(view, MODEL, pool, LabelLogprobs(view, **how))
            server.asked.clear()
            yield tutor, server
        finally:
            pool.close()


def prefers_a(_prompt: str) -> dict[str, float]:
    return {"A": 0.7} | dict.fromkeys("BCDEFG", 0.05)


@pytest.mark.parametrize(("game", "name"), EVERY_VIEW)
def test_preference_for_one_label_is_averaged_away(game: str, name: str) -> None:
    view, state = positions_of(game, name)
    action_mask = view.action_mask(state)
    whole = action_mask.all(1)
    with tutor_with(view, prefers_a, permutations=len(view.labels)) as (tutor, _):
        probs = tutor.advise(state).probs
    if whole.any():
        torch.testing.assert_close(probs[whole], torch.full_like(probs[whole], 1 / len(view.labels)))
    assert not probs[~action_mask].any()
    legal_only = probs.masked_fill(~action_mask, 1).amin(1), probs.amax(1)
    torch.testing.assert_close(*legal_only, msg="each legal action has each label once, so all are equal")
    with tutor_with(view, prefers_a) as (tutor, _):
        assert (tutor.advise(state).probs[whole, 0] > 0.5).all(), "asked once, the preference shows"


@pytest.mark.parametrize(("game", "name"), EVERY_VIEW)
@pytest.mark.parametrize("calibrate", [False, True])
def test_tutor_that_knows_the_action_keeps_it_under_any_label(game: str, name: str, calibrate: bool) -> None:
    view, state = positions_of(game, name)
    count = len(view.labels)
    action_mask = view.action_mask(state)
    words = view.render(state)
    best = {text: int(row.nonzero()[number % int(row.sum()), 0]) for number, (text, row) in
            enumerate(zip(words, action_mask, strict=True))}  # fmt: skip
    by_position = {POSITION.search(text)[0].partition("Options")[0]: action for text, action in best.items()}

    def knows(prompt: str) -> dict[str, float]:
        shares = dict.fromkeys(view.labels, 0.3 / count)
        position = next((position for position in by_position if position in prompt and position), None)
        if position is not None:
            shares[letter_of(view, prompt, by_position[position])] += 0.6
        return shares

    with tutor_with(view, knows, permutations=count, calibrate=calibrate) as (tutor, server):
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
    view, state = positions_of("snake", "full")
    with tutor_with(view, prefers_a, permutations=permutations) as (tutor, server):
        advice = tutor.advise(state)
        assert sum(len(body["prompt"]) for body in server.asked) == permutations * 12 == tutor.stats["asked"]
    mode = LabelLogprobs(view, permutations)
    for row, action_mask in enumerate(view.action_mask(state).tolist()):
        expected = [0.0] * 4
        for relabelled in mode.views:
            shares = [prefers_a("")[label] * may for label, may in zip(relabelled.labels, action_mask, strict=True)]
            for action in range(4):
                expected[action] += shares[action] / sum(shares) / permutations
        assert advice.probs[row].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("game", "name"), EVERY_VIEW)
def test_orders_differ_and_with_all_of_them_each_action_has_each_label(game: str, name: str) -> None:
    view = make_view(game_of(game), name)
    for permutations in range(1, len(view.labels) + 1):
        mode = LabelLogprobs(view, permutations)
        relabelled = [one.labels for one in mode.views]
        assert relabelled[0] == view.labels
        assert len(set(relabelled)) == len(relabelled) == permutations
        for action in range(len(view.labels)):
            assert len({labels[action] for labels in relabelled}) == permutations
        assert all(sorted(labels) == sorted(view.labels) for labels in relabelled)


@pytest.mark.parametrize(("game", "name"), EVERY_VIEW)
def test_relabelling_with_the_same_labels_changes_no_prompt(game: str, name: str) -> None:
    view, state = positions_of(game, name)
    same = view.relabelled(view.labels)
    assert same.render(state) == view.render(state)
    assert same.content_free_prompt() == view.content_free_prompt()


@pytest.mark.parametrize(("game", "name"), EVERY_VIEW)
def test_label_stands_for_the_same_action_wherever_it_is_written(game: str, name: str) -> None:
    view, state = positions_of(game, name)
    action_mask = view.action_mask(state).tolist()
    for labels in [view.labels[::-1], view.labels[1:] + view.labels[:1]]:
        relabelled = view.relabelled(labels)
        assert relabelled.instructions == relabelled.render_instructions()
        assert view.labels == make_view(game_of(game), name).labels, "the view itself is left as it was"
        for text, own, may in zip(relabelled.render(state), view.render(state), action_mask, strict=True):
            for action, label in enumerate(labels):
                if may[action] or name != "map":  # which names no other moves
                    assert letter_of(relabelled, text, action) == label
            assert offered(text) == {label for label, action_mask in zip(labels, may, strict=True) if action_mask}
            assert POSITION.search(text)[0] == POSITION.search(own)[0], "nothing but the letters changes"
            assert text.endswith("\nAnswer:")


def test_columns_whose_letters_are_not_in_order_are_listed() -> None:
    view = make_view(envs.make_game("connect4"))
    assert "named A to G from" in view.instructions
    assert "named G, A, B, C, D, E, F from" in view.relabelled(tuple("GABCDEF")).instructions


class Fixed(PromptView):
    """A view whose words name an action by a letter of their own."""

    game, name, version, labels, instructions = "connect4", "fixed", 1, tuple("ABCDEFG"), "A is left."


def test_view_that_cannot_be_relabelled_is_refused() -> None:
    view = Fixed(envs.make_game("connect4"))
    assert LabelLogprobs(view).views == [view]
    with pytest.raises(ValueError, match=r"fixed of connect4.*--label-permutations"):
        LabelLogprobs(view, permutations=2)


@pytest.mark.parametrize("permutations", [0, -1, 8])
def test_more_permutations_than_labels_are_refused(permutations: int) -> None:
    with pytest.raises(ValueError, match=f"{permutations} permutations of 7 labels; possible are 1 to 7"):
        LabelLogprobs(make_view(envs.make_game("connect4")), permutations)


def calibrated_by_definition(probs: list[float], content_free: list[float], action_mask: list[bool]) -> list[float]:
    """p / p_content_free over the legal actions, without a logarithm, and with a lower bound of the divisor."""
    weights = [
        prob / max(before, math.exp(MIN_CONTENT_FREE_LOGPROB)) if may else 0.0
        for prob, before, may in zip(probs, content_free, action_mask, strict=True)
    ]
    return [weight / sum(weights) for weight in weights]


@pytest.mark.parametrize(
    ("probs", "content_free", "action_mask"),
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
def test_calibration_divides_by_the_content_free_output(
    probs: list[float], content_free: list[float], action_mask: list[bool]
) -> None:
    view = make_view(envs.make_game("snake"), "full")
    mode = LabelLogprobs(view, calibrate=True)
    advice, _ = mode.parse([logs_of(probs)], torch.tensor([action_mask]), [logs_of(content_free)])
    assert advice.probs[0].tolist() == pytest.approx(
        calibrated_by_definition(probs, content_free, action_mask), rel=1e-6
    )
    assert advice.label_mass.item() == pytest.approx(
        sum(prob for prob, may in zip(probs, action_mask, strict=True) if may)
    )
    plain = LabelLogprobs(view)
    weights = [prob if may else 0.0 for prob, may in zip(probs, action_mask, strict=True)]
    advice, _ = plain.parse([logs_of(probs)], torch.tensor([action_mask]), [logs_of(content_free)])
    assert advice.probs[0].tolist() == pytest.approx([weight / sum(weights) for weight in weights])


def logs_of(probs: list[float]) -> tuple[float, ...]:
    return tuple(math.log(prob) if prob else -math.inf for prob in probs)


def test_calibration_removes_a_preference_for_a_label_for_one_prompt() -> None:
    view, state = positions_of("blackjack")
    with tutor_with(view, prefers_a, calibrate=True) as (tutor, server):
        advice = tutor.advise(state)
        assert sum(len(body["prompt"]) for body in server.asked) == 12
    torch.testing.assert_close(advice.probs, torch.full((12, 2), 0.5))
    torch.testing.assert_close(advice.label_mass, torch.full((12,), 0.75))


def test_each_order_is_divided_by_its_own_content_free_output() -> None:
    mode = LabelLogprobs(make_view(envs.make_game("snake"), "local"), permutations=4)
    assert mode.content_free_prompts() == [one.content_free_prompt() for one in mode.views]
    assert len(set(mode.content_free_prompts())) == 4
    mode = LabelLogprobs(make_view(envs.make_game("blackjack")), permutations=2, calibrate=True)
    content_free = [logs_of([0.6, 0.1]), logs_of([0.1, 0.6])]
    outputs = [logs_of([0.6, 0.1]), logs_of([0.1, 0.6])] + [logs_of([0.1, 0.6])] * 2
    advice, _ = mode.parse(outputs, torch.ones(2, 2, dtype=torch.bool), content_free)
    assert advice.probs[0].tolist() == pytest.approx([0.5, 0.5])
    assert advice.probs[1].tolist() == pytest.approx([(1 / 37 + 1 / 2) / 2, (36 / 37 + 1 / 2) / 2])


def test_the_label_mass_is_what_is_on_legal_letters_averaged_over_the_orders() -> None:
    view = make_view(envs.make_game("blackjack"))
    mode = LabelLogprobs(view, permutations=2)
    assert parse_one(mode, [logs_of([0.2, 0.1]), logs_of([0.5, 0.4])], [True, True])[1] == pytest.approx(0.6)
    probs, mass, _ = parse_one(mode, [logs_of([0.2, 0.1]), logs_of([0.5, 0.1])], [True, False])
    assert probs == [1, 0]
    assert mass == pytest.approx((0.2 + 0.1) / 2), "the second time the legal action has the label B"


def test_too_little_label_mass_is_no_advice_and_shows_what_there_was() -> None:
    view = make_view(envs.make_game("blackjack"))
    mode, low = LabelLogprobs(view, min_mass=0.3), Failure("low_label_mass")
    assert parse_one(mode, [logs_of([0.2, 0.11])], [True, True])[2] is None
    assert parse_one(mode, [logs_of([0.2, 0.09])], [True, True]) == ([0, 0], pytest.approx(0.29), low)
    assert parse_one(mode, [logs_of([0.2, 0.5])], [True, False]) == ([0, 0], pytest.approx(0.2), low)


def test_no_possible_legal_label_is_no_advice_even_where_any_mass_will_do() -> None:
    mode, low = LabelLogprobs(make_view(envs.make_game("blackjack")), min_mass=0), Failure("low_label_mass")
    assert parse_one(mode, [logs_of([0.0, 0.9])], [True, False]) == ([0, 0], 0, low)
    assert parse_one(mode, [(-math.inf, -math.inf)], [True, True]) == ([0, 0], 0, low)


def test_rounding_never_makes_the_mass_more_than_one() -> None:
    mode = LabelLogprobs(make_view(envs.make_game("blackjack")))
    assert parse_one(mode, [(1e-4, -0.5)], [True, True])[1] == 1


def test_one_order_without_an_output_is_no_advice_for_its_position_alone() -> None:
    mode = LabelLogprobs(make_view(envs.make_game("blackjack")), permutations=2, min_mass=0)
    fine, failure = logs_of([0.2, 0.1]), Failure("reset")
    outputs = [fine, failure, fine, fine, failure, Failure("deadline")]
    advice, failures = mode.parse(outputs, torch.ones(3, 2, dtype=torch.bool))
    assert failures == [failure, None, failure]
    assert advice.valid.tolist() == [False, True, False]
    assert advice.probs[::2].tolist() == [[0, 0]] * 2
    assert advice.label_mass.tolist() == pytest.approx([0, 0.3, 0])


def parse_one(
    mode: LabelLogprobs, outputs: list[Output], mask: list[bool]
) -> tuple[list[float], float, Failure | None]:
    """The probabilities, label mass and failure of one position."""
    advice, (failure,) = mode.parse(outputs, torch.tensor([mask]))
    assert advice.valid.tolist() == [failure is None]
    return advice.probs[0].tolist(), advice.label_mass.item(), failure


def by_definition(
    logprobs: list[list[float]], orders: list[list[int]], mask: list[bool], prior: list[list[float]]
) -> list[float]:
    """The mean over the orders of the softmax over legal actions, in Python floats, one label at a time."""
    total = [0.0] * len(mask)
    for label_logs, order, before in zip(logprobs, orders, prior, strict=True):
        weights = [
            math.exp(label_logs[label]) / math.exp(before[label]) if may else 0.0
            for label, may in zip(order, mask, strict=True)
        ]
        total = [one + weight / sum(weights) for one, weight in zip(total, weights, strict=True)]
    return [one / len(orders) for one in total]


@pytest.mark.parametrize("calibrate", [False, True])
@pytest.mark.parametrize("permutations", [1, 3, 7])
def test_parse_equals_its_definition_to_float32_rounding(permutations: int, calibrate: bool) -> None:
    view = make_view(envs.make_game("connect4"))
    mode = LabelLogprobs(view, permutations, calibrate, min_mass=0)
    chance = torch.Generator().manual_seed(permutations)
    logprobs = (8 * torch.randn(50, permutations, 7, generator=chance, dtype=torch.float64)).log_softmax(2)
    prior = torch.randn(permutations, 7, generator=chance, dtype=torch.float64).log_softmax(1)
    mask = torch.rand(50, 7, generator=chance) < 0.6
    mask[:, 0] = True
    outputs = [tuple(output) for output in logprobs.flatten(0, 1).tolist()]
    advice, _ = mode.parse(outputs, mask, [tuple(output) for output in prior.tolist()])
    orders = [[view.labels.index(label) for label in one.labels] for one in mode.views]
    divisor = prior.tolist() if calibrate else [[0.0] * 7] * permutations
    expected = [
        by_definition(position, orders, legal, divisor)
        for position, legal in zip(logprobs.tolist(), mask.tolist(), strict=True)
    ]
    torch.testing.assert_close(advice.probs, torch.tensor(expected), rtol=2e-7, atol=1e-9)


def test_one_order_with_low_mass_leaves_only_its_position_without_advice() -> None:
    view, state = positions_of("blackjack")
    poison = view.relabelled(("B", "A")).render(state)[5]

    def probabilities(prompt: str) -> dict[str, float]:
        return {} if poison in prompt else prefers_a(prompt)

    with tutor_with(view, probabilities, permutations=2, min_mass=0.5) as (tutor, _):
        advice = tutor.advise(state)
        assert (~advice.valid).nonzero()[:, 0].tolist() == [5]
        assert failures(tutor) == {"low_label_mass": 1}
    assert advice.label_mass[5].item() == pytest.approx(0.75 / 2)


def test_request_has_the_labels_in_the_view_s_own_order() -> None:
    view = make_view(envs.make_game("snake"), "full")
    mode = LabelLogprobs(view, permutations=4, calibrate=True)
    assert mode.request(0) == LabelRequest(view.labels, mode.min_mass)
    assert mode.max_tries == 1
    assert mode.identity == {"mode": "label", "permutations": 4, "calibrated": True}


def test_softmax_holds_at_both_ends() -> None:
    logs = torch.tensor([[-math.inf, 0.0, -math.inf], [-5000.0] * 3, [700.0, 0.0, 700.0], [-math.inf] * 3])
    expected = torch.tensor([[0, 1, 0], [1 / 3] * 3, [0.5, 0, 0.5], [0, 0, 0]])
    torch.testing.assert_close(softmax_or_zeros(logs), expected)
