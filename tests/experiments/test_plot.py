"""Learning curves as pictures: which runs are one line, and what a line shows."""

from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from experiments.plot import PlotOptions, by_setting, draw_mean, plot
from experiments.stats import Curve
from training.config import Config


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
        write_run(tmp_path / "3", replace(common, seed=3, total_steps=40), [0.0, 9.0]),
    ]
    assert by_setting(runs) == {
        "total_steps 20": [[(10, 0.0), (20, 1.0)], [(10, 0.0), (20, 3.0)]],
        "total_steps 40": [[(10, 0.0), (20, 9.0)]],
    }
    assert list(by_setting(runs[:2])) == ["all"]


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


def test_plot_requires_runs_with_evaluations(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no runs"):
        plot(PlotOptions(()))
    with pytest.raises(ValueError, match="has no evaluation yet"):
        plot(PlotOptions((write_run(tmp_path / "1", Config(), []),)))
    with pytest.raises(ValueError, match=r"config\.json"):
        plot(PlotOptions((tmp_path,)))


def test_a_line_is_the_mean_over_the_steps_that_all_runs_have() -> None:
    curves: list[Curve] = [[(10, 0.0), (20, 1.0), (40, 5.0)], [(5, 9.0), (10, 2.0), (40, 7.0), (50, 9.0)]]
    axes = Figure().subplots()
    draw_mean(axes, curves, "alone", "#000000")
    assert axes.lines[0].get_xydata().tolist() == [[10, 1], [40, 6]]
    corners = {tuple(corner) for corner in axes.collections[0].get_paths()[0].vertices.tolist()}
    assert corners == {(10, 0), (10, 2), (40, 5), (40, 7)}
    with pytest.raises(ValueError, match="the runs of alone have no evaluation at the same step"):
        draw_mean(axes, [[(10, 0.0)], [(5, 0.0)]], "alone", "#000000")
