"""Episode review: which episodes are read, what becomes of findings and comparisons, and the runs that follow."""

import json
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any
from unittest.mock import Mock

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
from train import Trainer, train
from training import episode_review
from training.audit import Audit, AuditedFinding, Auditor, Verdict
from training.checkpoint import load_checkpoint
from training.config import Config, default_config, evaluation_env, make_agent
from training.episode_review import (
    PAIRS_PER_EPISODE,
    REVIEW_SEED,
    Evidence,
    Review,
    action_values,
    collect_episodes,
    compare_with_expert,
    empty_findings,
    find_critical_steps,
    fit_preferences,
    median_findings,
    review_episodes,
)
from tutors import TutorConfig
from tutors.base import TutorError
from tutors.episode_analyst import CriticalStep, ScriptedAnalyst
from tutors.episodes import MAX_STEPS, Episode
from tutors.findings import FindingsTable
from tutors.prompts import make_view

STICK, HIT = 0, 1
VIEW_GAME = envs.make_game("connect4")
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

    def find_critical_steps(self, episodes: list[Episode], sample: int = 0) -> list[list[CriticalStep]]:
        return self.found

    def rescue(self) -> list[list[CriticalStep]]:
        return []


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


@pytest.mark.parametrize(
    "reason", ["\ud800", "\x1b[31m\n# head\n<script>", "`" * 3 + "\n| a | b |", "\u202e é ♠", "\x00"]
)
def test_any_reason_is_text_in_the_report(reason: str, tmp_path: Path) -> None:
    table = FindingsTable(VIEW, "says", "cpu")
    review_by(Says([[CriticalStep(5, 3, -1.0, reason)]]), [episode(BLUNDER)], table, tmp_path)
    text = (tmp_path / "analysis.md").read_text(encoding="utf-8")
    assert text.replace("\n", "").isprintable()
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "# What says found in 1 episodes",
        "## Episode 1, step 6",
    ]
    assert "<" not in text
    assert text.count("```") == 2
    (line,) = json.loads((tmp_path / "analysis.json").read_text())["findings"]
    assert line["reason"] == reason


@pytest.mark.parametrize("part", ["audit_critical_steps", "compare_with_expert", "fill_table", "as_markdown"])
def test_answers_are_kept_before_they_are_used(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_arguments: object) -> None:
        raise RuntimeError(part)

    monkeypatch.setattr(episode_review, part, fails)
    with pytest.raises(RuntimeError, match=part):
        review_by(
            Says([[CriticalStep(5, 3, -1.0, "why")]]), [episode(BLUNDER)], FindingsTable(VIEW, "", "cpu"), tmp_path
        )
    kept = json.loads((tmp_path / "answers.json").read_text())
    assert kept == {"analyst": "says", "answers": [[[{"step": 5, "action": 3, "reward": -1.0, "reason": "why"}]]]}


def test_answers_of_the_first_sample_are_kept_where_the_second_fails(tmp_path: Path) -> None:
    class Refused(Says):
        def find_critical_steps(self, episodes: list[Episode], sample: int = 0) -> list[list[CriticalStep]]:
            if sample:
                raise TutorError("the key is refused")
            return self.found

    method = METHODS["modulate"](True, "cpu", ROWS, GAMMA)
    says, table = Refused([[CriticalStep(5, 3, -1.0, "why")]]), FindingsTable(VIEW, "says", "cpu")
    with pytest.raises(TutorError, match="refused"):
        find_critical_steps(Review(says, [episode(BLUNDER)], method, table, 1, tmp_path, samples=2))
    assert len(json.loads((tmp_path / "answers.json").read_text())["answers"]) == 1


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

    method = GuidanceConfig("preferences").make("ppo", True, "cpu", ROWS, GAMMA)
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
    method = GuidanceConfig("preferences").make("ppo", True, "cpu", ROWS, GAMMA)
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


