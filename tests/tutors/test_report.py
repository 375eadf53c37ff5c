"""The tutor report: measures against slow definitions and tutors whose worth is known, and the program from outside."""

import functools
import io
import json
import math
import string
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

import envs
from envs.base import State, num_rows, select_rows
from tests.helpers.commands import tutors
from tests.helpers.echo_view import EchoView
from tests.helpers.probes import Echo
from tests.helpers.programs import program
from tests.helpers.views import EVERY_VIEW
from tutors.advice_table import AdviceTable
from tutors.advisor import Advisor
from tutors.base import Advice, Tutor
from tutors.positions import sample_positions
from tutors.prompts import make_view
from tutors.prompts.base import PromptView
from tutors.report import (
    NUM_BINS,
    POSITIONS_PER_CALL,
    TutorReport,
    calibration_error,
    entropy,
    letter_bias,
    measure_tutor,
    reliability,
    wilson,
)
from tutors.report_plots import letters_table, measures_table
from tutors.scripted import ScriptedTutor, one_hot
from tutors.store import AdviceStore, identity_of


class FunctionTutor(Tutor):
    """Answers by a function of the positions, and keeps the size of each call."""

    name, identity = "function", {"tutor": "function"}

    def __init__(self, view: PromptView, say: Callable[[State], Advice]) -> None:
        self.view, self.say = view, say
        self.stats: Counter[str] = Counter()
        self.calls: list[int] = []

    def advise(self, state: State) -> Advice:
        self.calls.append(num_rows(state))
        self.stats["asked"] += num_rows(state)
        advice = self.say(state)
        self.stats["no_advice/mute"] += int((~advice.valid).sum())
        return advice

    def measure_tutor(self) -> dict[str, float]:
        return {}


def advisor_of(view: PromptView, tutor: Tutor, store: AdviceStore | None = None) -> Advisor:
    return Advisor(view, tutor, AdviceTable(len(view.labels), math.inf, 2000), store)


@functools.cache
def some(game: str, name: str, count: int) -> tuple[PromptView, State]:
    options = {"size": 6} if game == "snake" else {}  # on 12 x 12 cells the expert's search is slow
    env = envs.make(game, 64, seed=3, **options)
    view = make_view(env.game, name)
    return view, sample_positions(env, view, count, seed=3)


def hidden(*columns: int) -> State:
    return {"hidden": torch.tensor(columns)}


def error_by_definition(top: list[float], agreed: list[bool]) -> float:
    """Sum over bins of |B| / n times |acc(B) - conf(B)|, each bin found by looking at all of its borders."""
    total = 0.0
    for number in range(1, NUM_BINS + 1):
        inside = [i for i, p in enumerate(top) if (number - 1) / NUM_BINS < p <= number / NUM_BINS]
        if inside:
            accuracy = sum(agreed[i] for i in inside) / len(inside)
            confidence = sum(top[i] for i in inside) / len(inside)
            total += len(inside) / len(top) * abs(accuracy - confidence)
    return total


def test_calibration_error_of_five_answers_as_worked_out_by_hand() -> None:
    top, agreed = torch.tensor([0.55, 0.58, 0.95, 0.97, 1.0]), torch.tensor([True, False, True, True, False])
    count, confidence, accuracy = reliability(top, agreed)
    assert count.tolist() == [0, 0, 0, 0, 0, 2, 0, 0, 0, 3]
    assert confidence[5].item() == pytest.approx(0.565)
    assert confidence[9].item() == pytest.approx(2.92 / 3)
    assert accuracy[[5, 9]].tolist() == pytest.approx([1 / 2, 2 / 3])
    assert confidence[0].isnan()
    assert calibration_error(count, confidence, accuracy) == pytest.approx(2 / 5 * 0.065 + 3 / 5 * 0.92 / 3)


