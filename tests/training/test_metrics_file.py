"""What is left of a metrics.csv that was damaged: every sound line, whatever the others hold."""

import random
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.stats import read_curve
from tests.helpers.fuzzing import SCALE
from tests.helpers.small_runs import small_config
from train import train
from training.logger import rows_until
from training.metrics_file import HEADER, read_rows

SOUND = [[str(step), f"{step / 100}", "eval/mean_return", str(step / 7)] for step in range(0, 1000, 100)]
DAMAGED = [
    *(b"", b"\xff", b"\x00", b",,,", b"1,2,3", b"1,2,a,3,4", b'"', b'1,2,"a\n', b"[" * 10_000),
    *(b"x,1.0,a,1.0", b"1.5,1.0,a,1.0", b"-1,1.0,a,1.0", b"nan,1.0,a,1.0", "²,1.0,a,1.0".encode()),
    b"9" * 5000 + b",1,a,1",
    *(b"1,x,a,1.0", b"1,nan,a,1.0", b"1,inf,a,1.0", b"1,1.0,,1.0", b"1,1.0,a,one", b"1,1.0,\xe9,1.0"),
    b"1,1.0,a\x1b[2J,1.0",
]  # fmt: skip


def write(path: Path, lines: list[bytes]) -> None:
    path.write_bytes(b"".join(line + b"\r\n" for line in lines))


@pytest.mark.parametrize("damaged", DAMAGED, ids=lambda line: repr(line[:20]))
@pytest.mark.parametrize("place", [0, 1, 5, 11])
def test_damaged_line_alone_is_left_out(
    damaged: bytes, place: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [",".join(row).encode() for row in (HEADER, *SOUND)]
    lines.insert(place, damaged)
    write(tmp_path / "metrics.csv", lines)
    assert [row for row in read_rows(tmp_path / "metrics.csv") if row != HEADER] == SOUND
    assert rows_until(tmp_path / "metrics.csv", 500) == [HEADER, *SOUND[:6]]
    assert read_curve(tmp_path) == [(int(row[0]), float(row[3])) for row in SOUND]
    assert f"{tmp_path / 'metrics.csv'}: lines left out as damaged: " in caplog.text


def test_sound_file_and_half_a_last_line_are_no_damage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "metrics.csv", [",".join(row).encode() for row in (HEADER, *SOUND)])
    with (tmp_path / "metrics.csv").open("ab") as file:
        file.write(b"1000,10.")
    assert read_rows(tmp_path / "metrics.csv") == SOUND
    assert not caplog.records


def test_random_damage_leaves_all_other_lines(tmp_path: Path) -> None:
    """Where neither a line nor the end of the one before was changed, it is there."""
    draw = random.Random(1)
    lines = [",".join(row).encode() + b"\r\n" for row in (HEADER, *SOUND)]
    for _ in range(500 * SCALE):
        content = bytearray(b"".join(lines))
        changed = {draw.randrange(len(content)) for _ in range(draw.randrange(1, 6))}
        for at in changed:
            content[at] = draw.randrange(256)
        (tmp_path / "metrics.csv").write_bytes(content)
        found, begin, untouched = read_rows(tmp_path / "metrics.csv"), len(lines[0]), []
        for row, line in zip(SOUND, lines[1:], strict=True):
            if changed.isdisjoint(range(begin - 2, begin + len(line))):
                untouched.append(row)
            begin += len(line)
        assert [row for row in found if row in untouched] == untouched
        rows_until(tmp_path / "metrics.csv", 500)


@pytest.mark.train
def test_run_resumes_whatever_its_metrics_hold(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = small_config("a2c", "blackjack", tmp_path / "run", tutor="none")
    train(config)
    before = read_rows(tmp_path / "run" / "metrics.csv")
    with (tmp_path / "run" / "metrics.csv").open("ab") as file:
        file.write(b"\r\n".join(DAMAGED) + b"\r\n")
    train(replace(config, run_dir=None, resume=tmp_path / "run", total_steps=4096, force=True))
    after = read_rows(tmp_path / "run" / "metrics.csv")
    assert after[: len(before)] == before
    assert int(after[-1][0]) == 4096
    assert "damaged" in caplog.text
