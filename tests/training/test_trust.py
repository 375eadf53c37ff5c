"""How much advice counts in a run: what probes cost, when trust opens and shuts, and what a checkpoint keeps of it."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from agents import AGENTS, Agent
from agents.guidance import GuidanceConfig
from agents.guidance.trust import Returns
from envs.base import State, Step
from tests.helpers.advisors import RecordingTutor, make_advisor
from tests.helpers.resumed_runs import resume
from tests.helpers.small_runs import series, small_config
from tests.helpers.students import all_equal, save_and_load, weights_of
from tests.helpers.trust_runs import echo_config, make_trainer, opened_trainer, spread, trust_config
from train import Trainer, train
from training.checkpoint import load_checkpoint
from training.probe import Demonstrations, Probe, Result
from training.trust import (
    DECAY_SHARE,
    FIRST_SHARE,
    MAX_FIRST_EPISODES,
    NUM_PROBES,
    NUM_UNDECIDED_PROBES,
    NUM_UPDATES,
    OPEN_SHARE,
    UNDECIDED_SHARE,
    TrustMonitor,
)
from tutors.base import Advice, TutorError
from tutors.scripted import ScriptedTutor

STEPS = 2048  # of a small run


LONG = 16_384  # env steps of a run whose probes have enough episodes to decide at once


class FakeRun:
    """A run without env steps: the tutor's probes, and the student's own episodes, have the returns that are given."""

    def __init__(self, monitor: TrustMonitor, monkeypatch: pytest.MonkeyPatch, steps: int = 10) -> None:
        self.monitor = monitor
        self.tutor = spread(1.0, 64)
        self.confident_tutor = spread(2.0, 64)  # at levels above 0
        self.confidence = torch.ones(2)  # of its advice in a probe
        self.student = spread(0.0, 64)  # between two updates
        self.advised = 5  # env steps of a probe
        self.steps = steps  # env steps of a probe
        self.num_probes = 0
        self.played: list[tuple[float, ...]] = []  # the confidences of each probe
        self.student_steps = 0  # env steps of the student's own probe
        monkeypatch.setattr(monitor.probe, "play", self.play)

    def play(
        self, agent: Agent, advise: Any, confidences: Sequence[float] = (0.0,), copies: int = 64
    ) -> tuple[list[Result], Demonstrations]:
        """Do as `Probe.play`."""
        number = len(self.confidence)
        advice = torch.eye(7)[:number] * self.confidence[:, None]
        rows = Demonstrations(torch.zeros(number, 2, 6, 7), torch.ones(number, 7, dtype=torch.bool), advice)
        if advise is None:
            return [Result(self.student, self.student_steps, 0)], rows
        self.num_probes += 1
        self.played.append(tuple(confidences))
        returns = [self.confident_tutor if least else self.tutor for least in confidences]
        steps, advised = self.steps // len(confidences), self.advised // len(confidences)
        return [Result(one, steps, advised) for one in returns], rows

    def update(self, global_step: int) -> int:
        """Do as `TrustMonitor.update`, after some episodes of the student if any env steps were made.

        Returns:
            the env steps of new probes.
        """
        if global_step:
            self.monitor.alone.time.fill_(self.monitor.probe.horizon)
            self.monitor.alone.sums.copy_(torch.tensor(self.student))
        before = self.monitor.probe_steps
        self.monitor.update(global_step)
        return self.monitor.probe_steps - before

    def later_probes(self) -> list[int]:
        """Return the env steps at which the tutor plays again, of a whole run."""
        found = []
        self.update(0)
        for step in range(8, STEPS, 8):
            number = self.num_probes
            steps = self.update(step)
            assert steps == (self.num_probes - number) * self.steps
            if steps:
                assert self.num_probes == number + 1
                found.append(step)
        return found


def silent_trainer(algo: str, folder: Path) -> tuple[Trainer, TrustMonitor]:
    """Return a trainer of Connect Four whose tutor never answers, and what decides its trust."""
    config = replace(small_config(algo, "connect4", folder), guiding=GuidanceConfig())
    trainer = make_trainer(config, make_advisor(math.inf, RecordingTutor(mute=1)))
    assert trainer.state.trust is not None
    return trainer, trainer.state.trust


@pytest.fixture
def monitor(tmp_path: Path) -> TrustMonitor:
    """What decides the trust of a run of DQN, in which half of the env copies follow advice."""
    return silent_trainer("dqn", tmp_path)[1]


def test_trust_is_decided_a_hundred_times_a_run(monitor: TrustMonitor, monkeypatch: pytest.MonkeyPatch) -> None:
    run = FakeRun(monitor, monkeypatch)
    decided: list[int] = []
    observe = monitor.trust.observe_student

    def observed(returns: Returns) -> None:
        decided.append(step)
        observe(returns)

    monkeypatch.setattr(monitor.trust, "observe_student", observed)
    for step in range(0, STEPS, 8):
        run.update(step)
    decided = list(dict.fromkeys(decided))
    assert decided[:3] == [0, 24, 48]
    assert all(later - earlier >= STEPS // NUM_UPDATES for earlier, later in pairwise(decided))


@pytest.mark.parametrize(("steps", "number"), [(3, 6), (10, 2), (11, 1), (40, 1)])
def test_tutor_plays_first_and_again_as_long_as_that_takes_no_more_than_its_share(
    steps: int, number: int, monitor: TrustMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = FakeRun(monitor, monkeypatch, steps)
    assert run.update(0) == number * steps == monitor.probe_steps
    assert run.num_probes == number
    assert number == 1 or number * steps <= FIRST_SHARE * STEPS < (number + 1) * steps
    assert monitor.trust.tutor.number == 64 * number
    run.student_steps = 7
    assert FakeRun.update(run, 24) == 0, "the student plays once"


def test_trust_opens_when_tutor_and_student_have_played(monitor: TrustMonitor, monkeypatch: pytest.MonkeyPatch) -> None:
    run = FakeRun(monitor, monkeypatch)
    run.student_steps = 7
    assert run.update(0) == monitor.probe_steps == 10 * run.num_probes + 7
    assert (monitor.value, monitor.opened_at) == (1, 0)


def test_trust_at_the_start_takes_the_students_probe_and_no_episodes_that_ended_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tutor that plays as the student does: what has ended soon would make the student look worse than it is."""
    config = replace(
        small_config("dqn", "snake", tmp_path), env_kwargs=("size=6",), num_envs=256, guiding=GuidanceConfig()
    )
    config = replace(config, total_steps=60_000, tutoring=replace(config.tutoring, tutor_accuracy=1.0))
    with opened_trainer(config) as (trainer, monitor):
        play = monitor.probe.play

        def play_as_the_student(agent: Agent, advise: Any, *levels: Any) -> tuple[list[Result], Demonstrations]:
            (result,), rows = play(agent, None)
            return [result._replace(advised=9)], rows

        monkeypatch.setattr(monitor.probe, "play", play_as_the_student)
        step = trainer.env.reset()
        for _ in range(2 * monitor.probe.horizon):
            step, _ = trainer.update(step)
        assert monitor.trust.student_returns.number > 0
        assert monitor.opened_at is None


