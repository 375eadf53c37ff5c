"""Analysts of episodes: prompts, schema and parsing, and a scripted analyst against plain counts."""

import json
import math
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.helpers.episodes import BLUNDER, VIEW, episode
from tests.helpers.scripted_server import Server, serving
from tutors.episode_analyst import MAX_CRITICAL_STEPS, CriticalStep, ScriptedAnalyst, VllmAnalyst, read, schema_of
from tutors.episodes import EpisodeStatistics, expert_values, render_episode, value_gaps
from tutors.llm.api import Failure
from tutors.llm.models import Model
from tutors.llm.pool import EndpointPool

MODEL = Model("tiny", "tiny", "<s>{words}</s>")
GOOD = {"critical": [{"step": 2, "reason": "it had to block", "action": "A", "reward": -0.5}]}


def test_a_game_is_told_step_by_step_with_what_came_of_it() -> None:
    text = render_episode(VIEW, episode([3, 3, 2], [0.0, 0.0, 1.0]))
    parts = text.split("\n\n")
    assert parts[0].startswith("Step 1\n. . . . . . .")
    assert parts[0].endswith("The student chose D.")
    assert parts[2].endswith(", and got +1.")
    assert parts[-1] == "The whole game brought +1."
    assert "Answer" not in text
    later = episode([3, 3])._replace(num_earlier_steps=7)
    assert render_episode(VIEW, later).startswith("After 7 earlier steps:\n\nStep 1")


def test_statistics_say_how_often_a_position_and_a_choice_occur_and_what_came_of_it() -> None:
    """Three games begin alike; two of them go on alike, one as the mirror image of the other."""
    games = [
        episode([2, 0, 3], [0.0, 0.0, 1.0]),
        episode([2, 0, 1], [0.0, 0.0, -1.0], mirrored=True),
        episode([2], [-1.0]),
    ]
    statistics = EpisodeStatistics(VIEW, games)
    lines = [render_episode(VIEW, game, statistics).split("\n\n") for game in games]
    assert all(one[0] == lines[0][0] for one in lines)
    assert lines[0][0].startswith("This is one of 3 games of the student. They brought -1 to +1, -0.33 on average. ")
    assert "C in 2, which brought +0.00;" in lines[0][0]
    assert lines[0][1].endswith(
        "The student chose C. This position came up in 3 of the games, which brought -0.33 on average; with this "
        "choice in 2, which brought +0.00."
    )
    assert lines[0][2].endswith("came up in 2 of the games, which brought +0.00 on average; with this choice in 2, "
                                "which brought +0.00.")  # fmt: skip
    assert lines[1][3].endswith(
        "and got -1. This position came up in 2 of the games, which brought +0.00 on average; with this choice in 1, "
        "which brought -1.00."
    )
    alone = EpisodeStatistics(VIEW, games[:1])
    assert render_episode(VIEW, games[0], alone).split("\n\n")[1:] == render_episode(VIEW, games[0]).split("\n\n")


def test_a_position_that_comes_up_twice_in_a_game_counts_once() -> None:
    game = episode([3, 0], [0.0, 1.0])
    again = game._replace(positions={name: tensor[[0, 0]] for name, tensor in game.positions.items()})
    (first, *_) = EpisodeStatistics(VIEW, [again, game]).of_steps(game)
    assert "came up in 2 of the games, which brought +1.00 on average" in first


def test_a_game_and_its_mirror_image_are_told_alike() -> None:
    one, other = (episode([2, 0, 5, 3, 1], mirrored=mirrored) for mirrored in (False, True))
    ours, theirs = (
        render_episode(VIEW, game).split("\n\n")[1:] for game in (one, other)
    )  # an empty board is its own image
    assert ours == theirs
    values = expert_values(VIEW, one, 2)
    assert values.equal(expert_values(VIEW, other, 2))


def test_gaps_are_differences_of_an_expert_s_values() -> None:
    values = torch.tensor([[1.0, -torch.inf, 4.0], [0.0, 0.0, 0.0]])
    gap, lost = value_gaps(values, torch.tensor([0, 1]))
    assert gap.tolist() == [3.0, 0.0]
    assert lost.tolist() == [3.0, 0.0]