def test_probability_on_an_edge_belongs_to_the_bin_below() -> None:
    borders = torch.arange(1, 11) / 10
    assert reliability(borders, borders > 2)[0].tolist() == [1] * NUM_BINS


def test_calibration_error_is_its_definition() -> None:
    generator = torch.Generator().manual_seed(1)
    top = torch.rand(500, generator=generator) * 0.7 + 0.3
    agreed = torch.rand(500, generator=generator) < top**2
    found = calibration_error(*reliability(top, agreed))
    assert found == pytest.approx(error_by_definition(top.tolist(), agreed.tolist()), abs=1e-5)
    assert found > 0.1


def test_calibrated_answers_have_hardly_any_calibration_error() -> None:
    top = torch.rand(200_000, generator=torch.Generator().manual_seed(2))
    agreed = torch.rand(200_000, generator=torch.Generator().manual_seed(3)) < top
    assert calibration_error(*reliability(top, agreed)) < 0.01


def test_calibration_error_without_answers_is_nan() -> None:
    assert math.isnan(calibration_error(*reliability(torch.zeros(0), torch.zeros(0, dtype=torch.bool))))


def test_wilson_interval_ends_where_the_share_is_196_standard_errors_away() -> None:
    for hits, trials in ((0, 10), (3, 10), (700, 1000), (10, 10)):
        share = hits / trials
        for end in wilson(hits, trials):
            if 0 < end < 1:
                assert abs(share - end) == pytest.approx(1.96 * math.sqrt(end * (1 - end) / trials), rel=1e-6)
        low, high = wilson(hits, trials)
        assert low <= share <= high
        assert low < high
    assert wilson(10, 10)[1] == 1
    assert wilson(10, 10)[0] < 0.8
    assert wilson(0, 0) == (0, 1)


