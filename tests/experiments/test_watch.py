"""Pictures, matches and games by hand, from small runs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from envs.rng import sample_legal
from experiments import watch
from experiments.watch import Match, Play, Record, by_hand, match, record
from tests.helpers.programs import program
from tests.integration.test_query import config_of
from tests.training.test_video import decoded
from train import train
from training.checkpoint import load_checkpoint
from training.config import Config


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Config]:
    """A tutored student of each game, and one that learned Connect Four for longer, alone."""
    folder, found = tmp_path_factory.mktemp("runs"), {}
    for game in ("connect4", "snake", "blackjack"):
        found[game] = config_of("dqn", game, folder / game)
        if game == "snake":
            found[game] = replace(found[game], env_kwargs=("size=5", "time_limit=30"))
    found["longer"] = replace(config_of("dqn", "connect4", folder / "longer", tutor="none"), total_steps=20_000)
    for config in found.values():
        train(replace(config, eval_every=1024))
    return found


@pytest.mark.parametrize("game", ["connect4", "snake", "blackjack"])
def test_a_game_is_recorded_with_what_its_tutor_thinks(game: str, runs: dict[str, Config], tmp_path: Path) -> None:
    for name in ("game.gif", "game.png"):
        record(Record(runs[game].run_dir, tmp_path / name))
    film, (last,) = (pictures(tmp_path / name) for name in ("game.gif", "game.png"))
    assert len(film) > 1
    assert last.shape == film[0].shape
    bars = [int((np.abs(picture - np.array(watch.BAR)) < 8).all(2).sum()) for picture in film]
    assert min(bars[:-1]) > 0, "advice in every position but the last"
    assert bars[-1] == 0


def pictures(path: Path) -> list[np.ndarray]:
    """All pictures of a file, (height, width, 3) int64 each."""
    with Image.open(path) as film:
        return [np.asarray(one.convert("RGB")).astype(np.int64) for one in ImageSequence.Iterator(film)]


def test_without_a_tutor_there_is_the_board_alone(runs: dict[str, Config], tmp_path: Path) -> None:
    record(Record(runs["longer"].run_dir, tmp_path / "game.gif"))
    assert {one.shape for one in pictures(tmp_path / "game.gif")} == {(6 * watch.CELL, 7 * watch.CELL, 3)}
    with pytest.raises(ValueError, match=r"recorded as \.gif"):
        record(Record(runs["longer"].run_dir, tmp_path / "game.avi"))


def test_a_video_is_the_animation_s_game(runs: dict[str, Config], tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg", reason="imageio-ffmpeg is not installed")
    for name in ("game.gif", "game.mp4"):
        record(Record(runs["connect4"].run_dir, tmp_path / name))
    (_, video), film = decoded(tmp_path / "game.mp4"), pictures(tmp_path / "game.gif")
    assert len(video) == len(film)
    assert max(np.abs(ours - theirs).mean() for ours, theirs in zip(video, film, strict=True)) < 8


class Stacker:
    """Drops into one column until it is full: often enough nobody stops it."""

    def greedy(self, obs: torch.Tensor, action_mask: torch.Tensor) -> torch.Tensor:
        return torch.where(action_mask[:, 3], 3, action_mask.long().argmax(1))

    def frozen(self) -> Any:
        return self.greedy


class Anyhow(Stacker):
    """Drops anywhere, as the discs lie."""

    def greedy(self, obs: torch.Tensor, action_mask: torch.Tensor) -> torch.Tensor:
        weights = torch.arange(obs[0].numel(), device=obs.device).sin()
        return sample_legal(action_mask, (obs.flatten(1) * weights).sum(1) * 7.7 % 1)


def test_in_a_match_the_better_student_wins_whoever_is_named_first(
    runs: dict[str, Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is once the one who slips now and then, so a match with oneself is even."""
    students = {Path("better"): Stacker(), Path("worse"): Anyhow()}
    with monkeypatch.context() as patch:
        patch.setattr(watch, "loaded", lambda run: (runs["connect4"], students[run]))
        there, back = (match(Match(*names, 300)) for names in (students, reversed(students)))
        low, high = match(Match(Path("worse"), Path("worse"), 300)).interval()
    assert there.episodes == 600
    assert there.interval()[0] > 0.3
    assert back.interval()[1] < -0.3
    assert low < 0 < high
    with pytest.raises(ValueError, match="has learned snake: matches are of connect4"):
        match(Match(runs["snake"].run_dir, runs["longer"].run_dir, 10))


def test_a_person_plays_to_the_end(runs: dict[str, Config], capsys: pytest.CaptureFixture[str]) -> None:
    tries = [str(1 + turn % 7) for turn in range(60)]
    asked: list[str] = []

    def person(question: str) -> str:
        asked.append(question)
        return ["0", "x", "8"][len(asked) - 1] if len(asked) <= 3 else tries[len(asked) - 4]

    by_hand(Play(runs["connect4"].run_dir, hint=True), person)
    said = capsys.readouterr().out
    assert said.count("a column that is not full") >= 3
    assert "the tutor:" in said
    assert said.rstrip().splitlines()[-1] in ("you win", "a draw", "the student wins")
    by_hand(Play(runs["connect4"].run_dir), lambda question: "q")
    assert "the tutor:" not in capsys.readouterr().out

    def leaves(question: str) -> str:
        raise EOFError

    by_hand(Play(runs["connect4"].run_dir), leaves)
    assert "column that is not full" not in capsys.readouterr().out


def test_a_picture_that_cannot_be_written_is_said(runs: dict[str, Config], tmp_path: Path) -> None:
    folder = runs["longer"].run_dir
    for name in ("film.gif", "film.png"):
        (tmp_path / name).mkdir()
        with pytest.raises(ValueError, match=rf"{name} cannot be written: .*Is a directory"):
            record(Record(folder, tmp_path / name))


def test_what_cannot_be_watched_is_said_in_one_line(runs: dict[str, Config], tmp_path: Path) -> None:
    done = program("experiments.watch", "match", str(tmp_path), str(tmp_path))
    assert (done.returncode, "is no run's folder" in done.stderr) == (2, True)
    done = program("experiments.watch", "record", str(runs["snake"].run_dir), str(tmp_path / "snake.png"))
    assert (done.returncode, done.stderr) == (0, "")
    assert load_checkpoint(runs["snake"].run_dir / "checkpoints", "cpu")["global_step"] == 2048