def test_a_script_without_mistakes_names_what_was_lost_and_the_best_action() -> None:
    analyst = ScriptedAnalyst(VIEW, 1.0, 4, 0)
    (found,) = analyst.find_critical_steps([episode(BLUNDER)])
    assert found[0].step == 5
    assert VIEW.labels[found[0].action] == "D"
    assert found[0].reward == -1.0
    assert all(-1 <= one.reward < 0 for one in found)
    assert ScriptedAnalyst(VIEW, 1.0, 4, 0).find_critical_steps([episode([3])]) == [[]], "nothing was lost"
    assert analyst.stats == {"asked": 1}


def test_a_script_that_errs_says_anything_legal_and_the_same_each_time() -> None:
    games = [episode(BLUNDER) for _ in range(200)]
    found = ScriptedAnalyst(VIEW, 0.0, 4, 3).find_critical_steps(games)
    assert found == ScriptedAnalyst(VIEW, 0.0, 4, 3).find_critical_steps(games)
    assert found != ScriptedAnalyst(VIEW, 0.0, 4, 4).find_critical_steps(games)
    assert found != ScriptedAnalyst(VIEW, 0.0, 4, 3).find_critical_steps(games, 1)
    flat = [one for named in found for one in named]
    assert {one.step for one in flat} == set(range(6))
    assert {one.action for one in flat} == set(range(7))
    rewards = torch.tensor([one.reward for one in flat])
    assert rewards.abs().max() <= 1
    assert abs(rewards.mean()) < 0.15


@pytest.mark.parametrize("accuracy", [0.0, 0.6, 1.0])
def test_a_script_prefers_the_game_that_lost_less(accuracy: float, monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = episode(BLUNDER[:5]), episode(BLUNDER)
    values = {id(game): expert_values(VIEW, game, 4) for game in (good, bad)}  # searched once, not 2,000 times
    monkeypatch.setattr("tutors.episode_analyst.expert_values", lambda view, game, depth: values[id(game)])
    said = ScriptedAnalyst(VIEW, accuracy, 4, 1).compare_pairs([(good, bad)] * 2000)
    assert sum(one == 1.0 for one in said) / 2000 == pytest.approx(accuracy + (1 - accuracy) / 2, abs=0.04)
    assert ScriptedAnalyst(VIEW, 1.0, 4, 1).compare_pairs([(bad, good), (bad, bad)]) == [0.0, 0.5]


def test_an_answer_in_json_is_what_it_says() -> None:
    game = episode(BLUNDER)
    assert read(json.dumps(GOOD), VIEW, game) == [CriticalStep(1, 0, -0.5, "it had to block")]
    noise = json.dumps(GOOD).replace("it had", "it\x00\n\thad")  # what a schema's string lets through
    assert read(noise, VIEW, game) == [CriticalStep(1, 0, -0.5, "it\x00\n\thad to block")]
    thought = f"<think>{{not this}}</think>Here it is: {json.dumps(GOOD)} I hope that helps."
    assert read(thought, VIEW, game) == [CriticalStep(1, 0, -0.5, "it had to block")]
    assert read('{"critical": []}', VIEW, game) == []
    twice = {"critical": [*GOOD["critical"], {**GOOD["critical"][0], "action": "B"}]}
    assert read(json.dumps(twice), VIEW, game) == read(json.dumps(GOOD), VIEW, game)
    many = {"critical": [{**GOOD["critical"][0], "step": 1 + step % 6} for step in range(50)]}
    found = read(json.dumps(many), VIEW, game)
    assert len(found) == MAX_CRITICAL_STEPS


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"step": 0}, "no_such_step"),
        ({"step": 7}, "no_such_step"),
        ({"step": True}, "no_such_step"),
        ({"step": "2"}, "no_such_step"),
        ({"step": 1.5}, "no_such_step"),
        ({"action": "H"}, "illegal_action"),
        ({"action": None}, "illegal_action"),
        ({"action": ["A"]}, "illegal_action"),
        ({"reward": 1.5}, "reward_out_of_range"),
        ({"reward": math.nan}, "reward_out_of_range"),
        ({"reward": "-1"}, "reward_out_of_range"),
        ({"reward": True}, "reward_out_of_range"),
    ],
)
def test_an_answer_that_is_not_right_is_none(change: dict[str, Any], kind: str) -> None:
    answer = {"critical": [GOOD["critical"][0] | change]}
    assert read(json.dumps(answer), VIEW, episode(BLUNDER)) == Failure(kind)


