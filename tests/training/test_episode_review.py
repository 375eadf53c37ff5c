"""Episode review: which episodes are read, what becomes of findings and comparisons, and the runs that follow."""

import json
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch

import envs
from agents import AGENTS
from agents.guidance import METHODS, GuidanceConfig
from agents.guidance.preferences import Preferences
from envs.rng import sample_legal
from tests.helpers.episodes import BLUNDER, VIEW, episode
from tests.helpers.guidance import GAMMA, ROWS
from tests.helpers.resumed_runs import assert_equal_runs, resume, stop_half_way
from tests.helpers.small_runs import logged, small_config, tensors_in
from train import train
from training import episode_review
from training.checkpoint import load_checkpoint
from training.config import Config, evaluation_env, make_agent
from training.episode_review import (
    PAIRS_PER_EPISODE,
    REVIEW_SEED,
    Review,
    action_values,
    collect_episodes,
    compare_with_expert,
    empty_findings,
    find_critical_steps,
    fit_preferences,
    review_episodes,
)
from tutors import TutorConfig
from tutors.base import TutorError
from tutors.episode_analyst import CriticalStep, ScriptedAnalyst
from tutors.episodes import MAX_STEPS, Episode
from tutors.findings import FindingsTable
from tutors.prompts import make_view

REVIEWED = [name for name, method in METHODS.items() if method.needs_episode_review]


class Anyhow:
    """A student that plays at random."""

    def greedy(self, obs: torch.Tensor, action_mask: torch.Tensor) -> torch.Tensor:
        return sample_legal(action_mask, obs.flatten(1).sum(1) * 0.37 % 1)


@pytest.mark.parametrize("game", ["connect4", "snake", "blackjack"])
def test_collected_episodes_are_the_first_of_each_env_copy_to_their_end(game: str) -> None:
    options = {"size": 6} if game == "snake" else {}
    view = make_view(envs.make_game(game, **options))
    episodes, again = (collect_episodes(Anyhow(), envs.make(game, 60, 3, **options), view, 1) for _ in range(2))
    assert len(episodes) == 60
    assert len({one.episodic_return for one in episodes}) > 1
    for one in episodes:
        assert 1 <= len(one.actions) <= MAX_STEPS
        assert all(len(column) == len(one.actions) for column in (one.rewards, one.final_obs, *one.positions.values()))
        if one.num_earlier_steps == 0:
            assert float(one.rewards.sum()) == pytest.approx(one.episodic_return)
        action_mask = view.action_mask(one.positions)
        assert action_mask.gather(1, one.actions[:, None]).all()
    assert all(one.actions.equal(other.actions) for one, other in zip(episodes, again, strict=True))


def test_of_a_long_episode_the_last_steps_are_kept() -> None:
    """A snake that turns on the spot lives until the clock ends its game."""

    class Turner:
        def greedy(self, obs: torch.Tensor, action_mask: torch.Tensor) -> torch.Tensor:
            self.moves = getattr(self, "moves", -1) + 1
            wanted = torch.full((len(action_mask),), self.moves % 4)
            return torch.where(action_mask.gather(1, wanted[:, None])[:, 0], wanted, action_mask.long().argmax(1))

    env, view = envs.make("snake", 8, 1, size=6, time_limit=70), make_view(envs.make_game("snake", size=6))
    long = [one for one in collect_episodes(Turner(), env, view, 1) if one.num_earlier_steps]
    assert long
    for one in long:
        assert len(one.actions) == MAX_STEPS
        assert one.num_earlier_steps + MAX_STEPS <= 70


