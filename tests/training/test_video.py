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
from PIL import Image, ImageSequence

import envs
from agents.base import Agent
from envs.connect4 import has_four
from envs.opponents import opponent_name
from envs.rendering import BLUE, DRAWINGS, RED, YELLOW
from training import video
from training.config import Config, default_config, evaluation_env, make_agent, make_env
from training.frames import BAR, BARS, MOVE, Frame, captions, draw_frame, players
from training.video import (
    COLUMNS,
    FRAME_MS,
    GAP,
    LAST_MS,
    MAX_POSITIONS,
    ROWS,
    STRIP,
    Episode,
    EpisodeRecorder,
    check_video_path,
    contact_sheet,
    episode_images,
    episode_states,
    play_episode,
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


def test_frames_of_every_game_have_one_size_whoever_advises() -> None:
    for game in DRAWINGS:
        agent, config = student_of(game, env_kwargs=("size=6", "time_limit=9") if game == "snake" else ())
        images = episode_images(agent, evaluation_env(config, 1, "cpu"), None)
        assert len({image.size for image in images}) == 1
        twice = episode_images(agent, evaluation_env(config, 1, "cpu"), None, scale=2)
        assert twice[0].size == tuple(2 * side for side in images[0].size)
    agent, config = student_of("gym:CartPole-v1")
    with pytest.raises(ValueError, match="cannot be drawn"):
        episode_images(agent, evaluation_env(config, 1, "cpu"), None)


def frame_of(action: int | None, advice: list[float] | None, result: str = "") -> np.ndarray:
    spec, state = envs.make_game("connect4").spec, {"mine": torch.tensor([0]), "theirs": torch.tensor([0])}
    return np.asarray(draw_frame(spec, [state], Frame(0, 9, action, advice, result), "tactical", 1))


def pixels(image: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """Where a colour is, (number, 2) rows and columns."""
    return np.argwhere((image == color).all(2))


def test_advice_is_a_bar_below_each_column_as_long_as_its_probability() -> None:
    image = frame_of(None, [0.0, 1.0, 0.5, 0.0, 0.25, 0.0, 0.0])
    board = pixels(image, BLUE)
    (_, left), (bottom, right) = board.min(0), board.max(0)
    places = pixels(image, BAR)
    assert places[:, 0].min() > bottom
    width = (right + 1 - left) / 7
    heights = []
    for column in range(7):
        middle = int(left + (column + 0.5) * width)
        heights.append(int((places[:, 1] == middle).sum()))
    assert heights == pytest.approx([0, BARS, BARS / 2, 0, BARS / 4, 0, 0], abs=1.5)
    assert not len(pixels(frame_of(None, None), BAR))


def test_film_of_a_student_without_a_tutor_has_no_room_for_bars() -> None:
    spec, state = envs.make_game("connect4").spec, {"mine": torch.tensor([0]), "theirs": torch.tensor([0])}
    drawn = {
        has_bars: np.asarray(draw_frame(spec, [state], Frame(0, 9, 6, None, has_bars=has_bars), "tactical", 1))
        for has_bars in (True, False)
    }
    assert drawn[True].shape[0] - drawn[False].shape[0] >= BARS
    below = pixels(drawn[False], BLUE)[:, 0].max()
    rows = np.unique(np.argwhere((drawn[False] != 255).any(2))[:, 0])
    gaps = np.diff(rows[rows >= below])
    assert gaps.max() < BARS / 4, "nothing between a column's number, the mark and the caption"
    assert drawn[False].shape[0] - rows.max() < BARS / 2


def test_episode_without_an_advisor_is_drawn_without_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: set[bool] = set()
    blank = Image.new("RGB", (9, 9))
    monkeypatch.setattr(video, "draw_frame", lambda spec, states, frame, *_: drawn.add(frame.has_bars) or blank)
    agent, config = student_of("connect4")
    episode_images(agent, evaluation_env(config, 1, "cpu"), None)
    assert drawn == {False}


def test_the_move_made_is_marked_at_its_column_beside_the_move_advised() -> None:
    left = [pixels(frame_of(action, None), MOVE)[:, 1].max() for action in (0, 6)]
    assert left[0] < left[1]
    names = DRAWINGS["connect4"].actions
    assert [line for line, _ in captions(Frame(3, 9, 2, [0, 0, 0.7, 0.3, 0, 0, 0]), names)] == [
        "▲ student: 3", "■ tutor: 3 (70 %), the same"]  # fmt: skip
    assert captions(Frame(3, 9, 0, [0, 1.0]), ("stick", "hit"))[1][0] == "■ tutor: hit (100 %)"
    assert captions(Frame(8, 9, None, None, "a draw"), names)[0][0] == "result: a draw"
    assert [line for line, _ in captions(Frame(3, 9, 0, None), ("stick", "hit"))] == ["▲ student: stick"]


def test_an_episode_has_an_action_for_each_position_but_the_last_and_its_return() -> None:
    agent, config = student_of("connect4")
    episode = play_episode(agent, evaluation_env(config, 1, "cpu"))
    assert len(episode.actions) == len(episode.states) - 1
    last = {name: DRAWINGS["connect4"].outcome(value) for name, value in (("mine", 1.0), ("theirs", -1.0))}
    won = [name for name in last if has_four(episode.states[-1][name])]
    assert episode.result(DRAWINGS["connect4"].outcome) == (last[won[0]] if won else "a draw")
    assert Episode([], [0] * 7, 3.0, True).result(DRAWINGS["snake"].outcome) == "3 fruits eaten, cut after 7 steps"


def test_who_is_who_is_said() -> None:
    spec = envs.make_game("connect4").spec
    assert players(spec, "negamax:2") == [(RED, "student"), (YELLOW, "opponent: negamax:2")]
    for name in ("random", "tactical", "negamax:3", "self"):
        assert opponent_name(envs.make_game("connect4", opponent=name).opponent) == name
    assert opponent_name(None) == ""


def test_the_last_frame_of_an_animation_is_held(tmp_path: Path) -> None:
    write_video(frames_of((8, 8)), tmp_path / "game.gif")
    with Image.open(tmp_path / "game.gif") as film:
        durations = [frame.info["duration"] for frame in ImageSequence.Iterator(film)]
    assert durations == [FRAME_MS] * 3 + [LAST_MS]
    assert LAST_MS >= 3000


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
    held = [frames[-1]] * (round(LAST_MS / FRAME_MS) - 1)
    assert len(read) == len(frames) + len(held)
    for frame, picture in zip([*frames, *held], read, strict=True):
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