def test_first_probes_of_a_long_run_are_bounded(monitor: TrustMonitor, monkeypatch: pytest.MonkeyPatch) -> None:
    run = FakeRun(monitor, monkeypatch)
    monitor.num_steps, monitor.probe.copies = 10**9, 64
    run.update(0)
    assert monitor.trust.tutor.number == 64 * run.num_probes == MAX_FIRST_EPISODES


def test_silent_tutor_plays_once_at_first(monitor: TrustMonitor, monkeypatch: pytest.MonkeyPatch) -> None:
    run = FakeRun(monitor, monkeypatch, steps=1)
    run.advised = 0
    assert run.update(0) == run.num_probes == 1
    run.update(24)
    assert monitor.trust.tutor == Returns()
    assert monitor.value == 0


def test_tutor_plays_again_a_tenth_of_the_run_later_while_its_advice_counts(
    monitor: TrustMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = FakeRun(monitor, monkeypatch, steps=2).later_probes()
    assert found[0] == pytest.approx(STEPS / NUM_PROBES, abs=STEPS / NUM_UPDATES)
    assert found[1] - found[0] == pytest.approx(STEPS / NUM_PROBES, abs=STEPS / NUM_UPDATES)
    assert len(found) == 2, "it is clear who is better, and its advice no longer counts"


def test_probes_of_a_tutor_whose_advice_counts_end_when_their_share_is_spent(
    monitor: TrustMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor, "helps", lambda: True)
    run = FakeRun(monitor, monkeypatch, steps=20)
    found = run.later_probes()
    assert len(found) == math.ceil(OPEN_SHARE * STEPS / 20) - 1 == run.num_probes - 1
    assert monitor.probe_steps == 20 * run.num_probes


def test_tutor_plays_again_more_often_while_it_is_not_clear_who_is_better(
    monitor: TrustMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = FakeRun(monitor, monkeypatch, steps=4)
    run.tutor = spread(0.0, 2)
    found = run.later_probes()
    assert found[1] - found[0] == pytest.approx(STEPS / NUM_UNDECIDED_PROBES, abs=STEPS / NUM_UPDATES)
    assert run.num_probes == math.ceil(UNDECIDED_SHARE * STEPS / 4), "until their share of the run is spent"


def test_tutor_that_is_worse_never_plays_again(monitor: TrustMonitor, monkeypatch: pytest.MonkeyPatch) -> None:
    run = FakeRun(monitor, monkeypatch)
    run.tutor = spread(-1.0, 64)
    assert run.later_probes() == []
    assert monitor.value == 0


def test_trust_falls_to_0_without_evidence(monitor: TrustMonitor, monkeypatch: pytest.MonkeyPatch) -> None:
    run = FakeRun(monitor, monkeypatch)
    run.update(0)
    for share in (0.0, 0.25, 0.5, 0.75, 1.0, 1.5):
        run.update(math.ceil(share * DECAY_SHARE * STEPS))
        assert monitor.value == pytest.approx(max(1 - share, 0), abs=0.01)
    assert monitor.counted_until == math.ceil(0.75 * DECAY_SHARE * STEPS)


@pytest.mark.parametrize(("lead", "waits"), [(1.9, False), (2.1, True)])
def test_a_clear_lead_counts_in_full_until_episodes_of_the_student_are_complete(
    lead: float, waits: bool, monitor: TrustMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = FakeRun(monitor, monkeypatch)
    run.tutor = spread(lead * math.sqrt(run.student.variance), 64)
    run.update(0)
    known, run.student = run.student, Returns()
    run.update(STEPS // 2)
    assert (monitor.value, monitor.falls_from) == ((1, None) if waits else (0, 0))
    if waits:
        run.student = known
        run.update(STEPS // 2 + 24)
        assert (monitor.value, monitor.falls_from) == (1, STEPS // 2 + 24)
        run.update(STEPS // 2 + 24 + math.ceil(0.5 * DECAY_SHARE * STEPS))
        assert monitor.value == pytest.approx(0.5, abs=0.01)


def test_trust_stays_where_led_episodes_show_that_advice_helps(
    monitor: TrustMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = FakeRun(monitor, monkeypatch)
    monkeypatch.setattr(monitor, "helps", lambda: True)
    run.update(0)
    for share in (0.0, 0.5, 1.5):
        run.update(math.ceil(share * DECAY_SHARE * STEPS))
        assert monitor.value == 1


@pytest.mark.parametrize(
    ("led", "helps"),
    [([], False), ([spread(0.0)], False), ([spread(0.05)], False), ([spread(0.3)], True), ([spread(-0.3)], False)],
)
def test_advice_helps_if_led_episodes_are_better_than_the_bounds_are_wide(
    led: list[Returns], helps: bool, monitor: TrustMonitor
) -> None:
    own = spread(0.0)
    monitor.evidence = [(one, own) for one in led]
    assert monitor.helps() == helps
    monitor.evidence = [(Returns(), Returns()), *monitor.evidence]
    assert monitor.helps() == helps


def test_led_and_own_episodes_are_those_of_their_env_copies(
    monitor: TrustMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even copies of `margin` act by themselves, odd ones follow advice."""
    FakeRun(monitor, monkeypatch).tutor = spread(10.0, 64)
    monitor.update(0)
    for one in (monitor.alone, monitor.led):
        one.time.fill_(monitor.probe.horizon)
    unused, done = torch.zeros(64), torch.ones(64, dtype=torch.bool)
    rewards = torch.where(torch.arange(64) % 2 == 0, 3.0, 5.0)
    for _ in range(2):
        monitor.add(Step(unused, unused, rewards, done, ~done, unused, unused, {}, {}))
    monitor.update(100)
    assert monitor.evidence[-1] == ((64, 64 * 5, 64 * 25), (64, 64 * 3, 64 * 9))
    assert monitor.trust.student[-1] == (64, 64 * 3, 64 * 9)
    monitor.update(200)
    assert monitor.evidence[-1] == (Returns(), Returns()), "an episode is counted once"


@pytest.mark.parametrize(("algo", "has_led_copies"), [("dqn", True), ("ppo", False), ("a2c", False)])
def test_students_of_distillation_have_no_led_episodes(algo: str, has_led_copies: bool, tmp_path: Path) -> None:
    _, monitor = silent_trainer(algo, tmp_path)
    assert monitor.has_led_copies == has_led_copies
    assert int(monitor.alone.alone.sum()) == (32 if has_led_copies else 64)


SURE = torch.tensor([0.2, 0.2, 0.6, 0.9])  # half of its advice is at least 0.6 sure, a quarter 0.9


def uncertain_run(monitor: TrustMonitor, monkeypatch: pytest.MonkeyPatch, steps: int = 6) -> FakeRun:
    run = FakeRun(monitor, monkeypatch, steps)
    run.confidence = SURE
    monitor.probe.copies = 64
    return run


def test_tutor_whose_confidence_varies_is_judged_at_three_levels(
    monitor: TrustMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = uncertain_run(monitor, monkeypatch)
    run.tutor = spread(-1.0, 64)
    run.update(0)
    assert [len(one) for one in run.played] == [1, 2, 3], "as long as FIRST_SHARE allows"
    all_advice, half, quarter = run.played[-1]
    assert all_advice == 0 < 0.2 < half < quarter < 0.9
    assert [gate.value for gate in monitor.gates] == [0, 1, 1]
    assert monitor.value == 1
    assert float(monitor.min_confidence) == pytest.approx(half), "the lowest level of those that are trusted most"
    advice = torch.eye(7)[:4] * SURE[:, None]
    assert monitor.followed(advice).equal(advice * (half < SURE)[:, None])
    values = monitor.values()
    assert [values[f"tutor/trust_by_confidence/{share}%"] for share in (0, 50, 75)] == [0, 1, 1]
    assert values["tutor/return"] == 2
    assert monitor.summary()["min_confidence"] == pytest.approx(half, abs=1e-4)


def test_tutor_that_is_equally_sure_everywhere_has_one_level(
    monitor: TrustMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = FakeRun(monitor, monkeypatch)
    run.update(0)
    assert set(run.played) == {(0.0,)}
    assert monitor.values().keys() == {"tutor/trust", "tutor/return", "student/return"}
    assert float(monitor.min_confidence) == 0


def test_levels_have_no_probe_at_first_where_it_would_have_few_episodes(
    monitor: TrustMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = uncertain_run(monitor, monkeypatch)
    monitor.probe.copies = 63
    run.update(0)
    assert [len(one) for one in run.played] == [1, 3, 3]


def test_levels_that_are_worse_play_no_more(monitor: TrustMonitor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "helps", lambda: True)
    run = uncertain_run(monitor, monkeypatch)
    run.tutor = spread(-1.0, 64)
    run.update(0)
    first = len(run.played)
    for step in range(8, STEPS, 8):
        run.update(step)
    assert set(run.played[first:]) == {(monitor.confidences[1],)}


def test_student_is_pretrained_on_advice_that_counts_alone(
    monitor: TrustMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = uncertain_run(monitor, monkeypatch)
    run.tutor = spread(-1.0, 64)
    learned: list[Tensor] = []
    monkeypatch.setattr(monitor.agent, "pretrain", lambda obs, action_mask, advice: learned.append(advice))
    run.update(0)
    confidence = torch.cat(learned).amax(1)
    assert confidence.unique().tolist() == pytest.approx([0.0, 0.6, 0.9])


@pytest.mark.parametrize("kept", [True, False])
def test_monitor_goes_on_from_its_state_dict(kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monitors = [silent_trainer("dqn", tmp_path)[1] for _ in range(2)]
    runs = [FakeRun(monitor, monkeypatch) for monitor in monitors]
    for run in runs:
        run.tutor = run.confident_tutor = run.student if kept else run.tutor
        run.confidence = SURE
    first, other = monitors
    unused, no = torch.zeros(64), torch.zeros(64, dtype=torch.bool)
    half = Step(unused, unused, torch.arange(64.0), no, no, unused, unused, {}, {})
    runs[0].update(0)
    for one in (first.alone, first.led):
        one.time.fill_(monitors[0].probe.horizon)
    first.add(half)
    runs[0].update(500)
    assert (first.demonstrations is not None) == kept
    other.load_state_dict(save_and_load(first.state_dict()))
    assert flat(other.state_dict()) == flat(first.state_dict())
    for monitor in monitors:
        monitor.add(half._replace(terminated=~no))
        monitor.update(1500)
    assert flat(other.state_dict()) == flat(first.state_dict())
    assert first.trust.student[-1] == (32, 2.0 * sum(range(0, 64, 2)), 4.0 * sum(one**2 for one in range(0, 64, 2)))


def flat(state: Any) -> Any:
    """Return nested containers with lists in place of tensors."""
    if torch.is_tensor(state):
        return state.tolist()
    if isinstance(state, dict):
        return {name: flat(one) for name, one in state.items()}
    return [flat(one) for one in state] if isinstance(state, list | tuple) else state


@pytest.mark.parametrize("pretrain_updates", [0, 40])
def test_tutor_found_better_is_imitated_before_the_first_update(
    pretrain_updates: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = echo_config("ppo", tmp_path, GuidanceConfig(pretrain_updates=pretrain_updates))
    with opened_trainer(config) as (trainer, monitor):
        run = FakeRun(monitor, monkeypatch)
        run.student = spread(0.5, 64)
        monitor.trust.baseline = 0.0  # the student has come half-way
        agent = trainer.agent
        batches: list[tuple[Tensor, ...]] = []
        monkeypatch.setattr(agent, "pretrain", lambda *batch: batches.append(batch))
        before = weights_of(agent)
        run.update(0)
        assert monitor.value == 0.5
        assert len(batches) == pretrain_updates / 2
        assert monitor.demonstrations is None, "they are learned from once"
        assert all_equal(weights_of(agent), before)
        for obs, action_mask, advice in batches:
            assert (len(obs), len(action_mask), len(advice)) == (256, 256, 256)
            assert set(map(tuple, advice.tolist())) == set(map(tuple, torch.eye(7)[:2].tolist()))
        run.update(200)
        assert monitor.value > 0
        assert len(batches) == pretrain_updates / 2, "not again"


@pytest.mark.train
@pytest.mark.parametrize("algo", AGENTS)
def test_student_of_a_silent_tutor_is_bit_identical_to_one_alone(algo: str, tmp_path: Path) -> None:
    """After the same number of updates; probes take env steps. With a query budget of 0 the tutor is silent, too."""
    config = small_config(algo, "connect4", tmp_path / "run")
    alone = make_trainer(replace(config, tutoring=replace(config.tutoring, tutor="none")), None)
    silent, monitor = silent_trainer(algo, tmp_path)
    found = [states_of(alone), states_of(silent)]
    assert found[0] == found[1]
    assert monitor.value == 0
    assert silent.state.global_step > alone.state.global_step
    no_budget = replace(config, tutoring=replace(config.tutoring, query_budget=0), guiding=GuidanceConfig())
    with opened_trainer(no_budget) as (trainer, unasked):
        assert states_of(trainer) == found[0]
        assert unasked.value == 0
        assert trainer.advisor is not None
        assert trainer.advisor.counters().get("queried", 0) == 0


def states_of(trainer: Trainer) -> Any:
    """Return what a student has learned, and where its env copies stand, after 6 updates."""
    step = trainer.env.reset()
    before = weights_of(trainer.agent)
    for _ in range(6):
        step, _ = trainer.update(step)
    assert not all_equal(weights_of(trainer.agent), before)
    return flat([weights_of(trainer.agent), dict(trainer.env.state), trainer.state.episode_stats.state_dict()])


@pytest.mark.train
@pytest.mark.parametrize("algo", ["ppo", "dqn"])
def test_trust_opens_to_a_better_tutor_of_connect4_and_falls(
    algo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(trust_config(algo, tmp_path / "run"), guiding=GuidanceConfig(pretrain_updates=40))
    calls: list[str] = []
    changes: list[bool] = []
    agent_class: Any = AGENTS[algo][0]
    pretrain, update = agent_class.pretrain, agent_class.update

    def pretrained(self: Agent, *batch: Tensor) -> None:
        calls.append("pretrain")
        before = weights_of(self)
        pretrain(self, *batch)
        changes.append(not all_equal(weights_of(self), before))

    def updated(self: Agent, step: Step) -> dict[str, Tensor]:
        calls.append("update")
        return update(self, step)

    monkeypatch.setattr(agent_class, "pretrain", pretrained)
    monkeypatch.setattr(agent_class, "update", updated)
    train(config)
    first = calls.index("pretrain")
    assert calls[first : first + 40] == ["pretrain"] * 40, "trust is 1"
    assert calls.count("pretrain") == 40
    assert changes == [True] * 40
    saved = load_checkpoint(tmp_path / "run" / "checkpoints", "cpu")["trust"]
    assert 0 <= saved["opened_at"] < 0.2 * config.total_steps
    trust = series(tmp_path / "run", "tutor/trust")
    strength = series(tmp_path / "run", "tutor/strength")
    assert max(trust.values()) == 1
    assert strength == pytest.approx(trust)
    assert saved["opened_at"] <= saved["falls_from"] < 0.2 * config.total_steps
    ended = saved["falls_from"] + DECAY_SHARE * config.total_steps + 1024  # the update after the next one
    if algo == "ppo":  # none of its episodes is led: there is no evidence that advice helps
        assert not any(value for step, value in trust.items() if step > ended)
    tutor, student = (series(tmp_path / "run", f"{who}/return") for who in ("tutor", "student"))
    assert trust.keys() == tutor.keys()
    assert trust.keys() == student.keys()
    assert min(tutor.values()) > 0.5 > 0 > max(student.values())


@pytest.mark.train
@pytest.mark.parametrize("algo", AGENTS)
def test_global_step_is_the_env_steps_of_training_and_probes(
    algo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    played = []
    play = Probe.play

    def count(self: Probe, *args: Any) -> Any:
        found = play(self, *args)
        played.append(sum(result.steps for result in found[0]))
        return found

    monkeypatch.setattr(Probe, "play", count)
    config = echo_config(algo, tmp_path / "run")
    summary = train(config)
    saved = load_checkpoint(tmp_path / "run" / "checkpoints", "cpu")
    assert sum(played) >= 20
    assert summary["global_step"] == 64 * int(saved["agent"]["steps"]) + sum(played)
    assert int(saved["env_steps"]) == saved["global_step"] == summary["global_step"]
    assert STEPS <= summary["global_step"] < STEPS + 64 * 8 + sum(played)


def test_probes_queries_are_charged_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget of 30 is spent in the first probe: then its positions get no advice, and the student's neither."""
    advised = []
    play = Probe.play

    def count(self: Probe, agent: Agent, advise: Any, *levels: Any) -> Any:
        found = play(self, agent, advise, *levels)
        advised.append((advise is not None) * found[0][0].steps)
        return found

    monkeypatch.setattr(Probe, "play", count)
    for budget, spent in ((30, True), (100_000, False)):
        advised.clear()
        config = trust_config("ppo", tmp_path / str(budget), query_budget=budget)
        with opened_trainer(config) as (trainer, _):
            trainer.strength()
            assert trainer.advisor is not None
            counters = trainer.advisor.counters()
            left = int(trainer.query.budget.left)
            assert counters["queried"] == counters["asked"] == budget - left
            assert (left == 0) == spent
            assert counters["consulted"] == sum(advised) > 0
            assert counters["queried"] > 25


@pytest.mark.train
def test_tutor_that_falls_silent_is_not_trusted_after_its_next_probe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = echo_config("ppo", tmp_path, GuidanceConfig(pretrain_updates=0), reuse=0)
    with opened_trainer(replace(config, total_steps=LONG)) as (trainer, monitor):
        step = trainer.env.reset()
        while not monitor.value:
            step, _ = trainer.update(step)
        assert float(trainer.guidance.strength) > 0
        last_probe = monitor.last_probe

        def silent(self: ScriptedTutor, state: State) -> Advice:
            return Advice.no_advice(len(state["hidden"]), 4)

        monkeypatch.setattr(ScriptedTutor, "advise", silent)
        while monitor.last_probe == last_probe:
            assert trainer.state.global_step < LONG
            step, _ = trainer.update(step)
        assert monitor.value == 0
        assert monitor.trust.tutor == Returns()
        assert float(trainer.guidance.strength) == 0


@pytest.mark.train
@pytest.mark.parametrize("is_later", [False, True], ids=["first", "later"])
def test_run_whose_tutor_fails_in_a_probe_resumes_with_that_probe(
    is_later: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play, later_probe = Probe.play, TrustMonitor.later_probe
    phase, played, broken = ["first"], [], [True]

    def noted(self: TrustMonitor, global_step: int) -> int:
        phase.append("later")
        steps = later_probe(self, global_step)
        phase.pop()
        return steps

    def fail(self: Probe, agent: Agent, advise: Any, *levels: Any) -> Any:
        if advise is not None:
            if broken[0] and (phase[-1] == "later") == is_later:
                raise TutorError("the server wants another key")
            played.append(phase[-1])
        return play(self, agent, advise, *levels)

    monkeypatch.setattr(TrustMonitor, "later_probe", noted)
    monkeypatch.setattr(Probe, "play", fail)
    config = replace(echo_config("ppo", tmp_path / "run", GuidanceConfig(pretrain_updates=0)), total_steps=LONG)
    with pytest.raises(TutorError, match="another key"):
        train(config)
    saved = load_checkpoint(tmp_path / "run" / "checkpoints", "cpu")["trust"]
    assert (saved["opened_at"] is not None) == is_later
    broken[0] = False
    phase[:] = ["first"]
    played.clear()
    assert resume(config)["global_step"] >= LONG
    assert played[0] == ("later" if is_later else "first")
    assert load_checkpoint(tmp_path / "run" / "checkpoints", "cpu")["trust"]["opened_at"] is not None


def test_probe_before_one_that_fails_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, monitor = silent_trainer("ppo", tmp_path)
    run = FakeRun(monitor, monkeypatch)

    def fail(*_: Any) -> Any:
        if run.num_probes == 2:
            raise TutorError("the server wants another key")
        return run.play(*_)

    monkeypatch.setattr(monitor.probe, "play", fail)
    with pytest.raises(TutorError, match="another key"):
        trainer.strength()
    assert trainer.state.global_step == int(trainer.state.env_steps) == monitor.probe_steps == 20


@pytest.mark.parametrize("guidance", ["blend", "mask", "demonstrate"])
def test_first_of_four_env_copies_is_left_without_advice_where_trust_counts(guidance: str, tmp_path: Path) -> None:
    """There nothing is asked, followed or stored: its returns are the student's own."""
    algo = "dqn" if guidance == "demonstrate" else "ppo"
    is_alone = torch.arange(64) % 4 == 0
    for trust, expected in (("gap", is_alone), ("none", torch.zeros(64, dtype=torch.bool))):
        guiding = GuidanceConfig(guidance, trust=trust)  # type: ignore[arg-type]
        config = replace(small_config(algo, "connect4", tmp_path / trust), guiding=guiding)
        trainer = make_trainer(config, make_advisor(math.inf, RecordingTutor()))
        seen: list[Tensor] = []
        act = trainer.guidance.act

        def acted(decision: Any, advice: Tensor, action_mask: Tensor, u: Tensor, act: Any = act) -> Any:
            seen.append(advice)  # noqa: B023
            return act(decision, advice, action_mask, u)

        trainer.guidance.act = acted  # type: ignore[method-assign]
        trainer.guidance.strength.fill_(1.0)
        trainer.rollout_step(trainer.env.reset())
        (advice,) = seen
        assert (advice.sum(1) == 0).equal(expected)
        if trust == "gap":
            assert trainer.guidance.alone.equal(is_alone)
            assert trainer.state.trust is not None
            assert trainer.state.trust.has_led_copies
        if algo == "ppo":
            stored: Any = trainer.agent
            assert not stored.rollout.followed[0][expected].any()
            assert (stored.rollout.advice[0].sum(1) == 0).equal(expected)
            assert stored.rollout.followed[0].any()


@pytest.mark.parametrize("guidance", ["distill", "shape", "kl"])
def test_all_env_copies_get_advice_that_is_not_acted_on(guidance: str, tmp_path: Path) -> None:
    config = replace(small_config("ppo", "connect4", tmp_path), guiding=GuidanceConfig(guidance))
    trainer = make_trainer(config, make_advisor(math.inf, RecordingTutor()))
    trainer.guidance.strength.fill_(1.0)
    _, lookup = trainer.decide(trainer.env.reset())
    assert lookup is not None
    assert lookup.misses.all()
    assert trainer.guidance.alone.all()


@pytest.mark.parametrize("guidance", ["blend", "mask"])
def test_single_env_copy_cannot_be_left_alone(guidance: str, tmp_path: Path) -> None:
    config = replace(small_config("ppo", "connect4", tmp_path), num_envs=1, guiding=GuidanceConfig(guidance))
    message = f"--guidance {guidance} with --trust gap requires at least 2 env copies: add --trust none"
    with pytest.raises(ValueError, match=message):
        config.check()
    replace(config, num_envs=2).check()
    replace(config, guiding=GuidanceConfig(guidance, trust="none")).check()
    replace(config, guiding=GuidanceConfig("distill")).check()
    replace(config, tutoring=replace(config.tutoring, tutor="none")).check()


@pytest.mark.train
def test_run_with_an_asynchronous_tutor_ends(tmp_path: Path) -> None:
    """Probes wait for the tutor; the rest of the run does not."""
    summary = train(trust_config("dqn", tmp_path / "run", total_steps=LONG, async_tutor=True))
    assert summary["global_step"] >= LONG
    assert summary["tutor"]["asked"] > 0
    assert load_checkpoint(tmp_path / "run" / "checkpoints", "cpu")["trust"]["opened_at"] is not None
    assert max(series(tmp_path / "run", "tutor/trust").values()) > 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["tutor"]["hits"] > 0


def test_trust_is_not_decided_by_returns_where_it_has_no_say(tmp_path: Path) -> None:
    for guiding in (GuidanceConfig("distill", trust="none"), GuidanceConfig("override"), GuidanceConfig("hint")):
        config = replace(small_config("ppo", "connect4", tmp_path), guiding=guiding)
        trainer = make_trainer(config, make_advisor(math.inf, RecordingTutor()))
        assert trainer.state.trust is None
    config = replace(small_config("ppo", "connect4", tmp_path, tutor="none"), guiding=GuidanceConfig())
    assert make_trainer(config, None).state.trust is None
