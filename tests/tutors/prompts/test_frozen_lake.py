"""The view of FrozenLake against the env itself, and its expert against a table of all times and places."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import pytest
import torch

from envs import make
from envs.rng import CounterRNG
from tests.helpers.views import game_of
from training.evaluation import run_episodes, tutor_policy
from tutors import TutorConfig, open_advisor
from tutors.prompts import make_view
from tutors.prompts.frozen_lake import FrozenLakeView, optimal_values
from tutors.store.identity import question_of

LAKES = [  # options, time limit, the best play's chance
    ({}, 100, 0.74),
    ({"map_name": "8x8"}, 200, 0.91),
    ({"is_slippery": False}, 100, 1.0),
    ({"success_rate": 0.8}, 100, None),
]
SIDES = ("Left", "Down", "Right", "Up")


def view_of(**options: Any) -> tuple[FrozenLakeView, Any]:
    game = game_of("gym:FrozenLake-v1", **options)
    view = make_view(game)
    assert isinstance(view, FrozenLakeView)
    return view, gym.make("FrozenLake-v1", **options).unwrapped


def within(lake: Any, time_limit: int, choose: Callable[[list[float]], int], actions: Any = None) -> float:
    """The chance to reach the goal from the start, by induction from the last time step on."""
    values = dict.fromkeys(lake.P, 0.0)
    for _ in range(time_limit):
        q_values = {
            place: [sum(p * (r + values[to] * (not end)) for p, to, r, end in lake.P[place][a]) for a in range(4)]
            for place in lake.P
        }
        values = {place: q[choose(q) if actions is None else actions[place]] for place, q in q_values.items()}
    return values[0]


@pytest.mark.parametrize(("options", "time_limit", "known"), LAKES, ids=str)
def test_expert_comes_near_to_the_best_play_within_the_time_limit(
    options: dict[str, Any], time_limit: int, known: float | None
) -> None:
    """The best play looks at the time, too: near the end it takes risks."""
    view, lake = view_of(**options, max_episode_steps=time_limit)
    best = view.expert_values({"field": torch.arange(len(lake.P))}, 1).argmax(1).tolist()
    optimum = within(lake, time_limit, lambda q_values: q_values.index(max(q_values)))
    assert 0.95 * optimum < within(lake, time_limit, max, actions=best) <= optimum
    assert known is None or optimum == pytest.approx(known, abs=0.005), "as Gymnasium's registrations say"


def test_expert_takes_the_shortest_way_on_firm_ice() -> None:
    view, lake = view_of(is_slippery=False)
    lake.reset(seed=1)
    values = view.expert_values({"field": torch.arange(16)}, 1)
    for step in range(1, 7):
        _, reward, terminated, _, _ = lake.step(int(values[lake.s].argmax()))
        assert (reward, terminated) == ((1, True) if step == 6 else (0, False))
    ways = values[0].tolist()
    assert ways[1] == ways[2] > max(ways[0], ways[3]), "two ways are equally long"


@pytest.mark.parametrize("options", [{}, {"map_name": "8x8"}], ids=str)
def test_prompt_says_what_lies_where_a_move_leads(options: dict[str, Any]) -> None:
    """On firm ice of the same map."""
    view, _ = view_of(**options)
    _, lake = view_of(**options, is_slippery=False)
    columns = lake.desc.shape[1]
    words = {b"S": "the start", b"F": "ice", b"H": "a hole", b"G": "the goal"}
    for place, prompt in enumerate(view.render({"field": torch.arange(len(lake.P))})):
        lines = prompt.removeprefix(view.instructions).splitlines()
        assert lines[0] == f"You are in row {place // columns + 1}, column {place % columns + 1}."
        if lake.desc.ravel()[place] in b"HG":
            continue
        for action, line in enumerate(lines[1:5]):
            ((_, to, _, _),) = lake.P[place][action]
            assert line == f"{SIDES[action]}: {'the edge' if to == place else words[bytes(lake.desc.ravel()[to])]}"


def test_rules_say_how_slippery_the_ice_is() -> None:
    slippery, firm, rough = (
        view_of(**options)[0].instructions for options in ({}, {"is_slippery": False}, {"success_rate": 0.8})
    )
    assert "with a chance of 33% you move" in slippery
    assert "with a chance of 80% you move as you choose, and with a chance of 10% each" in rough
    assert "slippery" not in firm


def test_answers_about_another_map_are_stored_apart() -> None:
    game = game_of("gym:FrozenLake-v1")
    maps = [["SFG"], ["SFFG"], ["SHFG"]]
    asked = [question_of(game.spec, FrozenLakeView(game_of("gym:FrozenLake-v1", desc=desc))) for desc in maps]
    assert asked[0] != asked[1] != asked[2]


def test_envs_without_one_map_are_refused() -> None:
    with pytest.raises(ValueError, match="CartPole-v1 has no map"):
        FrozenLakeView(game_of("gym:CartPole-v1"))
    with pytest.raises(ValueError, match="different maps"):
        FrozenLakeView(make("gym:FrozenLake-v1", 4, map_name=None).game)


def test_optimal_values_of_a_coin_that_may_be_thrown_again() -> None:
    """Heads pays 1 and ends; after tails one throws again, or leaves with 0.2: v = 1/2 + 0.9 v / 2."""
    throw, leave = [(0.5, 0, 1, True), (0.5, 0, 0, False)], [(1.0, 0, 0.2, True)]
    assert optimal_values({0: {0: throw, 1: leave}}, 0.9).tolist() == [[pytest.approx(0.5 / 0.55), 0.2]]


def test_scripted_tutor_alone_crosses_the_lake(tmp_path: Any) -> None:
    env = make("gym:FrozenLake-v1", 200, 1)
    with open_advisor(TutorConfig("scripted"), env.game, 0, tmp_path, "cpu") as advisor:
        assert advisor is not None
        result = run_episodes(tutor_policy(advisor, CounterRNG(1, torch.arange(200), 1)), env)
    assert 0.6 < result.mean_return < 0.85
    assert advisor.counters()["queried"] <= 11, "fields that are no hole and not the goal"