@pytest.mark.parametrize(
    "text", ["", "no", "{", "[]", '{"critical": 3}', '{"critical": [3]}', "{}", "{" * 100_000 + "}"]
)
def test_what_is_no_answer_is_none(text: str) -> None:
    assert read(text, VIEW, episode(BLUNDER)) == Failure("not_json")


@pytest.mark.parametrize(
    ("reason", "read_as"),
    [
        ('"\\ud800"', "?"),
        ('"a\\udfffb"', "a?b"),
        ("5", ""),
        ("[" * 500 + "]" * 500, ""),
        ('"é"', "é"),
        ('"' + "x" * 999 + '"', "x" * 200),
    ],
    ids=lambda text: text[:12],
)
def test_reason_is_encodable_text(reason: str, read_as: str) -> None:
    text = f'{{"critical": [{{"step": 1, "action": "D", "reward": 0.5, "reason": {reason}}}]}}'
    (found,) = read(text, VIEW, episode([3, 3]))
    assert found.reason == read_as


def test_a_full_column_cannot_be_better() -> None:
    full = episode([3, 3, 3, 3, 3, 3, 0])
    answer = {"critical": [{"step": 7, "reason": "", "action": "D", "reward": 0}]}
    assert read(json.dumps(answer), VIEW, full) == Failure("illegal_action")


def test_ten_thousand_answers_of_any_kind_never_break_anything() -> None:
    chance, game, text = random.Random(1), episode(BLUNDER), json.dumps(GOOD)
    for _ in range(10_000):
        letters = list(text)
        for _ in range(chance.randint(1, 8)):
            letters[chance.randrange(len(letters))] = chance.choice('{}[]":,0123456789.eE-ABtrue \n\\')
        found = read("".join(letters), VIEW, game)
        if not isinstance(found, Failure):
            assert all(0 <= one.step < 6 and 0 <= one.action < 7 and -1 <= one.reward <= 1 for one in found)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def analyst(server: Server) -> Iterator[VllmAnalyst]:
    pool = EndpointPool([server.url], deadline_s=20)
    yield VllmAnalyst(VIEW, MODEL, pool, 300, 3)
    pool.close()


def test_games_are_asked_about_in_one_request_under_a_schema(server: Server, analyst: VllmAnalyst) -> None:
    server.text = json.dumps(GOOD)
    games = [episode(BLUNDER), episode([3, 0])]
    found = analyst.find_critical_steps(games)
    assert found == [[CriticalStep(1, 0, -0.5, "it had to block")]] * 2
    asked = [body for body in server.asked if "structured_outputs" in body]
    assert len(asked) == 1
    assert asked[0]["structured_outputs"] == {"json": schema_of(VIEW.labels, 6)}
    assert asked[0]["max_tokens"] == 300
    assert asked[0]["temperature"] == 0
    for prompt, game in zip(asked[0]["prompt"], games, strict=True):
        assert render_episode(VIEW, game, EpisodeStatistics(VIEW, games)) in prompt
        assert "critical" in prompt
        assert prompt.index("This is Connect Four") < prompt.index("Step 1")
    assert analyst.stats["asked"] == 2


def test_further_samples_are_asked_for_with_other_seeds(server: Server, analyst: VllmAnalyst) -> None:
    server.text = json.dumps(GOOD)
    for sample in range(3):
        analyst.find_critical_steps([episode(BLUNDER)], sample)
    asked = [body for body in server.asked if "structured_outputs" in body]
    assert [(body["temperature"], body["seed"]) for body in asked] == [(0, 0), (0.7, 3), (0.7, 6)]