def refined(first: Config, name: str, folder: Path, no_audit: bool = True, **tutoring: Any) -> Config:
    """What goes on from a run with games read."""
    tutor = TutorConfig("scripted", tutor_depth=4, **tutoring)
    guiding = GuidanceConfig(name, episodes=8, reward_scale=0.5, no_audit=no_audit)
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
    monkeypatch.setattr(ScriptedAnalyst, "find_critical_steps", lambda self, episodes, sample: [[] for _ in episodes])
    monkeypatch.setattr(ScriptedAnalyst, "compare_pairs", lambda self, pairs: [None for _ in pairs])
    quiet = refined(first[algo], name, tmp_path / "quiet")
    alone = replace(quiet, run_dir=tmp_path / "alone", tutoring=TutorConfig("none"), guiding=GuidanceConfig("none"))
    for config in (quiet, alone):
        train(config)
    agents = [load_checkpoint(config.run_dir / "checkpoints", "cpu")["agent"] for config in (quiet, alone)]
    learned = [tensors_in({part: agent[part] for part in ("network", "optimizer", "steps")}) for agent in agents]
    assert all(one.equal(other) for one, other in zip(*learned, strict=True))


@pytest.mark.train
def test_run_that_is_killed_after_its_review_is_resumed_without_another(
    first: dict[str, Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = refined(first["dqn"], "modulate", tmp_path / "whole")
    train(whole)
    parts = replace(whole, run_dir=tmp_path / "parts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.Trainer.run", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(parts)
    monkeypatch.setattr("train.review_episodes", None)
    resume(parts)
    assert_equal_runs(whole.run_dir, parts.run_dir)


@pytest.mark.train
@pytest.mark.parametrize("no_audit", [False, True])
@pytest.mark.parametrize("name", ["modulate", "preferences"])
def test_resumed_run_is_not_reviewed_again(
    name: str, no_audit: bool, first: dict[str, Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = refined(first["ppo"], name, tmp_path / "whole", no_audit)
    expected = train(whole)
    audited = expected["tutor"]["audit"].get("env_steps", 0)
    assert (audited > 0) == (name == "modulate" and not no_audit)
    parts = replace(whole, run_dir=tmp_path / "parts")
    stop_half_way(parts, monkeypatch, step=3072 + audited)
    report = (tmp_path / "parts" / "analysis.json").read_text()
    monkeypatch.setattr("train.review_episodes", None)
    summary = resume(parts)
    assert summary["tutor"]["audit"] == expected["tutor"]["audit"]
    assert_equal_runs(whole.run_dir, parts.run_dir)
    assert (tmp_path / "parts" / "analysis.json").read_text() == report
    assert min(step for step, *_ in logged(parts.run_dir)) > 2048


def reviewed(action: int, folder: Path, steps_left: int = 80_000) -> FindingsTable:
    """What a review leaves of what a script without mistakes says to a student of Blackjack with a single action."""
    config = replace(default_config("ppo", "blackjack"), run_dir=folder, device="cpu", tutoring=TutorConfig("scripted"))
    config = replace(config, guiding=GuidanceConfig("modulate", episodes=60))
    env = envs.make("blackjack", 4)
    table, agent = empty_findings(config, env), make_agent(config, env)
    agent.greedy = lambda obs, action_mask: torch.full((len(obs),), action)
    review_episodes(config, agent, table, print, steps_left)
    return table


def test_audit_keeps_what_a_reader_without_mistakes_says(tmp_path: Path) -> None:
    table, report = reviewed(HIT, tmp_path), json.loads((tmp_path / "analysis.json").read_text())
    assert not table.audit["refused"]
    assert table.audit["alone"]["interval"][0] > 0
    assert table.audit["together"]["interval"][0] > 0
    assert table.audit["kept"] > 20 > table.audit["dropped"]
    assert 0 < table.audit["env_steps"] <= 8000
    assert report["audit"] == table.audit
    assert sum(one["kept"] for one in report["findings"]) == table.audit["kept"]
    assert all(one["kept"] == (one["difference"] is not None and one["difference"] >= 0) for one in report["findings"])
    assert 0 < len(table.keys) <= table.audit["kept"]
    assert "The audit keeps" in (tmp_path / "analysis.md").read_text()


def test_audit_refuses_a_reader_that_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says to hit on 17 and more."""

    def hit(self: ScriptedAnalyst, episodes: list[Episode], sample: int) -> list[list[CriticalStep]]:
        return [[CriticalStep(0, HIT, -1.0, "")] if one.positions["sum"][0] > 16 else [] for one in episodes]

    monkeypatch.setattr(ScriptedAnalyst, "find_critical_steps", hit)
    table = reviewed(STICK, tmp_path)
    assert table.audit["refused"]
    assert table.audit["kept"] == len(table.keys) == 0
    assert table.audit["alone"]["value"] < 0
    text = (tmp_path / "analysis.md").read_text()
    assert "The audit refuses scripted" in text
    assert "The run goes on without a tutor." in text
    assert text.count(", dropped.") == table.audit["dropped"] > 5


def test_audit_takes_a_twentieth_of_the_steps_that_are_left(tmp_path: Path) -> None:
    assert 50 < reviewed(HIT, tmp_path, steps_left=4000).audit["env_steps"] <= 200


def test_audit_plays_the_named_action_as_the_env_calls_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two mirror images one state is canonical, and the script names the same canonical action in both."""
    seen: list[AuditedFinding] = []

    def audited(self: Auditor, findings: list[AuditedFinding], follow: Any) -> Audit:
        seen.extend(findings)
        policy, state = follow([1]), games[0].states
        assert policy(state, *VIEW_GAME.observe(state)).tolist() == [*Anyhow().greedy(*VIEW_GAME.observe(state))[:5], 6]
        return Audit((1.0,) * len(findings), Verdict(1.0, 0.5, 1.5, 9), Verdict(1.0, 0.5, 1.5, 9), 17)

    monkeypatch.setattr(Auditor, "audit", audited)
    games = [episode(BLUNDER), episode(BLUNDER, mirrored=True)]
    best = [[CriticalStep(5, int(game.actions[5]), 0.5, "")] for game in games]  # the column that was played, 6 or 0
    evidence = Evidence(Anyhow(), envs.make("connect4", 1), 8000, [])
    table = FindingsTable(VIEW, "says", "cpu")
    find_critical_steps(Review(Says(best), games, METHODS["modulate"](True, "cpu"), table, 1, tmp_path, 1, evidence))
    assert [one.action for one in seen] == [6, 0]
    assert seen[0].question == seen[1].question
    assert all(one.state["mine"].equal(game.states["mine"][5:6]) for one, game in zip(seen, games, strict=True))
    assert table.audit["env_steps"] == 17


def test_audit_is_skipped_where_states_cannot_be_copied(tmp_path: Path) -> None:
    evidence = Evidence(Anyhow(), envs.make("gym:CartPole-v1", 2), 8000, [])
    table, says = FindingsTable(VIEW, "says", "cpu"), Says([[CriticalStep(5, 3, -1.0, "")]])
    review = Review(says, [episode(BLUNDER)], METHODS["modulate"](True, "cpu"), table, 1, tmp_path, 1, evidence)
    assert "Not audited: the states of gym:CartPole-v1 cannot be copied" in find_critical_steps(review)
    assert table.audit == {"skipped": "the states of gym:CartPole-v1 cannot be copied"}
    assert len(table.keys) == 1


def weights_by_update(config: Config, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, list[torch.Tensor]]]:
    """The env steps, and all that was learned, after each update of a run."""
    update, found = Trainer.update, []

    def recorded(self: Trainer, now: Any) -> Any:
        result = update(self, now)
        state = self.agent.state_dict()
        learned = tensors_in({part: state[part] for part in ("network", "optimizer", "steps")})
        found.append((self.state.global_step, [one.clone() for one in learned]))
        return result

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", recorded)
        train(config)
    return found


@pytest.mark.train
@pytest.mark.parametrize(("name", "algo"), [("modulate", "dqn"), ("modulate-d", "ppo"), ("preferences", "a2c")])
def test_refused_run_is_the_untutored_one_less_the_steps_of_the_audit(
    name: str, algo: str, first: dict[str, Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = refined(first[algo], name, tmp_path / "refused", no_audit=False, tutor_accuracy=0.0)
    alone = replace(refused, run_dir=tmp_path / "alone", tutoring=TutorConfig("none"), guiding=GuidanceConfig("none"))
    ours, theirs = (weights_by_update(config, monkeypatch) for config in (refused, alone))
    summary = json.loads((tmp_path / "refused" / "summary.json").read_text())
    assert summary["tutor"]["audit"]["refused"]
    audited = summary["tutor"]["audit"]["env_steps"]
    assert (audited > 0) == (name != "preferences")
    assert len(ours) == len(theirs) - audited // (ours[1][0] - ours[0][0])
    for (step, learned), (step_alone, learned_alone) in zip(ours, theirs, strict=False):
        assert step == step_alone + audited
        assert all(one.equal(other) for one, other in zip(learned, learned_alone, strict=True))


def test_fitted_reward_is_refused_unless_it_goes_with_the_returns(tmp_path: Path) -> None:
    """The student sees after each step what it got; a reader prefers the better episodes, or the worse ones."""

    class Fair(Says):
        sign = 1.0

        def compare_pairs(self, pairs: Any) -> list[float | None]:
            return [float(self.sign * (one.episodic_return - other.episodic_return) > 0) for one, other in pairs]

    def game(number: int) -> Episode:
        got = [float((number >> bit) & 1) for bit in range(5)]
        return episode([3, 0, 3, 0, 3], got)._replace(final_obs=torch.tensor([[one, 0.0, 0.0] for one in got]))

    games, verdicts = [game(number) for number in range(24)], []
    for sign in (1.0, -1.0):
        Fair.sign = sign
        method, table = METHODS["preferences"](True, "cpu", ROWS, GAMMA), FindingsTable(VIEW, "says", "cpu")
        assert isinstance(method, Preferences)
        evidence = Evidence(Anyhow(), envs.make("gym:CartPole-v1", 2), 8000, games[1::2])
        text = fit_preferences(Review(Fair([]), games[::2], method, table, 1, tmp_path, 1, evidence))
        verdicts.append(table.audit)
        assert ("The audit refuses it" in text) == (method.model is None) == table.audit["refused"] == (sign < 0)
        assert json.loads((tmp_path / "analysis.json").read_text())["audit"] == table.audit
    assert verdicts[0]["rank_correlation"]["value"] > 0.9
    assert verdicts[1]["rank_correlation"]["value"] < -0.9
    assert verdicts[0]["rank_correlation"]["samples"] == 12


def test_fitted_reward_is_audited_by_episodes_that_were_not_read(
    first: dict[str, Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []

    def audited(guidance: Any, unread: list[Episode]) -> Verdict:
        found.append(unread)
        return Verdict(0.5, 0.1, 0.9, len(unread))

    read: list[Episode] = []

    def compare(self: ScriptedAnalyst, pairs: Any) -> list[float | None]:
        read.extend(one for pair in pairs for one in pair)
        return [0.9 for _ in pairs]

    monkeypatch.setattr(episode_review, "audit_reward", audited)
    monkeypatch.setattr(ScriptedAnalyst, "compare_pairs", compare)
    config = replace(refined(first["ppo"], "preferences", tmp_path, no_audit=False), device="cpu")
    env = envs.make("blackjack", 4)
    for selection, number in (("worst", 32), ("any", 8)):
        one = replace(config, guiding=replace(config.guiding, episode_selection=selection))
        review_episodes(one, make_agent(one, env), empty_findings(one, env), print, 1000)
        assert len(found[-1]) == number
        assert not {id(episode) for episode in found[-1]} & {id(episode) for episode in read}


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([[(0, 2, -0.6)]], {0: [0.0, -0.6, 0.6]}),
        ([[(0, 2, -0.6)], [], []], {}),
        ([[(0, 2, -0.6)], [(0, 2, -0.2)], []], {0: [0.0, -0.2, 0.2]}),
        ([[(0, 2, -0.6)], [(0, 2, -0.2)], [(0, 2, -1.0)]], {0: [0.0, -0.6, 0.6]}),
        ([[(0, 2, -0.6)], [(0, 0, -0.4)], [(0, 2, -1.0)]], {0: [0.0, -0.6, 0.6]}),
        ([[(0, 2, -0.6)], [(0, 0, -0.4)], [(1, 2, -1.0)]], {}),  # that it was a mistake is not what would be better
        ([[(0, 2, -0.6)], [(0, 2, -0.2)]], {0: [0.0, -0.4, 0.4]}),
        ([[(0, 1, 0.8)], [(0, 1, 0.5)], [(1, 2, -0.5)]], {0: [0.0, 0.5, 0.0]}),
        ([[(0, 0, 0.5)], [(0, 2, 0.5)]], {0: [0.255, 0.5, 0.255]}),  # they agree that it was good, and on no other
    ],
)
def test_several_answers_count_by_their_median(
    answers: list[list[tuple[int, int, float]]], expected: dict[int, list[float]]
) -> None:
    """The student did 1 at both steps."""
    said = [[CriticalStep(*one, "why") for one in answer] for answer in answers]
    found = median_findings(said, torch.tensor([1, 1]), 3)
    assert {one.critical.step: one.values.tolist() for one in found} == {
        step: pytest.approx(values) for step, values in expected.items()
    }
    for one in found:
        assert one.critical.action == int(one.values.argmax())
        assert one.critical.reward == pytest.approx(one.values[1].item())


def test_samples_are_asked_for_one_after_the_other(tmp_path: Path) -> None:
    asked = []

    class Sampled(Says):
        def find_critical_steps(self, episodes: list[Episode], sample: int = 0) -> list[list[CriticalStep]]:
            asked.append(sample)
            return [[CriticalStep(5, 3, -0.2 * (sample + 1), "")]] * len(episodes)

    games, table = [episode(BLUNDER)], FindingsTable(VIEW, "says", "cpu")
    find_critical_steps(Review(Sampled([[]]), games, METHODS["modulate"](True, "cpu"), table, 1, tmp_path, 3))
    assert asked == [0, 1, 2]
    assert table.values[0, 3] == pytest.approx(0.4)


def test_review_requires_a_run_and_an_analyst(first: dict[str, Config], tmp_path: Path) -> None:
    config = refined(first["ppo"], "modulate", tmp_path / "run")
    for change, words in (
        ({"resume": None}, "name its run with --resume"),
        ({"tutoring": TutorConfig("none")}, "cannot read a student's games"),
        ({"tutoring": TutorConfig("recorded:x.sqlite")}, "cannot read a student's games"),
        ({"guiding": GuidanceConfig("modulate", episodes=1)}, "episodes is 1"),
        ({"tutoring": TutorConfig("scripted", tutor_samples=0)}, "tutor_samples is 0"),
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

    def critical_steps(self: ScriptedAnalyst, episodes: list[Episode], sample: int) -> list[list[CriticalStep]]:
        reviewed.extend(episodes)
        return [[] for _ in episodes]

    monkeypatch.setattr(episode_review, "evaluation_env", seeded)
    monkeypatch.setattr(episode_review, "collect_episodes", collected)
    monkeypatch.setattr(ScriptedAnalyst, "find_critical_steps", critical_steps)
    config = replace(refined(first["ppo"], "modulate", tmp_path), device="cpu")
    config = replace(config, guiding=replace(config.guiding, episode_selection=selection))
    env = envs.make("blackjack", 4)
    review_episodes(config, make_agent(config, env), empty_findings(config, env), print, 1000)
    assert seeds == [(config.seed + REVIEW_SEED, copies)]
    totals = [one.episodic_return for one in played]
    assert min(totals) < max(totals)
    assert [one.episodic_return for one in reviewed] == (sorted(totals) if selection == "worst" else totals)[:8]
