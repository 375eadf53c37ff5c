"""A search with runs that score by a formula: what it tries, prunes, resumes and writes; and one with real runs."""

import csv
import shutil
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from agents import AGENTS
from experiments import search as searching
from experiments.search import SPACES, LogUniform, SearchOptions, search, setting_of, widened
from experiments.spec import RunCommand
from tests.helpers.programs import program
from training.config import default_config

pytest.importorskip("optuna")


class FormulaPool:
    """Takes the place of a pool of processes: a run scores by its arguments, better the larger its learning rate."""

    started: list[RunCommand]
    limit = 10**9  # runs until the search is interrupted

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self.running: list[RunCommand] = []

    def __enter__(self) -> "FormulaPool":
        return self

    def __exit__(self, *error: object) -> None:
        """Leave nothing behind."""

    def has_room(self) -> bool:
        return len(self.running) < self.jobs

    def start(self, command: RunCommand) -> None:
        if len(self.started) == self.limit:
            raise KeyboardInterrupt
        self.started.append(command)
        self.running.append(command)

    def wait(self) -> list[tuple[RunCommand, int]]:
        command = self.running.pop(0)
        value = dict(zip(command.arguments, command.arguments[1:], strict=False))
        if value["--n-step"] == "3":
            return [(command, 2)]
        score = float(value["--learning-rate"]) * 1000 + int(value["--seed"])
        command.run_dir.mkdir(parents=True, exist_ok=True)
        rows = ["global_step,wall_seconds,tag,value", f"10,1,eval/mean_return,{score}"]
        (command.run_dir / "metrics.csv").write_text("\n".join(rows))
        return [(command, 0)]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[RunCommand]:
    """The runs of a search, in place of executing them."""
    monkeypatch.setattr(FormulaPool, "started", [], raising=False)
    monkeypatch.setattr(searching, "LocalPool", FormulaPool)
    return FormulaPool.started


def rows_of(directory: Path) -> list[dict[str, str]]:
    comment, *lines = (directory / "trials.csv").read_text().splitlines()
    assert comment.startswith("# dqn_snake_")
    return list(csv.DictReader(lines))


