"""Games to look at: sheets against the pictures they are made of, videos against what a decoder reads."""

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import envs
from agents.base import Agent
from envs.rendering import CELL, DRAWINGS
from training import video
from training.config import Config, default_config, evaluation_env, make_agent, make_env
from training.video import (
    BAR,
    COLUMNS,
    GAP,
    MAX_POSITIONS,
    ROWS,
    STRIP,
    EpisodeRecorder,
    check_video_path,
    contact_sheet,
    episode_images,
    episode_states,
    with_advice,
    write_video,
)


def student_of(game: str, **options: object) -> tuple[Agent, Config]:
    config = replace(default_config("ppo", game), num_envs=16, device="cpu", **options)
    return make_agent(config, make_env(config, "cpu")), config


def test_positions_are_a_whole_game_as_it_was_played() -> None:
    agent, config = student_of("connect4")
    states = episode_states(agent, evaluation_env(config, 1, "cpu"))
    discs = [[int(state[side]).bit_count() for side in ("mine", "theirs")] for state in states]
    assert [mine for mine, _ in discs] == list(range(len(states))), "one more disc a step, from an empty board"
    env = evaluation_env(config, 1, "cpu")
    step = env.reset()
    for before in states[:-1]:
        assert all(tensor.equal(step.state[name]) for name, tensor in before.items())
        step = env.step(agent.greedy(step.obs, step.action_mask))
    assert step.terminated.all()
    assert all(tensor.equal(step.final_state[name]) for name, tensor in states[-1].items())


def test_an_endless_game_ends() -> None:
    _, config = student_of("snake", env_kwargs=("size=12",))

    class Circler:
        def greedy(self, obs: torch.Tensor, action_mask: torch.Tensor) -> torch.Tensor:
            return torch.tensor([next(turns)])

    turns: Iterator[int] = iter([2, 3, 0, 1] * MAX_POSITIONS)
    assert len(episode_states(Circler(), evaluation_env(config, 1, "cpu"))) == MAX_POSITIONS


