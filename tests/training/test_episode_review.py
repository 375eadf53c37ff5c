"""A pause in a run: which games are read, what becomes of findings and comparisons, and the runs that follow."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import envs
from agents import AGENTS
from agents.guidance import METHODS, GuidanceConfig
from agents.guidance.preferences import Preferences
from envs.rng import sample_legal
from evaluate import evaluation_env
from tests.helpers.guidance import GAMMA, ROWS
from tests.integration.test_query import config_of, metrics, tensors
from tests.training.test_resume import again, agree, stopped
from tests.tutors.test_episode_analyst import BLUNDER, VIEW, episode
from train import train
from training.checkpoint import load_checkpoint
from training.config import Config, make_agent
from training.episode_review import (
    PAIRS,
    READING_SEED,
    collect,
    compare,
    described,
    modulate,
    pause,
    reading_desk,
    worth_of,
)
from tutors import TutorConfig
from tutors.advice_table import AdviceTable
from tutors.base import TutorError
from tutors.episode_analyst import Finding, ScriptedAnalyst
from tutors.episodes import LAST, Episode
from tutors.prompts import make_view

PAUSING = [name for name, method in METHODS.items() if method.needs_episode_review]


class Anyhow:
    """A student that plays by luck alone."""

    def greedy(self, obs: torch.Tensor, action_mask: torch.Tensor) -> torch.Tensor:
        return sample_legal(action_mask, obs.flatten(1).sum(1) * 0.37 % 1)


@pytest.mark.parametrize("game", ["connect4", "snake", "blackjack"])
def test_the_worst_games_are_read_to_their_end(game: str) -> None:
    options = {"size": 6} if game == "snake" else {}
    env, view = envs.make(game, 60, 3, **options), make_view(envs.make_game(game, **options))
    every = collect(Anyhow(), env, view, 60, False, 1)
    worst = collect(Anyhow(), envs.make(game, 60, 3, **options), view, 12, True, 1)
    totals = [one.total for one in every]
    assert [one.total for one in worst] == sorted(totals)[:12]
    assert min(totals) < max(totals)
    for one in every:
        assert 1 <= len(one.actions) <= LAST
        assert all(len(column) == len(one.actions) for column in (one.rewards, one.seen, *one.told.values()))
        if one.first == 0:
            assert float(one.rewards.sum()) == pytest.approx(one.total)
        action_mask = view.action_mask(one.told)
        assert action_mask.gather(1, one.actions[:, None]).all()
    again_ = collect(Anyhow(), envs.make(game, 60, 3, **options), view, 60, False, 1)
    assert all(one.actions.equal(other.actions) for one, other in zip(every, again_, strict=True))


def test_of_a_long_game_the_last_steps_are_read() -> None:
    """A snake that turns on the spot lives until the clock ends its game."""

    class Turner:
        def greedy(self, obs: torch.Tensor, action_mask: torch.Tensor) -> torch.Tensor:
            self.moves = getattr(self, "moves", -1) + 1
            wanted = torch.full((len(action_mask),), self.moves % 4)
            return torch.where(action_mask.gather(1, wanted[:, None])[:, 0], wanted, action_mask.long().argmax(1))

    env, view = envs.make("snake", 8, 1, size=6, time_limit=70), make_view(envs.make_game("snake", size=6))
    long = [one for one in collect(Turner(), env, view, 8, False, 1) if one.first]
    assert long
    for one in long:
        assert len(one.actions) == LAST
        assert one.first + LAST <= 70


@pytest.mark.parametrize(
    ("finding", "done", "expected"),
    [
        (Finding(0, 2, -0.6, ""), 1, [0.0, -0.6, 0.6]),
        (Finding(0, 1, 0.8, ""), 1, [0.0, 0.8, 0.0]),
        (Finding(0, 2, 0.5, ""), 1, [0.0, 0.5, 0.51]),
        (Finding(0, 2, 0.0, ""), 1, [0.0, 0.0, 0.01]),
        (Finding(0, 1, -0.4, ""), 1, [0.0, 0.01, 0.0]),
        (Finding(0, 0, 1.0, ""), 1, [1.0, 0.99, 0.0]),
        (Finding(0, 2, 1.0, ""), 1, [0.0, 0.99, 1.0]),
        (Finding(0, 2, -1.0, ""), 1, [0.0, -1.0, 1.0]),
        (Finding(0, 1, 0.005, ""), 1, [0.0, 0.01, 0.0]),
    ],
)
def test_a_finding_says_what_two_actions_are_worth(finding: Finding, done: int, expected: list[float]) -> None:
    assert worth_of(finding, done, 3).tolist() == pytest.approx(expected)


class Says:
    """An analyst that says what it is told to."""

    name = "says"

    def __init__(self, found: list[list[Finding]]) -> None:
        self.found, self.stats = found, {"asked": len(found)}

    def critical(self, episodes: list[Episode]) -> list[list[Finding]]:
        return self.found


@pytest.mark.parametrize(("silences", "raises"), [({}, False), ({"no_advice/deadline": 1}, False), (
    {"no_advice/deadline": 1, "no_advice/status_400": 1}, True)])  # fmt: skip
def test_who_is_silent_about_every_game_ends_the_run(silences: dict[str, int], raises: bool, tmp_path: Path) -> None:
    """Silence about some is what they cost; a student is not said to be refined by nobody."""
    games, says, table = [episode(BLUNDER)] * 2, Says([[], []]), AdviceTable(7, float("inf"))
    says.stats |= silences
    if not raises:
        assert "0 critical positions" in modulate(says, VIEW, games, table, tmp_path)
        return
    with pytest.raises(TutorError, match=r"any of the 2 questions \(1 deadline, 1 status_400\): its --max-model-len"):
        modulate(says, VIEW, games, table, tmp_path)


def test_findings_come_into_the_table_by_position_and_are_averaged(tmp_path: Path) -> None:
    games = [episode(BLUNDER), episode(BLUNDER, mirrored=True)]  # one and the same as they are told
    told = [[Finding(5, 3, -1.0, "three in a column")], [Finding(5, 3, -0.5, "it \n was time"), Finding(4, 0, 0.2, "")]]
    table = AdviceTable(7, float("inf"))
    modulate(Says(told), VIEW, games, table, tmp_path)
    keys = VIEW.key(games[0].told)
    found = table.get(keys, torch.ones(6, dtype=torch.bool))
    assert found.valid.tolist() == [False, False, False, False, True, True]
    done = int(games[0].actions[5])
    assert found.probs[5, 3] == pytest.approx(0.75)
    assert found.probs[5, done] == pytest.approx(-0.75)
    report = json.loads((tmp_path / "analysis.json").read_text())
    assert (report["critical"], report["episodes"], len(report["findings"])) == (2, 2, 3)
    text = (tmp_path / "analysis.md").read_text()
    assert "three in a column" in text
    assert "better is D, reward -1" in text


def test_what_was_found_is_held_against_an_expert() -> None:
    """In the blunder's game the sixth step mattered, and D was the best there; nothing else mattered."""
    games = [episode(BLUNDER)]
    for findings, expected in (
        ([Finding(5, 3, -1.0, "")], (1.0, 1.0, 1.0)),
        ([Finding(5, 0, -1.0, ""), Finding(0, 0, -1.0, "")], (0.5, 1.0, None)),
        ([Finding(0, 3, -1.0, "")], (0.0, 0.0, None)),
    ):
        lines, measures = described(VIEW, games, [findings])
        assert measures["precision"] == expected[0]
        assert measures["recall"] == expected[1]
        assert expected[2] is None or measures["better"] == expected[2]
        assert len(lines) == len(findings)
    (line,), _ = described(VIEW, games, [[Finding(5, 3, -1.0, "why")]])
    assert (line["step"], line["did"], line["better"], line["expert"], line["reason"]) == (6, "G", "D", "D", "why") or (
        line["did"] == "A"  # the board may be told as its mirror image
    )
    assert line["gap"] == line["lost"] > 0
    _, nothing = described(VIEW, games, [[]])
    assert nothing == {"precision": None, "recall": 0.0, "better": None}


