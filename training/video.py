"""An episode of a student, recorded: its positions as one image, as an animation, or as a video."""

import logging
import math
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw

from agents import Agent
from envs.base import Env, Spec, State
from envs.opponents import opponent_name
from envs.rendering import DRAWINGS
from training.config import Config, evaluation_env
from training.frames import INK, PAPER, Frame, draw_frame
from training.hints import install_command
from tutors.advisor import Advisor

MAX_POSITIONS = 400  # of a recorded episode
FRAME_MS, LAST_MS = 700, 3500  # milliseconds per position, and of the last one
COLUMNS, ROWS, GAP, STRIP = 4, 3, 12, 34  # of a contact sheet; pixels between its columns, and above each board
CAPTION = 22  # pixels: of the letters above a board; TensorBoard shows a sheet at half its size
MAX_TIME_SHARE = 0.01  # of a run's time that its contact sheets take


class Episode(NamedTuple):
    """An episode that one env copy played."""

    states: list[State]  # with the last one, if it ended
    actions: list[int]
    value: float  # its return
    is_cut: bool  # by the time limit, or after MAX_POSITIONS

    def result(self, outcome: Callable[[float], str]) -> str:
        """Return how it ended."""
        return outcome(self.value) + (f", cut after {len(self.actions)} steps" if self.is_cut else "")


def play_episode(agent: Agent, env: Env) -> Episode:
    """Return an episode of the student alone; `env` has one copy."""
    step, value = env.reset(), 0.0
    states: list[State] = []
    actions: list[int] = []
    while len(states) < MAX_POSITIONS:
        states.append(step.state)
        action = agent.greedy(step.obs, step.action_mask)
        if len(states) == MAX_POSITIONS:
            break
        step = env.step(action)
        actions.append(int(action[0]))
        value += float(step.reward[0])
        if step.terminated | step.truncated:
            return Episode([*states, step.final_state], actions, value, bool(step.truncated[0]))
    return Episode(states, actions, value, is_cut=True)


def episode_states(agent: Agent, env: Env) -> list[State]:
    """Return the states of an episode of the student alone, with the last one; `env` has one copy."""
    return play_episode(agent, env).states