def boards_of(sheet: np.ndarray, height: int, width: int) -> list[np.ndarray]:
    """The pictures on a sheet, row by row; where there is none it is white."""
    found = []
    for top in range(STRIP, sheet.shape[0], height + STRIP):
        for left in range(GAP // 2, sheet.shape[1], width + GAP):
            board = sheet[top : top + height, left : left + width]
            if (board != 255).any():
                found.append(board)
    return found


@pytest.mark.parametrize(
    ("number", "shown"),
    [(1, [0]), (3, [0, 1, 2]), (12, list(range(12))), (23, list(range(0, 23, 2))), (111, list(range(0, 111, 10)))],
)
def test_a_sheet_shows_a_game_evenly_from_the_first_position_to_the_last(number: int, shown: list[int]) -> None:
    spec = evaluation_env(default_config("ppo", "connect4"), 1, "cpu").spec
    states = [
        {"mine": torch.tensor([at % 63]), "theirs": torch.tensor([(at // 63) << 7])} for at in range(number)
    ]  # no game, but no two are equal
    sheet = contact_sheet(spec, states)
    expected = [np.asarray(Image.fromarray(DRAWINGS["connect4"].image(spec, [states[at]])).reduce(2)) for at in shown]
    boards = boards_of(sheet, *expected[0].shape[:2])
    assert len(boards) == min(number, COLUMNS * ROWS)
    assert all((one == other).all() for one, other in zip(boards, expected, strict=True))


def test_pictures_take_a_hundredth_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that stands still but for what is said here: a picture takes 2 s, so the next is due 200 s later."""
    agent, config = student_of("connect4")
    recorder, clock = EpisodeRecorder(config, envs.make_game("connect4").spec), [50.0]
    monkeypatch.setattr(video.time, "monotonic", lambda: clock[0])

    def slow(*arguments: object) -> list:
        clock[0] += 2
        return found

    found = episode_states(agent, evaluation_env(config, 1, "cpu"))
    monkeypatch.setattr(video, "episode_states", slow)
    taken = []
    for now in (50, 100, 251, 252, 253, 453, 454):
        clock[0] = now
        if recorder.contact_sheet(agent) is not None:
            taken.append(now)
    assert taken == [50, 252, 454]


def test_what_nobody_draws_is_not_even_played(monkeypatch: pytest.MonkeyPatch) -> None:
    agent, config = student_of("gym:CartPole-v1")
    monkeypatch.delattr(video, "evaluation_env")
    assert EpisodeRecorder(config, make_env(config, "cpu").spec).contact_sheet(agent) is None


def test_without_an_advisor_an_image_is_the_board_alone() -> None:
    agent, config = student_of("connect4")
    images = episode_images(agent, evaluation_env(config, 1, "cpu"), None)
    assert {image.size for image in images} == {(7 * CELL, 6 * CELL)}
    agent, config = student_of("gym:CartPole-v1")
    with pytest.raises(ValueError, match="cannot be drawn"):
        episode_images(agent, evaluation_env(config, 1, "cpu"), None)


def test_advice_is_a_bar_per_action_as_long_as_its_probability() -> None:
    board = Image.new("RGB", (7 * CELL, 6 * CELL))
    image = np.asarray(with_advice(board, torch.tensor([0.0, 1.0, 0.5]), "abc")).astype(int)
    lengths = [(image[int((action + 0.5) * CELL)] == BAR).all(1).sum() for action in range(3)]
    assert lengths == [1, int(3.5 * CELL) + 1, int(1.75 * CELL) + 1]
    assert not (np.asarray(with_advice(board, None, "abc")) == BAR).all(2).any()


@pytest.mark.parametrize("name", ["episode.gif", "episode.png"])
def test_a_file_that_cannot_be_written_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=rf"{name} cannot be written: .*Is a directory"):
        write_video(frames_of((8, 8)), tmp_path / name)


def frames_of(size: tuple[int, int]) -> list[Image.Image]:
    """Pictures of one colour each."""
    return [Image.new("RGB", size, colour) for colour in ((200, 30, 30), (30, 160, 60), (40, 60, 200), (240, 200, 40))]


@pytest.mark.parametrize("size", [(64, 48), (33, 21)])
def test_a_video_holds_every_picture_as_browsers_want_it(size: tuple[int, int], tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg", reason="imageio-ffmpeg is not installed")
    frames = frames_of(size)
    write_video(frames, tmp_path / "game.mp4")
    printed, read = decoded(tmp_path / "game.mp4")
    assert re.search(r"Video: h264 .* yuv420p", printed)
    height, width = read[0].shape[:2]
    assert (width, height) == (size[0] + size[0] % 2, size[1] + size[1] % 2)
    assert len(read) == len(frames)
    for frame, picture in zip(frames, read, strict=True):
        assert np.abs(picture[: size[1] - 3, : size[0] - 3] - np.array(frame.getpixel((0, 0)))).mean() < 12


def decoded(path: Path) -> tuple[str, np.ndarray]:
    """What a decoder says of a video, and its pictures, (number, height, width, 3) int64."""
    ffmpeg = pytest.importorskip("imageio_ffmpeg", reason="imageio-ffmpeg is not installed").get_ffmpeg_exe()
    command = [ffmpeg, "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-fps_mode", "passthrough", "-"]
    done = subprocess.run(command, capture_output=True, check=True)
    printed = done.stderr.decode()
    width, height = map(int, re.search(r"Video: h264 .*?, (\d+)x(\d+)", printed).groups())
    return printed, np.frombuffer(done.stdout, np.uint8).reshape(-1, height, width, 3).astype(np.int64)


def test_what_cannot_be_filmed_is_said_before_a_game_is_played(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"is no \.gif, \.mp4 or \.png file"):
        check_video_path(Path("game.avi"))
    with pytest.raises(ValueError, match="there is no folder nowhere"):
        check_video_path(Path("nowhere/game.gif"))
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    check_video_path(Path("game.gif"))
    with pytest.raises(ValueError, match=r"videos require imageio-ffmpeg: .*python -m pip install -e '\.\[video\]'"):
        check_video_path(Path("game.mp4"))