def test_a_search_starts_with_the_defaults_and_ranks_by_the_mean_over_seeds(
    started: list[RunCommand], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = SearchOptions("dqn", "snake", trials=8, seeds=(1, 2), output_dir=tmp_path)
    search(options)
    defaults = default_config("dqn", "snake")
    for name in SPACES["dqn"]:
        arguments = started[0].arguments
        assert float(arguments[arguments.index(f"--{name.replace('_', '-')}") + 1]) == setting_of(defaults, name)
    rows = rows_of(tmp_path)
    scores = [float(row["score"]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    failed = {one.index for one in started} - {int(row["trial"]) for row in rows}
    assert len(rows) + len(failed) == 8
    assert all(row["seeds"] == "2" for row in rows), "two seeds are too few for the test"
    best = next(one for one in started if one.index == int(rows[0]["trial"]))
    rate = float(best.arguments[best.arguments.index("--learning-rate") + 1])
    assert scores[0] == pytest.approx(rate * 1000 + 1.5, abs=1e-5)
    assert f"learning_rate = {rate:.3g}" in capsys.readouterr().out


def test_a_trial_that_is_worse_by_seed_ends_early(started: list[RunCommand], tmp_path: Path) -> None:
    search(SearchOptions("dqn", "snake", trials=10, jobs=1, output_dir=tmp_path))
    rows = rows_of(tmp_path)
    assert rows[0]["seeds"] == "5"
    assert {row["seeds"] for row in rows} == {"3", "5"}, "three seeds are the fewest with a p-value below 0.15"


def test_a_search_that_was_interrupted_continues_with_the_trials_it_had(
    started: list[RunCommand], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = SearchOptions("dqn", "snake", trials=4, output_dir=tmp_path)
    monkeypatch.setattr(FormulaPool, "limit", 7)
    with pytest.raises(KeyboardInterrupt):
        search(options)
    before = [(one.index, one.arguments) for one in started]
    monkeypatch.setattr(FormulaPool, "limit", 10**9)
    search(options)
    after = [(one.index, one.arguments) for one in started[7:]]
    settings = {index: arguments[12:-2] for index, arguments in before}
    for index, arguments in after:
        assert settings.setdefault(index, arguments[12:-2]) == arguments[12:-2], "the same settings"
    assert len(settings) == 4
    number = len(started)
    search(options)
    assert len(started) == number, "nothing was left to do"
    search(replace(options, trials=5))
    assert {one.index for one in started[number:]} == {4}


def test_two_processes_share_the_trials_of_a_search(started: list[RunCommand], tmp_path: Path) -> None:
    """The other process is in the midst of trial 0; when it is gone, its trial is free."""
    options = SearchOptions("dqn", "snake", trials=4, seeds=(1, 2), output_dir=tmp_path)
    study = searching.open_study(options, default_config("dqn", "snake"))
    with ExitStack() as locks:
        other = study.ask()
        searching.suggest(other, widened(SPACES["dqn"], default_config("dqn", "snake")))
        assert searching.claim(options, other.number, locks)
        search(options)
        assert {one.index for one in started} == {1, 2, 3}
        search(options)
        assert {one.index for one in started} == {1, 2, 3}, "nothing is left for the first one"
    search(options)
    assert {one.index for one in started} == {0, 1, 2, 3}
    assert len({one.run_dir for one in started}) == len(started), "no run was trained twice"


def test_published_searches_have_their_journal(
    started: list[RunCommand], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching, "PUBLISHED", tmp_path / "results")
    options = SearchOptions("dqn", "snake", trials=1, output_dir=tmp_path / "runs", publish=True)
    search(options)
    assert {one.name for one in (tmp_path / "results").iterdir()} == {
        f"{options.name()}.journal",
        f"{options.name()}.csv",
    }


def test_searches_with_other_runs_have_other_names() -> None:
    options = SearchOptions()
    others = [{"flags": "--hidden 8"}, {"num_evals": 5}, {"eval_episodes": 20}, {"total_steps": 1000}, {"env": "snake"}]
    assert len({replace(options, **other).name() for other in [{}, *others]}) == 6
    assert replace(options, trials=99, jobs=7).name() == options.name()
    assert replace(options, env="gym:CartPole-v1").name().startswith("dqn_gym-CartPole-v1_")


@pytest.mark.parametrize("algo", AGENTS)
@pytest.mark.parametrize("env", ["blackjack", "connect4", "snake", "gym:CartPole-v1"])
def test_search_spaces_contain_the_defaults(algo: str, env: str) -> None:
    defaults = default_config(algo, env)
    for name, values in widened(SPACES[algo], defaults).items():
        default = setting_of(defaults, name)
        if isinstance(values, LogUniform):
            assert values.low <= default <= values.high
        else:
            assert default in values
            assert set(SPACES[algo][name]) <= set(values)  # type: ignore[arg-type]


def test_invalid_searches_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did you mean 'ppo'"):
        search(SearchOptions("pqo", output_dir=tmp_path))
    with pytest.raises(ValueError, match="at least one seed, one trial and one job"):
        search(SearchOptions(seeds=(), output_dir=tmp_path))
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ValueError, match=r"search requires Optuna: .*python -m pip install"):
        search(SearchOptions(output_dir=tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.process
@pytest.mark.train
def test_a_search_trains(tmp_path: Path) -> None:
    flags = ("--algo", "ppo", "--env", "blackjack", "--total-steps", "4096", "--num-evals", "2", "--seeds", "1")
    command = ("experiments", "search", *flags, "--trials", "2", "--output-dir", str(tmp_path))
    ended = program(*command)
    assert ended.returncode == 0, ended.stderr
    assert "[ppo.blackjack]" in ended.stdout
    assert len(list(tmp_path.glob("trial*_seed1/summary.json"))) == 2
    shutil.rmtree(tmp_path / "trial1_seed1")
    assert program(*command).returncode == 0
    assert not (tmp_path / "trial1_seed1").exists(), "the journal knows its score"