def test_entropy_is_in_nats_and_0_for_a_certain_answer() -> None:
    probs = torch.tensor([[1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [0.25] * 4, [0.7, 0.2, 0.1, 0]])
    slow = [-sum(p * math.log(p) for p in row if p > 0) for row in probs.tolist()]
    assert entropy(probs).tolist() == pytest.approx(slow)
    assert entropy(probs)[:3].tolist() == pytest.approx([0, math.log(2), math.log(4)])


def test_letter_bias_is_the_probability_beyond_the_share_of_the_best() -> None:
    probs = torch.tensor([[0.8, 0.2, 0.0], [1.0, 0.0, 0.0]])
    best = torch.tensor([[True, True, False], [False, False, True]])
    bias, within = letter_bias(probs, best)
    assert bias.tolist() == pytest.approx([(0.3 + 1) / 2, -0.3 / 2, -1 / 2])
    assert within.tolist() == pytest.approx([1.96 * half / math.sqrt(2) for half in (0.35, 0.15, 0.5)])


def test_report_of_four_answers_as_worked_out_by_hand() -> None:
    said = {0: [0.7, 0.0, 0.3, 0.0], 1: [0.0, 0.4, 0.0, 0.6], 2: None, 3: [0.5, 0.5, 0.0, 0.0]}

    def say(state: State) -> Advice:
        rows = [said[column] for column in state["hidden"].tolist()]
        given = torch.tensor([row is not None for row in rows])
        return Advice(torch.tensor([row or [0.0] * 4 for row in rows]), given, 0.1 + 0.8 * given)

    view = EchoView(Echo(4))
    found = measure_tutor(advisor_of(view, FunctionTutor(view, say)), hidden(0, 1, 2, 3), 4)
    assert (found.positions, found.answered, found.prompts, found.no_advice) == (4, 3, 4, {"mute": 1})
    assert found.agreement == pytest.approx(1 / 3)
    assert found.interval == wilson(1, 3)
    assert found.chance == pytest.approx((1 / 3 + 1 / 2 + 1 / 3) / 3)  # of columns beside the hidden one none is legal
    assert found.label_mass == pytest.approx((3 * 0.9 + 0.1) / 4)
    slow = [0.7 * -math.log(0.7) + 0.3 * -math.log(0.3), 0.4 * -math.log(0.4) + 0.6 * -math.log(0.6), math.log(2)]
    assert found.entropy == pytest.approx(sum(slow) / 3)
    parts = (slow[0] / math.log(3), slow[1] / math.log(2), slow[2] / math.log(3))
    assert found.entropy_share == pytest.approx(sum(parts) / 3)
    assert found.calibration_error == pytest.approx((0.3 + 0.6 + 0.5) / 3)
    assert found.curve["count"] == [0, 0, 0, 0, 1, 1, 1, 0, 0, 0]
    assert found.letters["A"]["advised"] == pytest.approx((0.7 + 0.5) / 3)
    assert found.letters["D"]["expert"] == pytest.approx(1 / 3)
    assert found.letters["D"]["bias"] == pytest.approx((0.6 - 1) / 3)
    assert found.seconds_per_1000 == pytest.approx(0, abs=100)


def test_tutor_without_any_advice_has_no_measures_and_is_shown() -> None:
    view = EchoView(Echo(4))
    mute = FunctionTutor(view, lambda state: Advice.no_advice(num_rows(state), 4))
    found = measure_tutor(advisor_of(view, mute), hidden(0, 1, 3), 4)
    assert (found.answered, found.no_advice, found.interval) == (0, {"mute": 3}, (0, 1))
    shown = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert shown["agreement"] is None
    assert shown["curve"]["confidence"] == [None] * NUM_BINS
    assert shown["letters"]["A"]["bias"] is None
    assert "3 mute" in measures_table([found], "function").caption
    assert letters_table([found]).row_count == 4


def test_bias_of_many_letters_is_readable_in_80_columns() -> None:
    view = EchoView(Echo(4))
    first = FunctionTutor(view, lambda state: one_hot(view.action_mask(state).long().argmax(1), 4))
    found = measure_tutor(advisor_of(view, first), hidden(0, 1), 4)
    assert found.no_advice == {}, "what did not occur is not listed"
    many = replace(found, letters={key: {"bias": -0.1234, "within": 0.0456} for key in string.ascii_uppercase})
    console = Console(file=io.StringIO(), width=80)
    console.print(letters_table([many] * 6))
    lines = console.file.getvalue().splitlines()
    for letter in string.ascii_uppercase:
        (line,) = (line for line in lines if line.startswith(f" {letter} ") or line.startswith(f"{letter} "))
        assert line.split() == [letter, *["-12.3", "±4.6"] * 6]


def test_entropy_share_is_of_positions_with_a_choice() -> None:
    class OneWay(EchoView):
        def action_mask(self, state: State) -> Tensor:
            return super().action_mask(state) & ((state["hidden"] > 0)[:, None] | (torch.arange(4) == 0))

    view = OneWay(Echo(4))
    even = FunctionTutor(
        view, lambda state: one_hot(state["hidden"], 4)._replace(probs=spread(view.action_mask(state)))
    )
    assert measure_tutor(advisor_of(view, even), hidden(0, 1, 3), 4).entropy_share == pytest.approx(1)


def spread(action_mask: Tensor) -> Tensor:
    return action_mask / action_mask.sum(1, keepdim=True)


@pytest.mark.parametrize(("game", "name"), EVERY_VIEW)
def test_expert_agrees_with_itself_and_is_certain(game: str, name: str) -> None:
    view, state = some(game, name, 40 if name == "local" else 300)
    found = measure_tutor(advisor_of(view, ScriptedTutor(view, 1.0, 4)), state, 4)
    assert (found.agreement, found.calibration_error, found.entropy, found.entropy_share) == (1, 0, 0, 0)
    assert found.curve["count"][-1] == found.answered == num_rows(state)
    assert all(abs(one["bias"]) <= 2 * one["within"] for one in found.letters.values())


def test_random_tutor_agrees_by_chance() -> None:
    view, state = some("connect4", "board", 1000)
    found = measure_tutor(advisor_of(view, ScriptedTutor(view, 0.0, 4)), state, 4)
    low, high = found.interval
    assert low < found.chance < high
    assert 0.15 < found.chance < 0.3
    assert found.calibration_error == pytest.approx(1 - found.agreement)


@pytest.mark.parametrize(("game", "name"), EVERY_VIEW)
def test_who_always_says_the_first_letter_is_found_out(game: str, name: str) -> None:
    view, state = some(game, name, 40 if name == "local" else 300)
    first = FunctionTutor(view, lambda state: one_hot(view.action_mask(state).long().argmax(1), len(view.labels)))
    found = measure_tutor(advisor_of(view, first), state, 4)
    canonical = view.canonicalize(state)[0]
    action_mask, values = view.action_mask(canonical).tolist(), view.expert_values(canonical, 4).tolist()
    for place, letter in enumerate(view.labels):
        said = sum(row.index(True) == place for row in action_mask)
        due = 0.0
        for row, worth in zip(action_mask, values, strict=True):
            top = max(one for one, may in zip(worth, row, strict=True) if may)
            winners = [action for action, may in enumerate(row) if may and worth[action] == top]
            due += (place in winners) / len(winners)
        assert found.letters[letter]["bias"] == pytest.approx((said - due) / len(action_mask), abs=1e-5)
    assert found.letters["A"]["bias"] > max(0.2, found.letters["A"]["within"])
    assert max(found.letters, key=lambda letter: found.letters[letter]["bias"]) == "A"


def test_the_depth_decides_whom_a_tutor_is_compared_with() -> None:
    view, state = some("connect4", "board", 500)
    shallow = ScriptedTutor(view, 1.0, 1)
    assert measure_tutor(advisor_of(view, shallow), state, 1).agreement == 1
    assert measure_tutor(advisor_of(view, shallow), state, 4).agreement < 0.95


def test_a_call_holds_no_more_questions_than_a_step() -> None:
    view, state = some("connect4", "board", 250)
    tutor = FunctionTutor(view, lambda state: one_hot(view.action_mask(state).long().argmax(1), 7))
    measure_tutor(advisor_of(view, tutor), state, 1)
    assert tutor.calls == [POSITIONS_PER_CALL, POSITIONS_PER_CALL, 50]


def test_what_a_store_knows_costs_nothing(tmp_path: Path) -> None:
    view, state = some("connect4", "board", 150)
    spec = envs.make_game("connect4").spec
    found = []
    for _ in range(2):
        tutor = ScriptedTutor(view, 0.5, 2)
        store = AdviceStore(tmp_path / "a.sqlite", identity_of(spec, view, tutor.identity))
        found.append(measure_tutor(advisor_of(view, tutor, store), state, 2))
        store.close()
    first, again = found
    assert (first.prompts, first.stored, again.prompts, again.stored) == (150, 0, 0, 150)
    assert math.isnan(again.seconds_per_1000)
    assert (first.agreement, first.letters) == (again.agreement, again.letters)


def test_report_without_a_run(tmp_path: Path) -> None:
    picture = tmp_path / "report.png"
    flags = ("--env", "blackjack", "--tutor", "scripted", "--picture", str(picture))
    done = tutors("report", *flags)
    assert done.returncode == 0, done.stderr
    assert "blackjack" in done.stdout
    assert "100.0 %" in done.stdout
    assert "50.0 %" in done.stdout
    assert "280 prompts" in done.stdout
    assert "…" not in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()) <= 80
    assert f"the picture is in {picture}" in done.stderr.replace("\n", "")
    with Image.open(picture) as image:
        assert image.format == "PNG"
        assert image.width > 2 * image.height
    assert [path.name for path in tmp_path.iterdir()] == ["report.png"]


