"""The tutor report: measures against slow definitions and tutors whose worth is known, and the program from outside."""

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

import envs
from agents.policy import entropy
from envs.base import Env, State, num_rows, select_rows
from envs.opponents import search
from envs.snake import EMPTY, HEAD
from tests.helpers.probes import Echo
from tests.helpers.programs import program
from tutors.advice_table import AdviceTable
from tutors.advisor import Advisor
from tutors.base import Advice, Tutor
from tutors.prompts import VIEWS, make_view
from tutors.prompts.base import PromptView
from tutors.report import (
    BINS,
    GAMES,
    STEP,
    Report,
    best_actions,
    calibration_error,
    expert_actions,
    gather,
    letter_bias,
    reliability,
    report,
    wilson,
)
from tutors.report_plots import letters_table, measures_table
from tutors.scripted import ScriptedTutor, one_hot
from tutors.store import AdviceStore, identity_of

ALL_VIEWS = [(game, name) for game in VIEWS for name in VIEWS[game]]


class EchoView(PromptView):
    """The hidden column, of which only one is best; columns beside it may be illegal."""

    game, name, version, labels, instructions = "echo", "told", 1, tuple("ABCD"), ""
    walls = True

    def key(self, state: State) -> Tensor:
        return torch.stack([state["hidden"], torch.zeros_like(state["hidden"])], 1)

    def render(self, state: State) -> list[str]:
        return [str(hidden) for hidden in state["hidden"].tolist()]

    def action_mask(self, state: State) -> Tensor:
        return Echo(4, self.walls).observe(state)[1]

    def expert_values(self, state: State, depth: int) -> Tensor:
        return torch.nn.functional.one_hot(state["hidden"], 4)


class Sayer(Tutor):
    """Says what it is told to say of each position, and keeps what it was asked."""

    name, identity = "sayer", {"tutor": "sayer"}

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

    def report(self) -> dict[str, float]:
        return {}


def desk_of(view: PromptView, tutor: object, store: AdviceStore | None = None) -> Advisor:
    return Advisor(view, tutor, AdviceTable(len(view.labels), math.inf, 2000), store)


def some(game: str, name: str, count: int, seed: int = 3) -> tuple[PromptView, State]:
    env = envs.make(game, 64, seed)
    view = make_view(env.game, name)
    return view, gather(env, view, count, seed)


def hidden(*columns: int) -> State:
    return {"hidden": torch.tensor(columns)}


def keys_of(view: PromptView, state: State) -> list[tuple[int, ...]]:
    return [tuple(key) for key in view.key(view.canonicalize(state)[0]).tolist()]


def error_by_definition(top: list[float], agreed: list[bool]) -> float:
    """Sum over bins of |B| / n times |acc(B) - conf(B)|, each bin found by looking at all of its borders."""
    total = 0.0
    for number in range(1, BINS + 1):
        inside = [i for i, p in enumerate(top) if (number - 1) / BINS < p <= number / BINS]
        if inside:
            accuracy = sum(agreed[i] for i in inside) / len(inside)
            confidence = sum(top[i] for i in inside) / len(inside)
            total += len(inside) / len(top) * abs(accuracy - confidence)
    return total


def test_the_calibration_error_of_five_answers_is_what_one_works_out_by_hand() -> None:
    top, agreed = torch.tensor([0.55, 0.58, 0.95, 0.97, 1.0]), torch.tensor([True, False, True, True, False])
    count, confidence, accuracy = reliability(top, agreed)
    assert count.tolist() == [0, 0, 0, 0, 0, 2, 0, 0, 0, 3]
    assert confidence[5].item() == pytest.approx(0.565)
    assert confidence[9].item() == pytest.approx(2.92 / 3)
    assert accuracy[[5, 9]].tolist() == pytest.approx([1 / 2, 2 / 3])
    assert confidence[0].isnan()
    assert calibration_error(count, confidence, accuracy) == pytest.approx(2 / 5 * 0.065 + 3 / 5 * 0.92 / 3)


