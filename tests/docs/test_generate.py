"""Generated tables against results that are small enough to be worked out by hand."""

import json
from pathlib import Path

import pytest

from docs import generate

CONDITIONS = """# made by hand
env,algo,tutor,guidance,seeds,final_score,final_gain,final_gain_low,final_gain_high,auc,reached,steps_to_threshold
connect4,ppo,none,none,5,0.1395,0,0,0,-0.1857,3,102400.0
connect4,ppo,scripted:1,distill,5,0.5,0.344,0.2,0.5,0.3,5,inf
connect4,ppo,scripted:0,distill,5,0.5,-0.663,-0.7,-0.6,0.3,0,20480.0
connect4,ppo,scripted:0,hint,5,0.5,-0.081,-0.2,0.1,0.3,0,20480.0
"""


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    study = tmp_path / "study" / "small"
    study.mkdir(parents=True)
    (study / "conditions.csv").write_text(CONDITIONS)
    monkeypatch.setattr(generate, "RESULTS", tmp_path)
    return tmp_path


def test_gains_are_bold_where_the_interval_leaves_out_0(results: Path) -> None:
    *_, distill, hint = generate.gains("small", "final").splitlines()
    assert distill == "| connect4 | ppo | `distill` | **−0.66** | **+0.34** |"  # worst tutor first
    assert hint == "| connect4 | ppo | `hint` | −0.08 |  |"


def test_students_alone_are_the_rows_without_a_tutor(results: Path) -> None:
    *_, last = generate.alone("small").splitlines()
    assert last == "| connect4 | ppo | −0.19 | +0.14 | 5 |"


def test_steps_to_threshold_say_how_many_seeds_reached_it(results: Path) -> None:
    _, _, *rows = generate.steps_to_threshold("small", ["scripted:1"]).splitlines()
    assert rows == ["| alone |  | 102,400 (3 of 5) |", "| `distill` | 1 | not reached (5 of 5) |"]


def test_benchmarks_name_their_command_and_machine(results: Path) -> None:
    machine = {"commit": "abc", "machine": "x86_64, 2 cores", "cpu": "a CPU", "python": "3.11", "torch": "2.13"}
    row = {"game": "snake", "program": "eager", "copies": 1024, "steps_per_second": 1_234_567.0}
    rows = [row, row | {"program": "envpool", "steps_per_second": None}]
    (results / "games.json").write_text(json.dumps({"command": "bench games", "machine": machine, "rows": rows}))
    lines = generate.speed_of_games().splitlines()
    assert lines[0] == "| env | program | 1,024 copies |"
    assert lines[2:4] == ["| snake | ours, eager | 1.23 |", "| snake | envpool | – |"]
    assert lines[-1] == "`bench games` at commit abc, on x86_64, 2 cores (a CPU), Python 3.11, PyTorch 2.13."


def test_thresholds_say_what_was_not_reached_within_which_time(results: Path) -> None:
    machine = {"commit": "abc", "machine": "x86_64, 2 cores", "cpu": "a CPU", "python": "3.11", "torch": "2.13"}
    run = {"best": 480.25, "was_capped": False, "cpu_seconds": 20.0}
    row = {"cell": "cartpole-475", "algo": "ppo", "program": "ours", "score": 475, "cap_seconds": 240.0}
    reached = row | {"runs": [run, run], "seconds": 31.4, "cpu_seconds": 20.0}
    capped = [{"best": -0.5, "was_capped": True, "cpu_seconds": seconds} for seconds in (199.6, 150.0)]
    late = row | {"program": "peer", "runs": capped, "seconds": None, "cpu_seconds": None}
    failed = row | {"program": "other", "runs": [run | {"best": None}], "seconds": None, "cpu_seconds": None}
    measured = {"command": "bench thresholds", "machine": machine, "rows": [reached, late, failed]}
    (results / "thresholds.json").write_text(json.dumps(measured))
    _, _, *rows = generate.thresholds().splitlines()
    assert rows[:3] == [
        "| cartpole | ppo | ours | 475 | 480 | 20 | 31.4 | 2 |",
        "| cartpole | ppo | peer | 475 | −0.5 | > 200 | not in 240 | 2 |",
        "| cartpole | ppo | other | 475 | – | – | – | 1 |",
    ]


def test_a_block_that_nobody_makes_is_an_error() -> None:
    with pytest.raises(KeyError, match="weather"):
        generate.filled("<!-- begin weather -->\n<!-- end weather -->")