def test_malformed_answer_is_asked_for_again_and_then_counted(server: Server, analyst: VllmAnalyst) -> None:
    """Of three games one is right at once, one the second time, one never."""
    games = [episode([3, 3][:1]), episode([3, 0]), episode(BLUNDER)]
    texts = [render_episode(VIEW, game, EpisodeStatistics(VIEW, games)) for game in games]
    tries: dict[int, int] = {0: 0, 1: 0, 2: 0}

    def answer(index: int, prompt: str, body: dict[str, Any]) -> dict[str, Any]:
        number = next((row for row, text in enumerate(texts) if text in prompt), None)
        right = {"critical": [{"step": 1, "reason": "", "action": "B", "reward": 0.5}]}
        text = json.dumps(right)
        if number is not None:
            tries[number] += 1
            text = text if number == 0 or (number == 1 and tries[1] == 2) else "I think that"
        return {"index": index, "text": text, "finish_reason": "stop"}

    server.answer = answer  # type: ignore[method-assign]
    found = analyst.find_critical_steps(games)
    assert [len(named) for named in found] == [1, 1, 0]
    assert list(tries.values()) == [1, 2, 3]
    assert analyst.stats["no_advice/not_json"] == 1
    assert analyst.stats["asked"] == 6
    warm = [body["temperature"] for body in server.asked if "structured_outputs" in body]
    assert warm == [0, 0.7, 0.7]


def test_a_server_that_only_chats_is_given_the_schema_its_way(server: Server, analyst: VllmAnalyst) -> None:
    server.is_vllm, server.text = False, json.dumps(GOOD)
    assert analyst.find_critical_steps([episode(BLUNDER)]) == [[CriticalStep(1, 0, -0.5, "it had to block")]]
    bound = [body["response_format"] for body in server.asked if "response_format" in body]
    assert [one["json_schema"]["schema"] for one in bound] == [schema_of(VIEW.labels, 6)]


def test_of_two_games_the_better_one_is_a_letter_s_log_probability(server: Server, analyst: VllmAnalyst) -> None:
    good, bad = episode(BLUNDER[:5]), episode(BLUNDER)

    def answer(index: int, prompt: str, body: dict[str, Any]) -> dict[str, Any]:
        first = 0.6 if prompt.find(render_episode(VIEW, good)) < prompt.find(render_episode(VIEW, bad)) else 0.2
        logs = {"token_id:65": math.log(first), "token_id:66": math.log(0.2)}
        return {"index": index, "text": "A", "logprobs": {"top_logprobs": [logs]}}

    server.answer = answer  # type: ignore[method-assign]
    assert analyst.compare_pairs([(good, bad), (bad, good)]) == pytest.approx([0.75, 0.5])


def test_a_server_that_goes_away_costs_the_games_and_no_more(server: Server, analyst: VllmAnalyst) -> None:
    def never(handler: Any, body: dict[str, Any]) -> bool:
        if "structured_outputs" not in body:
            return False
        handler.reply(500, {"error": {"message": "down"}})
        return True

    server.misbehave = never
    assert analyst.find_critical_steps([episode(BLUNDER)] * 3) == [[]] * 3
    assert analyst.stats["no_advice/status_500"] == 3


def test_comparison_without_a_possible_letter_is_no_answer(server: Server, analyst: VllmAnalyst) -> None:
    def answer(index: int, prompt: str, body: dict[str, Any]) -> dict[str, Any]:
        log = -9999.0 if "Game A" in prompt else -1.0
        return {"index": index, "text": "A", "logprobs": {"top_logprobs": [{"token_id:65": log, "token_id:66": log}]}}

    server.answer = answer  # type: ignore[method-assign]
    assert analyst.compare_pairs([(episode(BLUNDER), episode(BLUNDER[:5]))]) == [None]
    assert analyst.stats["no_advice/low_label_mass"] == 1