@pytest.mark.parametrize(
    ("finding", "done", "expected"),
    [
        (CriticalStep(0, 2, -0.6, ""), 1, [0.0, -0.6, 0.6]),
        (CriticalStep(0, 1, 0.8, ""), 1, [0.0, 0.8, 0.0]),
        (CriticalStep(0, 2, 0.5, ""), 1, [0.0, 0.5, 0.51]),
        (CriticalStep(0, 2, 0.0, ""), 1, [0.0, 0.0, 0.01]),
        (CriticalStep(0, 1, -0.4, ""), 1, [0.0, 0.01, 0.0]),
        (CriticalStep(0, 0, 1.0, ""), 1, [1.0, 0.99, 0.0]),
        (CriticalStep(0, 2, 1.0, ""), 1, [0.0, 0.99, 1.0]),
        (CriticalStep(0, 2, -1.0, ""), 1, [0.0, -1.0, 1.0]),
        (CriticalStep(0, 1, 0.005, ""), 1, [0.0, 0.01, 0.0]),
    ],
)
def test_finding_gives_values_to_two_actions(finding: CriticalStep, done: int, expected: list[float]) -> None:
    assert action_values(finding, done, 3).tolist() == pytest.approx(expected)


def review_by(analyst: Any, episodes: list[Episode], table: FindingsTable, run_dir: Path) -> str:
    """What a review for critical steps comes to."""
    return find_critical_steps(
        Review(analyst, episodes, METHODS["modulate"](True, "cpu", ROWS, GAMMA), table, 1, run_dir)
    )


def compared(analyst: Any, episodes: list[Episode], method: Preferences, run_dir: Path) -> str:
    """What a review by comparisons comes to."""
    return fit_preferences(Review(analyst, episodes, method, FindingsTable(VIEW, "says", "cpu"), 1, run_dir))


class Says:
    """An analyst with prescribed answers."""

    name = "says"

    def __init__(self, found: list[list[CriticalStep]]) -> None:
        self.found, self.stats = found, {"asked": len(found)}

    def find_critical_steps(self, episodes: list[Episode]) -> list[list[CriticalStep]]:
        return self.found


@pytest.mark.parametrize(("silences", "raises"), [({}, False), ({"no_advice/deadline": 1}, False), (
    {"no_advice/deadline": 1, "no_advice/status_400": 1}, True)])  # fmt: skip
def test_review_without_any_answer_ends_the_run(silences: dict[str, int], raises: bool, tmp_path: Path) -> None:
    """Silence about some is what they cost; a student is not said to be refined by nobody."""
    games, says, table = [episode(BLUNDER)] * 2, Says([[], []]), FindingsTable(VIEW, "says", "cpu")
    says.stats |= silences
    if not raises:
        assert "0 critical positions" in review_by(says, games, table, tmp_path)
        return
    with pytest.raises(TutorError, match=r"none of the 2 questions \(1 deadline, 1 status_400\): its --max-model-len"):
        review_by(says, games, table, tmp_path)


def test_findings_of_one_position_are_averaged_in_the_table(tmp_path: Path) -> None:
    games = [episode(BLUNDER), episode(BLUNDER, mirrored=True)]  # one and the same in canonical form
    answers = [
        [CriticalStep(5, 3, -1.0, "three in a column")],
        [CriticalStep(5, 3, -0.5, "it \n was time"), CriticalStep(4, 0, 0.2, "")],
    ]
    table = FindingsTable(VIEW, "says", "cpu")
    review_by(Says(answers), games, table, tmp_path)
    found = table.lookup(games[0].positions)
    assert found.any(1).tolist() == [False, False, False, False, True, True]
    done = int(games[0].actions[5])
    assert found[5, 3] == pytest.approx(0.75)
    assert found[5, done] == pytest.approx(-0.75)
    report = json.loads((tmp_path / "analysis.json").read_text())
    assert (report["critical"], report["episodes"], len(report["findings"])) == (2, 2, 3)
    text = (tmp_path / "analysis.md").read_text()
    assert "three in a column" in text
    assert "better is D, reward -1" in text


