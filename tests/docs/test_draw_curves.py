"""The pictures of the algorithms' pages against the files that they are drawn from."""

from pathlib import Path

import pytest
from PIL import Image

from docs.draw_curves import FOLDER, digest, draw, files


@pytest.mark.parametrize("algo", ["a2c", "dqn", "ppo"])
def test_a_picture_is_drawn_from_todays_curves(algo: str, tmp_path: Path) -> None:
    with Image.open(FOLDER / f"{algo}.png") as picture:
        assert picture.text["Description"] == digest(algo), "run `make docs`"  # type: ignore[attr-defined]
        draw(algo, tmp_path / "again.png")
        with Image.open(tmp_path / "again.png") as again:
            assert again.width == picture.width
            assert len(again.getcolors(again.width * again.height)) > 20


def test_every_curve_is_in_a_picture() -> None:
    drawn = {path for algo in ("a2c", "dqn", "ppo") for _, path in files(algo)}
    assert drawn == set((FOLDER / "curves").glob("*.csv"))