def contact_sheet(spec: Spec, states: Sequence[State]) -> np.ndarray:
    """Return up to 12 states side by side at half size, the first and the last among them; HWC uint8."""
    shown = np.linspace(0, len(states) - 1, min(len(states), COLUMNS * ROWS)).round().astype(int).tolist()
    boards = [Image.fromarray(DRAWINGS[spec.name].image(spec, states[: index + 1])).reduce(2) for index in shown]
    width, height = boards[0].width + GAP, boards[0].height + STRIP
    columns, rows = min(len(boards), COLUMNS), math.ceil(len(boards) / COLUMNS)
    sheet = Image.new("RGB", (columns * width, rows * height), PAPER)
    pen = ImageDraw.Draw(sheet)
    size = min(CAPTION, width // 5)
    for cell, (index, board) in enumerate(zip(shown, boards, strict=True)):
        left, top = cell % COLUMNS * width, cell // COLUMNS * height
        sheet.paste(board, (left + GAP // 2, top + STRIP))
        pen.text((left + width // 2, top + STRIP // 2), f"step {index}", fill=INK, font_size=size, anchor="mm")
    return np.asarray(sheet)


class EpisodeRecorder:
    """Makes contact sheets of the same episode while a student learns, in at most 1 % of the time.

    Args:
        config: of the run.
        spec: of the env.
    """

    def __init__(self, config: Config, spec: Spec) -> None:
        self.config = config
        self.spec = spec
        self.duration = 0.0  # seconds that the last sheet took
        self.recorded_at = -math.inf

    def contact_sheet(self, agent: Agent) -> np.ndarray | None:
        """Return an episode of the student alone; None if no sheet is due, or the env cannot be drawn."""
        began = time.monotonic()
        if self.spec.name not in DRAWINGS or began - self.recorded_at < self.duration / MAX_TIME_SHARE:
            return None
        sheet = contact_sheet(self.spec, episode_states(agent, evaluation_env(self.config, 1, self.config.device)))
        self.recorded_at = time.monotonic()
        self.duration = self.recorded_at - began
        return sheet

    def film(self, agent: Agent, path: Path) -> Path | None:
        """Write an episode of the student alone to a path, and return it; None if that, or drawing, is not possible."""
        if self.spec.name not in DRAWINGS:
            return None
        images = episode_images(agent, evaluation_env(self.config, 1, self.config.device), None)
        try:
            write_video(images, path)
        except ValueError as error:  # a full disk
            logging.getLogger(__name__).warning("%s", error)
            return None
        return path


def episode_images(agent: Agent, env: Env, advisor: Advisor | None, scale: int = 1) -> list[Image.Image]:
    """Return an episode of the student alone, a frame for each position, with the tutor's advice if there is one.

    Raises:
        ValueError: the env cannot be drawn.
    """
    if env.spec.name not in DRAWINGS:
        raise ValueError(f"{env.spec.name} cannot be drawn: envs/rendering.py has no drawing of it")
    episode, row = play_episode(agent, env), torch.ones(1, dtype=torch.bool)
    states, result = episode.states, episode.result(DRAWINGS[env.spec.name].outcome)
    opponent = opponent_name(getattr(env.game, "opponent", None))
    images = []
    for index, state in enumerate(states):
        action = episode.actions[index] if index < len(episode.actions) else None
        probs = None
        if advisor is not None and action is not None:
            advice = advisor.advise(state, row)
            probs = advice.probs[0].tolist() if advice.valid[0] else None
        frame = Frame(index, len(states), action, probs, result if action is None else "", has_bars=advisor is not None)
        images.append(draw_frame(env.spec, states[: index + 1], frame, opponent, scale))
    return images


def check_video_path(path: Path) -> None:
    """Raise ValueError if a video cannot be written to a path: called before an episode is played."""
    if path.suffix not in (".gif", ".mp4", ".png"):
        raise ValueError(f"{path} is no .gif, .mp4 or .png file: an episode is recorded as one of these")
    if not path.parent.is_dir():
        raise ValueError(f"{path} cannot be written: there is no folder {path.parent}")
    if path.suffix == ".mp4":
        try:
            import imageio_ffmpeg  # noqa: F401
        except ImportError as error:
            raise ValueError(f"{path}: videos require imageio-ffmpeg: {install_command('-e', '.[video]')}") from error


def write_video(images: Sequence[Image.Image], path: Path) -> None:
    """Write images of one size as an animation (.gif) or a video (.mp4), or only the last one (.png).

    The last one, with the result, is shown for LAST_MS.

    Raises:
        ValueError: the file cannot be written.
    """
    durations = [FRAME_MS] * (len(images) - 1) + [LAST_MS]
    try:
        if path.suffix == ".gif":
            images[0].save(path, save_all=True, append_images=images[1:], duration=durations, loop=0)
        elif path.suffix == ".mp4":
            write_mp4([*images, *[images[-1]] * (round(LAST_MS / FRAME_MS) - 1)], path)
        else:
            images[-1].save(path)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ValueError(f"{path} cannot be written: {error}") from error


def write_mp4(images: Sequence[Image.Image], path: Path) -> None:
    """Write H.264 as browsers play it: 4:2:0, which requires an even width and height."""
    import imageio_ffmpeg

    width, height = images[0].size
    raw = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(1000 / FRAME_MS), "-i", "-")
    even = ("-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2:color=white", "-pix_fmt", "yuv420p", "-movflags", "+faststart")
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", *raw, *even, str(path)]
    subprocess.run(command, input=b"".join(image.tobytes() for image in images), check=True)