def test_findings_are_compared_with_an_expert() -> None:
    """In the blunder's game the sixth step mattered, and D was the best there; nothing else mattered."""
    games = [episode(BLUNDER)]
    for findings, expected in (
        ([CriticalStep(5, 3, -1.0, "")], (1.0, 1.0, 1.0)),
        ([CriticalStep(5, 0, -1.0, ""), CriticalStep(0, 0, -1.0, "")], (0.5, 1.0, None)),
        ([CriticalStep(0, 3, -1.0, "")], (0.0, 0.0, None)),
    ):
        lines, measures = compare_with_expert(VIEW, games, [findings])
        assert measures["precision"] == expected[0]
        assert measures["recall"] == expected[1]
        assert expected[2] is None or measures["better"] == expected[2]
        assert len(lines) == len(findings)
    (line,), _ = compare_with_expert(VIEW, games, [[CriticalStep(5, 3, -1.0, "why")]])
    assert (line["step"], line["did"], line["better"], line["expert"], line["reason"]) == (6, "G", "D", "D", "why") or (
        line["did"] == "A"  # the canonical board may be the mirror image
    )
    assert line["gap"] == line["lost"] > 0
    _, nothing = compare_with_expert(VIEW, games, [[]])
    assert nothing == {"precision": None, "recall": 0.0, "better": None}


def test_no_comparison_fits_no_reward(tmp_path: Path) -> None:
    class Silent(Says):
        def compare_pairs(self, pairs: list[Any]) -> list[None]:
            return [None] * len(pairs)

    method = GuidanceConfig("preferences").make(True, "cpu", ROWS, GAMMA)
    assert isinstance(method, Preferences)
    compared(Silent([]), [episode(BLUNDER), episode([3])], method, tmp_path)
    assert method.model is None
    assert json.loads((tmp_path / "analysis.json").read_text())["comparisons"] == 0


def test_compared_pairs_are_of_different_episodes(tmp_path: Path) -> None:
    asked: list[tuple[Episode, Episode]] = []

    class Fair(ScriptedAnalyst):
        def compare_pairs(self, pairs: Any) -> list[float | None]:
            asked.extend(pairs)
            return [float(one.episodic_return > other.episodic_return) for one, other in pairs]

    games = [episode([3] * (1 + number), [float(number)] + [0.0] * number) for number in range(6)]
    method = GuidanceConfig("preferences").make(True, "cpu", ROWS, GAMMA)
    assert isinstance(method, Preferences)
    compared(Fair(VIEW, 1.0, 1, 1), games, method, tmp_path)
    assert len(asked) == PAIRS_PER_EPISODE * 6
    assert all(one.episodic_return != other.episodic_return for one, other in asked)
    report = json.loads((tmp_path / "analysis.json").read_text())
    assert report["agrees_with_returns"] == 1.0
    assert method.model is not None


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Config]:
    """A small untutored run of each student."""
    found = {}
    for algo in AGENTS:
        found[algo] = small_config(algo, "blackjack", tmp_path_factory.mktemp(algo) / "first", tutor="none")
        train(found[algo])
    return found


def refined(first: Config, name: str, folder: Path, **tutoring: Any) -> Config:
    """What goes on from a run with games read."""
    tutor = TutorConfig("scripted", tutor_depth=4, **tutoring)
    guiding = GuidanceConfig(name, episodes=8, reward_scale=0.5)
    return replace(first, resume=first.run_dir, run_dir=folder, total_steps=4096, tutoring=tutor, guiding=guiding)


@pytest.mark.train
@pytest.mark.parametrize(("name", "algo"), list(zip(REVIEWED, cycle(AGENTS), strict=False)))
def test_run_after_review_learns_other_weights(algo: str, name: str, first: dict[str, Config], tmp_path: Path) -> None:
    summary = train(refined(first[algo], name, tmp_path / "run"))
    assert summary["global_step"] == 4096
    report = json.loads((tmp_path / "run" / "analysis.json").read_text())
    assert report["episodes"] == 8
    weights = load_checkpoint(tmp_path / "run" / "checkpoints", "cpu")["agent"]["network"]
    train(replace(first[algo], resume=first[algo].run_dir, run_dir=tmp_path / "alone", total_steps=4096))
    alone = load_checkpoint(tmp_path / "alone" / "checkpoints", "cpu")["agent"]["network"]
    assert not all(one.equal(other) for one, other in zip(tensors_in(weights), tensors_in(alone), strict=True))
    if name != "preferences":
        assert report["better"] == 1.0
        assert report["precision"] > 0.7
        assert summary["tutor"]["hits"] > 0
        assert summary["tutor"]["asked"] == 8, "games are asked about, positions never"


