"""Learning curves as pictures: which runs are one line, and what a line shows."""

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from agents.guidance import GuidanceConfig
from experiments.curves import BASELINE_COLOR
from experiments.plot import PlotOptions, by_game, by_setting, plot, read_interval, styles_of
from training.config import Config, default_config
from tutors import TutorConfig


def write_run(run_dir: Path, config: Config, scores: list[float]) -> Path:
    """Write the directory of a run with these evaluations."""
    run_dir.mkdir()
    (run_dir / "config.json").write_text(replace(config, run_dir=run_dir).to_json())
    rows = [f"{at * 10},{at},eval/mean_return,{score}" for at, score in enumerate(scores, 1)]
    (run_dir / "metrics.csv").write_text("\n".join(["global_step,wall_seconds,tag,value", *rows]))
    return run_dir


def test_runs_that_differ_in_the_seed_are_one_setting(tmp_path: Path) -> None:
    common = Config(env="connect4", total_steps=20)
    runs = [
        write_run(tmp_path / "1", common, [0.0, 1.0]),
        write_run(tmp_path / "2", replace(common, seed=2), [0.0, 3.0]),
        write_run(tmp_path / "3", replace(common, seed=3, total_steps=40_000), [0.0, 9.0]),
    ]
    assert by_setting(runs) == {"total steps 20": runs[:2], "total steps 40,000": runs[2:]}
    assert by_setting(runs[:2]) == {"DQN, no tutor": runs[:2]}


def test_a_student_without_a_tutor_is_called_so_and_has_no_settings_of_one(tmp_path: Path) -> None:
    alone = replace(default_config("ppo", "connect4"), guiding=GuidanceConfig("override"))
    tutored = replace(alone, tutoring=TutorConfig(tutor="scripted", tutor_accuracy=0.6, advice_store="one"))
    other = replace(tutored, guiding=GuidanceConfig("distill"), tutoring=replace(tutored.tutoring, advice_store="two"))
    runs = [write_run(tmp_path / str(at), one, [0.0]) for at, one in enumerate((alone, tutored, other))]
    expected = ["no tutor", "tutor scripted:0.6, guidance override", "tutor scripted:0.6, guidance distill"]
    assert [*by_setting(runs)] == expected
    assert [*by_setting(runs[:2])] == ["no tutor", "tutor scripted:0.6"]


def test_each_game_has_a_panel_with_its_title(tmp_path: Path) -> None:
    configs = {
        "Connect Four, default options": Config(env="connect4"),
        "Snake 6 x 6": Config(env="snake", env_kwargs=("size=6",)),
        "Snake 8 x 8": Config(env="snake", env_kwargs=("size=8",)),
        "Connect Four, opponent=random": Config(env="connect4", env_kwargs=("opponent=random",)),
        "gone:Game": Config(env="gone:Game"),
    }
    runs = {title: write_run(tmp_path / str(at), one, [0.0]) for at, (title, one) in enumerate(configs.items())}
    assert by_game([*runs.values()]) == {title: [run_dir] for title, run_dir in runs.items()}
    plot(PlotOptions(tuple(runs.values()), tmp_path / "curves.png"))


def test_picture_is_under_runs_where_none_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "elsewhere", Config(), [0.0, 1.0])
    monkeypatch.chdir(tmp_path)
    plot(PlotOptions((run,)))
    assert {one.name for one in tmp_path.iterdir()} == {"elsewhere", "runs"}
    assert [one.name for one in (tmp_path / "runs").iterdir()] == ["curves.png"]


def test_plot_writes_a_picture_of_all_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = tuple(
        write_run(tmp_path / str(seed), Config(seed=seed, total_steps=10 * (1 + seed // 3)), [0.0, 1.0])
        for seed in (1, 2, 3)
    )
    plot(PlotOptions(runs, tmp_path / "curves.png"))
    assert "3 runs, 2 settings" in capsys.readouterr().out
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size == (1200, 750)
    with pytest.raises(ValueError, match=r"nowhere/x\.png cannot be written: .*No such file"):
        plot(PlotOptions(runs, tmp_path / "nowhere" / "x.png"))
    with pytest.raises(ValueError, match=r"cannot be written: .*not supported"):
        plot(PlotOptions(runs, tmp_path / "curves.avi"))


def test_plot_leaves_out_what_is_no_run_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As `runs/*` has it: studies, stores, runs that wait for their server or are younger than their evaluation."""
    run = write_run(tmp_path / "run", Config(), [0.0, 1.0])
    (tmp_path / "study").mkdir()
    (tmp_path / "advice.sqlite").write_text("")
    write_run(tmp_path / "young", Config(), [])
    write_run(tmp_path / "bare", Config(), []).joinpath("metrics.csv").unlink()
    (write_run(tmp_path / "old", Config(), [0.0]) / "config.json").write_text("{}")
    others = [tmp_path / name for name in ("study", "advice.sqlite", "young", "bare", "old")]
    plot(PlotOptions((run, *others), tmp_path / "a.png"))
    printed = capsys.readouterr()
    assert "1 runs, 1 settings" in printed.out
    lines = printed.err.splitlines()
    assert len(lines) == 5
    for line, path in zip(lines, others, strict=True):
        assert line.startswith(f"left out: {path}")


def test_plot_requires_runs_with_evaluations(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no runs"):
        plot(PlotOptions(()))
    with pytest.raises(ValueError, match="has no evaluation yet"):
        plot(PlotOptions((write_run(tmp_path / "1", Config(), []),)))
    with pytest.raises(ValueError, match=r"config\.json"):
        plot(PlotOptions((tmp_path,)))


def test_a_single_run_s_band_is_the_interval_that_it_logged(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "1", Config(), [0.0, 0.5])
    assert read_interval(run_dir) == ([], [])
    with (run_dir / "metrics.csv").open("a") as file:
        for step, low, high in ((10, -0.1, 0.2), (20, 0.3, 0.6)):
            file.write(f"\n{step},1,eval_interval/low,{low}\n{step},1,eval_interval/high,{high}")
    assert read_interval(run_dir) == ([(10, -0.1), (20, 0.3)], [(10, 0.2), (20, 0.6)])


def test_lines_are_drawn_in_styles_of_their_own() -> None:
    styles = styles_of(["PPO, no tutor", "PPO, tutor a", "DQN, no tutor", "DQN, tutor a", "PPO, tutor a"])
    assert len({(one.color, str(one.dashes)) for one in styles.values()}) == 4
    assert all(styles[name].color == BASELINE_COLOR for name in styles if "no tutor" in name)