def test_who_hears_nothing_of_two_games_fits_nothing(tmp_path: Path) -> None:
    class Silent(Says):
        def prefers(self, pairs: list[Any]) -> list[None]:
            return [None] * len(pairs)

    method = GuidanceConfig("preferences").make(True, "cpu", ROWS, GAMMA)
    assert isinstance(method, Preferences)
    compare(Silent([]), [episode(BLUNDER), episode([3])], method, 1, tmp_path)
    assert method.model is None
    assert json.loads((tmp_path / "analysis.json").read_text())["comparisons"] == 0


def test_pairs_are_of_different_games_and_told_apart_by_their_returns(tmp_path: Path) -> None:
    asked: list[tuple[Episode, Episode]] = []

    class Fair(ScriptedAnalyst):
        def prefers(self, pairs: Any) -> list[float | None]:
            asked.extend(pairs)
            return [float(one.total > other.total) for one, other in pairs]

    games = [episode([3] * (1 + number), [float(number)] + [0.0] * number) for number in range(6)]
    method = GuidanceConfig("preferences").make(True, "cpu", ROWS, GAMMA)
    assert isinstance(method, Preferences)
    compare(Fair(VIEW, 1.0, 1, 1), games, method, 1, tmp_path)
    assert len(asked) == PAIRS * 6
    assert all(one.total != other.total for one, other in asked)
    report = json.loads((tmp_path / "analysis.json").read_text())
    assert report["agrees_with_returns"] == 1.0
    assert method.model is not None


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Config]:
    """A small untutored run of each student."""
    found = {}
    for algo in AGENTS:
        found[algo] = config_of(algo, "blackjack", tmp_path_factory.mktemp(algo) / "first", tutor="none")
        train(found[algo])
    return found