@pytest.mark.train
@pytest.mark.parametrize(("name", "algo"), [("modulate", "dqn"), ("preferences", "ppo"), ("modulate", "a2c")])
def test_review_without_findings_changes_nothing(
    name: str, algo: str, first: dict[str, Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ScriptedAnalyst, "find_critical_steps", lambda self, episodes: [[] for _ in episodes])
    monkeypatch.setattr(ScriptedAnalyst, "compare_pairs", lambda self, pairs: [None for _ in pairs])
    quiet = refined(first[algo], name, tmp_path / "quiet")
    alone = replace(quiet, run_dir=tmp_path / "alone", tutoring=TutorConfig("none"), guiding=GuidanceConfig("none"))
    for config in (quiet, alone):
        train(config)
    agents = [load_checkpoint(config.run_dir / "checkpoints", "cpu")["agent"] for config in (quiet, alone)]
    learned = [tensors_in({part: agent[part] for part in ("network", "optimizer", "steps")}) for agent in agents]
    assert all(one.equal(other) for one, other in zip(*learned, strict=True))


@pytest.mark.train
@pytest.mark.parametrize("name", ["modulate", "preferences"])
def test_resumed_run_is_not_reviewed_again(
    name: str, first: dict[str, Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = refined(first["ppo"], name, tmp_path / "whole")
    train(whole)
    parts = replace(whole, run_dir=tmp_path / "parts")
    stop_half_way(parts, monkeypatch, step=3072)
    report = (tmp_path / "parts" / "analysis.json").read_text()
    monkeypatch.setattr("train.review_episodes", None)
    resume(parts)
    assert_equal_runs(whole.run_dir, parts.run_dir)
    assert (tmp_path / "parts" / "analysis.json").read_text() == report
    assert min(step for step, *_ in logged(parts.run_dir)) > 2048


def test_review_requires_a_run_and_an_analyst(first: dict[str, Config], tmp_path: Path) -> None:
    config = refined(first["ppo"], "modulate", tmp_path / "run")
    for change, words in (
        ({"resume": None}, "name its run with --resume"),
        ({"tutoring": TutorConfig("none")}, "cannot read a student's games"),
        ({"tutoring": TutorConfig("recorded:x.sqlite")}, "cannot read a student's games"),
        ({"guiding": GuidanceConfig("modulate", episodes=1)}, "episodes is 1"),
        ({"guiding": GuidanceConfig("modulate", reward_scale=-1.0)}, "reward_scale is -1"),
    ):
        with pytest.raises(ValueError, match=words):
            train(replace(config, **change))
        assert not (config.run_dir / "config.json").exists(), "so the folder can be used when that is mended"


@pytest.mark.parametrize(("selection", "copies"), [("worst", 40), ("any", 8)])
def test_reviewed_episodes_are_selected_and_never_those_of_an_evaluation(
    selection: str, copies: int, first: dict[str, Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds, played, reviewed = [], [], []

    def seeded(config: Config, num_envs: int, device: str) -> Any:
        seeds.append((config.seed, num_envs))
        return evaluation_env(config, num_envs, device)

    def collected(*args: Any) -> list[Episode]:
        played.extend(collect_episodes(*args))
        return list(played)

    def critical_steps(self: ScriptedAnalyst, episodes: list[Episode]) -> list[list[CriticalStep]]:
        reviewed.extend(episodes)
        return [[] for _ in episodes]

    monkeypatch.setattr(episode_review, "evaluation_env", seeded)
    monkeypatch.setattr(episode_review, "collect_episodes", collected)
    monkeypatch.setattr(ScriptedAnalyst, "find_critical_steps", critical_steps)
    config = replace(refined(first["ppo"], "modulate", tmp_path), device="cpu")
    config = replace(config, guiding=replace(config.guiding, episode_selection=selection))
    env = envs.make("blackjack", 4)
    review_episodes(config, make_agent(config, env), empty_findings(config, env), print)
    assert seeds == [(config.seed + REVIEW_SEED, copies)]
    totals = [one.episodic_return for one in played]
    assert min(totals) < max(totals)
    assert [one.episodic_return for one in reviewed] == (sorted(totals) if selection == "worst" else totals)[:8]