def test_a_probability_on_a_border_belongs_to_the_bin_below() -> None:
    borders = torch.arange(1, 11) / 10
    assert reliability(borders, borders > 2)[0].tolist() == [1] * BINS


def test_the_calibration_error_is_its_definition() -> None:
    generator = torch.Generator().manual_seed(1)
    top = torch.rand(500, generator=generator) * 0.7 + 0.3
    agreed = torch.rand(500, generator=generator) < top**2
    found = calibration_error(*reliability(top, agreed))
    assert found == pytest.approx(error_by_definition(top.tolist(), agreed.tolist()), abs=1e-5)
    assert found > 0.1


def test_who_is_as_sure_as_right_has_hardly_any_calibration_error() -> None:
    top = torch.rand(200_000, generator=torch.Generator().manual_seed(2))
    agreed = torch.rand(200_000, generator=torch.Generator().manual_seed(3)) < top
    assert calibration_error(*reliability(top, agreed)) < 0.01


def test_no_answers_have_no_calibration_error() -> None:
    assert math.isnan(calibration_error(*reliability(torch.zeros(0), torch.zeros(0, dtype=torch.bool))))


def test_the_interval_s_ends_are_where_the_share_is_196_standard_errors_away() -> None:
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


def test_entropy_is_in_nats_and_that_of_a_sure_answer_is_0() -> None:
    probs = torch.tensor([[1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [0.25] * 4, [0.7, 0.2, 0.1, 0]])
    slow = [-sum(p * math.log(p) for p in row if p > 0) for row in probs.tolist()]
    assert entropy(probs).tolist() == pytest.approx(slow)
    assert entropy(probs)[:3].tolist() == pytest.approx([0, math.log(2), math.log(4)])


def test_the_best_are_the_largest_legal_values_all_of_them() -> None:
    values = torch.tensor([[9, 1, 1, 0], [2, 2, 2, 3]])
    action_mask = torch.tensor([[False, True, True, True], [True] * 4])
    assert best_actions(values, action_mask).tolist() == [[False, True, True, False], [False, False, False, True]]


def test_a_letter_s_bias_is_what_it_gets_beyond_its_share_of_the_best() -> None:
    probs = torch.tensor([[0.8, 0.2, 0.0], [1.0, 0.0, 0.0]])
    best = torch.tensor([[True, True, False], [False, False, True]])
    bias, within = letter_bias(probs, best)
    assert bias.tolist() == pytest.approx([(0.3 + 1) / 2, -0.3 / 2, -1 / 2])
    assert within.tolist() == pytest.approx([1.96 * half / math.sqrt(2) for half in (0.35, 0.15, 0.5)])


def test_a_report_holds_what_the_answers_come_to() -> None:
    said = {0: [0.7, 0.0, 0.3, 0.0], 1: [0.0, 0.4, 0.0, 0.6], 2: None, 3: [0.5, 0.5, 0.0, 0.0]}

    def say(state: State) -> Advice:
        rows = [said[column] for column in state["hidden"].tolist()]
        given = torch.tensor([row is not None for row in rows])
        return Advice(torch.tensor([row or [0.0] * 4 for row in rows]), given, 0.1 + 0.8 * given)

    view = EchoView(Echo(4))
    found = report(desk_of(view, Sayer(view, say)), hidden(0, 1, 2, 3), 4)
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


def test_who_is_silent_throughout_has_no_measures_and_is_shown_all_the_same() -> None:
    view = EchoView(Echo(4))
    mute = Sayer(view, lambda state: Advice.no_advice(num_rows(state), 4))
    found = report(desk_of(view, mute), hidden(0, 1, 3), 4)
    assert (found.answered, found.no_advice, found.interval) == (0, {"mute": 3}, (0, 1))
    told = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert told["agreement"] is None
    assert told["curve"]["confidence"] == [None] * BINS
    assert told["letters"]["A"]["bias"] is None
    assert "3 mute" in measures_table([found], "sayer").caption
    assert letters_table([found]).num_rows == 1


def test_only_positions_with_a_choice_say_how_unsure_a_tutor_is_for_their_number_of_actions() -> None:
    class OneWay(EchoView):
        def action_mask(self, state: State) -> Tensor:
            return super().action_mask(state) & ((state["hidden"] > 0)[:, None] | (torch.arange(4) == 0))

    view = OneWay(Echo(4))
    even = Sayer(view, lambda state: one_hot(state["hidden"], 4)._replace(probs=spread(view.action_mask(state))))
    assert report(desk_of(view, even), hidden(0, 1, 3), 4).entropy_share == pytest.approx(1)


def spread(action_mask: Tensor) -> Tensor:
    return action_mask / action_mask.sum(1, keepdim=True)


@pytest.mark.parametrize(("game", "name"), ALL_VIEWS)
def test_an_expert_agrees_with_itself_and_is_sure(game: str, name: str) -> None:
    view, state = some(game, name, 200)
    found = report(desk_of(view, ScriptedTutor(view, 1.0, 4)), state, 4)
    assert (found.agreement, found.calibration_error, found.entropy, found.entropy_share) == (1, 0, 0, 0)
    assert found.curve["count"][-1] == found.answered == num_rows(state)
    assert all(abs(told["bias"]) <= 2 * told["within"] for told in found.letters.values())


def test_who_guesses_agrees_by_chance() -> None:
    view, state = some("connect4", "board", 1000)
    found = report(desk_of(view, ScriptedTutor(view, 0.0, 4)), state, 4)
    low, high = found.interval
    assert low < found.chance < high
    assert 0.15 < found.chance < 0.3
    assert found.calibration_error == pytest.approx(1 - found.agreement)


@pytest.mark.parametrize(("game", "name"), ALL_VIEWS)
def test_who_always_says_the_first_letter_is_found_out(game: str, name: str) -> None:
    view, state = some(game, name, 300)
    first = Sayer(view, lambda told: one_hot(view.action_mask(told).long().argmax(1), len(view.labels)))
    found = report(desk_of(view, first), state, 4)
    told = view.canonicalize(state)[0]
    action_mask, values = view.action_mask(told).tolist(), view.expert_values(told, 4).tolist()
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
    assert report(desk_of(view, shallow), state, 1).agreement == 1
    assert report(desk_of(view, shallow), state, 4).agreement < 0.95


def test_a_call_holds_no_more_questions_than_a_step() -> None:
    view, state = some("connect4", "board", 250)
    tutor = Sayer(view, lambda told: one_hot(view.action_mask(told).long().argmax(1), 7))
    report(desk_of(view, tutor), state, 1)
    assert tutor.calls == [STEP, STEP, 50]


def test_what_a_store_knows_costs_nothing(tmp_path: Path) -> None:
    view, state = some("connect4", "board", 150)
    spec = envs.make_game("connect4").spec
    found = []
    for _ in range(2):
        tutor = ScriptedTutor(view, 0.5, 2)
        store = AdviceStore(tmp_path / "a.sqlite", identity_of(spec, view, tutor.identity))
        found.append(report(desk_of(view, tutor, store), state, 2))
        store.close()
    first, again = found
    assert (first.prompts, first.stored, again.prompts, again.stored) == (150, 0, 0, 150)
    assert math.isnan(again.seconds_per_1000)
    assert (first.agreement, first.letters) == (again.agreement, again.letters)


@pytest.mark.parametrize(("game", "name"), ALL_VIEWS)
def test_positions_are_different_playable_and_the_same_for_the_same_seed(game: str, name: str) -> None:
    view, state = some(game, name, 300)
    rows = num_rows(state)
    assert rows == 300 if name in ("board", "full") else 50 < rows <= 300
    keys = keys_of(view, state)
    assert len(set(keys)) == rows
    env = envs.make(game, 1)
    action_mask = env.game.observe(state)[1]
    assert action_mask.any(1).all()
    told, turned = view.canonicalize(state)
    assert torch.equal(action_mask, view.action_mask(told).gather(1, view.symmetry[turned]))
    for part, tensor in some(game, name, 300)[1].items():
        assert torch.equal(tensor, state[part])
    if rows == 300:
        assert len(set(keys) & set(keys_of(view, some(game, view.name, 300, seed=4)[1]))) < 150


def test_no_position_of_connect_four_is_over() -> None:
    _, state = some("connect4", "board", 500)
    for mine, theirs in zip(state["mine"].tolist(), state["theirs"].tolist(), strict=True):
        cells = [{(b // 7, b % 7) for b in range(49) if board >> b & 1} for board in (mine, theirs)]
        for discs in cells:
            for column, row in discs:
                for right, up in ((0, 1), (1, 0), (1, 1), (1, -1)):
                    assert any((column + right * i, row + up * i) not in discs for i in range(4))
        assert len(cells[0] | cells[1]) < 42
        assert len(cells[1]) - len(cells[0]) in (0, 1)


def test_positions_come_from_whole_games_not_from_openings_alone() -> None:
    _, state = some("connect4", "board", 500)
    discs = [bin(mine | theirs).count("1") for mine, theirs in zip(*(s.tolist() for s in state.values()), strict=True)]
    assert min(discs) < 8
    assert max(discs) > 25
    _, snakes = some("snake", "full", 300)
    view = make_view(envs.make_game("snake"), "full")
    board = view.canonicalize(snakes)[0]["board"]
    lengths = ((board < EMPTY) | (board == HEAD)).flatten(1).sum(1)
    assert lengths.max() > 12
    assert (lengths < 6).any()


def test_a_draw_is_fair_among_all_that_came_up() -> None:
    view, everything = some("blackjack", "table", 10_000)
    keys = keys_of(view, everything)
    assert len(keys) == 280
    drawn = Counter(key for seed in range(30) for key in keys_of(view, some("blackjack", "table", 20, seed)[1]))
    assert sum(drawn.values()) == 600
    expected = 600 / 280
    chi2 = sum((drawn[key] - expected) ** 2 / expected for key in keys)
    assert chi2 < 279 + 5 * math.sqrt(2 * 279)


def test_half_of_the_actions_are_the_expert_s_best_on_top_of_the_lucky_ones() -> None:
    class Watched(Env):
        right, played = 0, 0

        def step(self, action: Tensor):
            self.right += int((action == self.state["hidden"]).sum())
            self.played += len(action)
            return super().step(action)

    env = Watched(Echo(4), GAMES, 1)
    view = EchoView(Echo(4))
    view.walls = False
    assert sorted(gather(env, view, 3, 1)["hidden"].tolist()) != []
    assert env.right / env.played == pytest.approx(1 / 2 + 1 / 2 / 4, abs=0.01)


def test_the_expert_s_moves_are_named_as_the_game_names_them_in_turned_boards_too() -> None:
    view, state = some("connect4", "board", 300)
    values = search(state["mine"], state["theirs"], 2)
    assert view.canonicalize(state)[1].sum() > 50
    assert torch.equal(expert_actions(view, state), values == values.amax(1, keepdim=True))


def test_the_program_reports_on_a_tutor_without_a_run(tmp_path: Path) -> None:
    picture = tmp_path / "report.png"
    flags = ("--policy", "tutor", "--report", "--env", "blackjack", "--tutor", "scripted", "--picture", str(picture))
    done = program("evaluate.py", *flags)
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


def test_all_views_are_reported_on_one_line_and_again_from_the_store(tmp_path: Path) -> None:
    flags = ("--policy", "tutor", "--report", "--env", "snake", "--tutor", "scripted", "--positions", "60", "--json")
    flags += ("--env-kwargs", "size=6")
    flags += ("--picture", str(tmp_path / "snake.png"), "--advice-store", str(tmp_path / "advice.sqlite"))
    first, again = (program("evaluate.py", *flags) for _ in range(2))
    assert first.returncode == again.returncode == 0, first.stderr + again.stderr
    assert len(first.stdout.splitlines()) == 1
    told, retold = json.loads(first.stdout), json.loads(again.stdout)
    assert (told["policy"], told["tutor"]) == ("tutor", "scripted")
    assert [(one["game"], one["view"]) for one in told["reports"]] == [("snake", "local"), ("snake", "full")]
    for one, other in zip(told["reports"], retold["reports"], strict=True):
        assert (one["answered"], one["agreement"], one["stored"]) == (60, 1, 0)
        assert (other["answered"], other["agreement"], other["stored"], other["prompts"]) == (60, 1, 60, 0)
    with Image.open(tmp_path / "snake.png") as image:
        assert image.height > image.width / 2
    only = program("evaluate.py", *flags, "--view", "local", "--tutor-accuracy", "0")
    (report_of_one,) = json.loads(only.stdout)["reports"]
    assert report_of_one["view"] == "local"
    assert report_of_one["agreement"] < 0.9


def test_a_run_s_own_tutor_is_reported_on_in_its_own_view(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train = ("train.py", "--env", "snake", "--view", "full", "--tutor", "scripted", "--tutor-accuracy", "0.5")
    train += ("--env-kwargs", "size=6", "--total-steps", "256", "--num-envs", "64", "--eval-episodes", "4")
    small = ("--learning-starts", "128", "--hidden", "8", "--eval-every", "256", "--run-dir", str(run))
    assert program(*train, *small).returncode == 0
    done = program("evaluate.py", str(run), "--policy", "tutor", "--report", "--positions", "100", "--json")
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["reports"]
    assert (found["view"], found["positions"], found["stored"]) == ("full", 100, 0)
    assert 0.6 < found["agreement"] < 0.9
    assert (run / "report.png").is_file()
    flags = ("--policy", "tutor", "--report", "--tutor-accuracy", "1.0", "--view", "local")
    refused = program("evaluate.py", str(run), *flags)
    assert refused.returncode == 2
    assert "the game and the tutor are those of" in refused.stderr


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((), "Name a run directory"),
        (("--policy", "tutor"), "Name a run directory"),
        (("--report", "--tutor", "scripted"), "add --policy tutor"),
        (("--policy", "tutor", "--report"), "Name it with --tutor"),
        (("--policy", "tutor", "--report", "--tutor", "scriptd"), "did you mean 'scripted'"),
        (("--policy", "tutor", "--report", "--tutor", "scripted", "--positions", "0"), "at least 1"),
        (("--policy", "tutor", "--report", "--tutor", "scripted", "--env", "chess"), "no env"),
        (("--policy", "tutor", "--report", "--tutor", "scripted", "--env", "gym:CartPole-v1"), "has no view"),
        (("--policy", "tutor", "--report", "--tutor", "scripted", "--env", "snake", "--view", "ful"), "did you mean"),
        (("--policy", "tutor", "--report", "--tutor", "scripted", "--picture", "/nowhere/a.png"), "no folder /nowhere"),
        (("--policy", "tutor", "--report", "--tutor", "scripted", "--view", "tests.test_report:Mute"), "has no expert"),
        (("/nowhere", "--policy", "tutor", "--report"), "is no run"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_reported_is_refused_with_code_2_and_no_traceback(flags: tuple[str, ...], said: str) -> None:
    done = program("evaluate.py", *flags)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout


class Mute(PromptView):
    """A view without an expert."""

    game, name, version, labels, instructions = "connect4", "mute", 1, tuple("ABCDEFG"), ""


def test_a_number_that_is_none_is_shown_as_a_dash() -> None:
    view = EchoView(Echo(4))
    mute = Sayer(view, lambda state: Advice.no_advice(num_rows(state), 4))
    found: Report = report(desk_of(view, mute), select_rows(hidden(0, 1, 3), torch.tensor([0, 1])), 4)
    cells = [cell for column in measures_table([found], "sayer").columns for cell in column.cells]
    assert any(cell.startswith("–") for cell in cells)
    assert not any("nan" in cell for cell in cells)