def test_report_of_all_views_in_json_and_again_from_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tutors.positions.STEPS_PER_ROUND", 20)
    flags = ("--env", "snake", "--tutor", "scripted", "--positions", "20", "--json")
    flags += ("--env-kwargs", "size=6")
    flags += ("--picture", str(tmp_path / "snake.png"), "--advice-store", str(tmp_path / "advice.sqlite"))
    first, again = (tutors("report", *flags) for _ in range(2))
    assert first.returncode == again.returncode == 0, first.stderr + again.stderr
    assert len(first.stdout.splitlines()) == 1
    first_found, again_found = json.loads(first.stdout), json.loads(again.stdout)
    assert first_found["tutor"] == "scripted"
    assert [(one["game"], one["view"]) for one in first_found["reports"]] == [("snake", "local"), ("snake", "full")]
    for one, other in zip(first_found["reports"], again_found["reports"], strict=True):
        assert (one["answered"], one["agreement"], one["stored"]) == (20, 1, 0)
        assert (other["answered"], other["agreement"], other["stored"], other["prompts"]) == (20, 1, 20, 0)
    with Image.open(tmp_path / "snake.png") as image:
        assert image.height > image.width / 2
    only = tutors("report", *flags, "--view", "local", "--tutor-accuracy", "0")
    (report_of_one,) = json.loads(only.stdout)["reports"]
    assert report_of_one["view"] == "local"
    assert report_of_one["agreement"] < 0.9