def refined(first: Config, name: str, folder: Path, **told: Any) -> Config:
    """What goes on from a run with games read."""
    tutor = TutorConfig("scripted", tutor_depth=4, **told)
    guiding = GuidanceConfig(name, episodes=8, reward_scale=0.5)
    return replace(first, resume=first.run_dir, run_dir=folder, total_steps=4096, tutoring=tutor, guiding=guiding)


@pytest.mark.parametrize("name", PAUSING)
@pytest.mark.parametrize("algo", AGENTS)
def test_a_student_is_refined_after_its_games_were_read(
    algo: str, name: str, first: dict[str, Config], tmp_path: Path
) -> None:
    summary = train(refined(first[algo], name, tmp_path / "run"))
    assert summary["global_step"] == 4096
    report = json.loads((tmp_path / "run" / "analysis.json").read_text())
    assert report["episodes"] == 8
    weights = load_checkpoint(tmp_path / "run" / "checkpoints", "cpu")["agent"]["network"]
    train(replace(first[algo], resume=first[algo].run_dir, run_dir=tmp_path / "alone", total_steps=4096))
    alone = load_checkpoint(tmp_path / "alone" / "checkpoints", "cpu")["agent"]["network"]
    assert not all(one.equal(other) for one, other in zip(tensors(weights), tensors(alone), strict=True))
    if name != "preferences":
        assert report["better"] == 1.0
        assert report["precision"] > 0.7
        assert summary["tutor"]["hits"] > 0
        assert summary["tutor"]["asked"] == 8, "games are asked about, positions never"


@pytest.mark.parametrize("algo", AGENTS)
@pytest.mark.parametrize("name", ["modulate", "preferences"])
def test_a_reader_who_finds_nothing_leaves_the_student_what_it_would_have_become_alone(
    name: str, algo: str, first: dict[str, Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ScriptedAnalyst, "critical", lambda self, episodes: [[] for _ in episodes])
    monkeypatch.setattr(ScriptedAnalyst, "prefers", lambda self, pairs: [None for _ in pairs])
    quiet = refined(first[algo], name, tmp_path / "quiet")
    alone = replace(quiet, run_dir=tmp_path / "alone", tutoring=TutorConfig("none"), guiding=GuidanceConfig("none"))
    for config in (quiet, alone):
        train(config)
    agents = [load_checkpoint(config.run_dir / "checkpoints", "cpu")["agent"] for config in (quiet, alone)]
    learned = [tensors({part: agent[part] for part in ("network", "optimizer", "steps")}) for agent in agents]
    assert all(one.equal(other) for one, other in zip(*learned, strict=True))


@pytest.mark.parametrize("name", ["modulate", "preferences"])
def test_a_refinement_that_stopped_goes_on_without_another_pause(
    name: str, first: dict[str, Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = refined(first["ppo"], name, tmp_path / "whole")
    train(whole)
    parts = replace(whole, run_dir=tmp_path / "parts")
    monkeypatch.setattr("tests.training.test_resume.HALF", 3072)
    stopped(parts, monkeypatch)
    report = (tmp_path / "parts" / "analysis.json").read_text()
    monkeypatch.setattr("train.pause", None)
    monkeypatch.setattr("pause.make_analyst", None)
    again(parts)
    agree(whole.run_dir, parts.run_dir)
    assert (tmp_path / "parts" / "analysis.json").read_text() == report
    assert min(int(step) for step, *_ in metrics(parts.run_dir)[1:]) > 2048


def test_a_pause_wants_a_run_and_somebody_who_reads(first: dict[str, Config], tmp_path: Path) -> None:
    config = refined(first["ppo"], "modulate", tmp_path / "run")
    for change, words in (
        ({"resume": None}, "--resume says which run's"),
        ({"tutoring": TutorConfig("none")}, "cannot read a student's games"),
        ({"tutoring": TutorConfig("recorded:x.sqlite")}, "cannot read a student's games"),
        ({"guiding": GuidanceConfig("modulate", episodes=1)}, "episodes is 1"),
        ({"guiding": GuidanceConfig("modulate", reward_scale=-1.0)}, "reward_scale is -1"),
    ):
        with pytest.raises(ValueError, match=words):
            train(replace(config, **change))
        assert not (config.run_dir / "config.json").exists(), "so the folder can be used when that is mended"


def test_games_that_are_read_are_no_evaluation_s(first: dict[str, Config], monkeypatch: pytest.MonkeyPatch) -> None:
    """So a student that was refined by them is judged by others."""
    seeds = []

    def noted(config: Config, *rest: Any) -> Any:
        seeds.append(config.seed)
        return evaluation_env(config, *rest)

    monkeypatch.setattr("pause.evaluation_env", noted)
    config = replace(refined(first["ppo"], "modulate", first["ppo"].run_dir), device="cpu")
    env = envs.make("blackjack", 4)
    agent = make_agent(config, env)
    pause(config, agent, reading_desk(config, env), print)
    assert seeds == [config.seed + READING_SEED]