@pytest.mark.process
@pytest.mark.train
def test_report_of_a_run_is_about_its_tutor_in_its_view(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train = ("train.py", "--env", "snake", "--view", "full", "--tutor", "scripted", "--tutor-accuracy", "0.5")
    train += ("--env-kwargs", "size=6", "--total-steps", "256", "--num-envs", "64", "--eval-episodes", "4")
    small = ("--learning-starts", "128", "--hidden", "8", "--eval-every", "256", "--run-dir", str(run))
    assert program(*train, *small).returncode == 0
    done = tutors("report", str(run), "--positions", "100", "--json")
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["reports"]
    assert (found["view"], found["positions"], found["stored"]) == ("full", 100, 0)
    assert 0.6 < found["agreement"] < 0.9
    assert (run / "report.png").is_file()
    flags = ("--tutor-accuracy", "1.0", "--view", "local")
    refused = tutors("report", str(run), *flags)
    assert refused.returncode == 2
    assert "env and tutor are those of" in refused.stderr


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((), "name it with --tutor"),
        (("--tutor", "scriptd"), "did you mean 'scripted'"),
        (("--tutor", "scripted", "--positions", "0"), "at least 1"),
        (("--tutor", "scripted", "--env", "chess"), "no env"),
        (("--tutor", "scripted", "--env", "gym:CartPole-v1"), "has no prompt view"),
        (("--tutor", "scripted", "--env", "snake", "--view", "ful"), "did you mean"),
        (("--tutor", "scripted", "--picture", "/nowhere/a.png"), "no folder /nowhere"),
        (("--tutor", "scripted", "--view", "tests.tutors.test_report:Mute"), "has no expert"),
        (("/nowhere",), "no run directory"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_impossible_report_is_refused_with_exit_code_2(flags: tuple[str, ...], said: str) -> None:
    done = tutors("report", *flags)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout


class Mute(PromptView):
    """A view without an expert."""

    game, name, version, labels, instructions = "connect4", "mute", 1, tuple("ABCDEFG"), ""


def test_nan_is_shown_as_a_dash() -> None:
    view = EchoView(Echo(4))
    mute = FunctionTutor(view, lambda state: Advice.no_advice(num_rows(state), 4))
    found: TutorReport = measure_tutor(advisor_of(view, mute), select_rows(hidden(0, 1, 3), torch.tensor([0, 1])), 4)
    cells = [cell for column in measures_table([found], "function").columns for cell in column.cells]
    assert any(cell.startswith("–") for cell in cells)
    assert not any("nan" in cell for cell in cells)
