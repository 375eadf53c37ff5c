"""A student's game to look at: its positions on one sheet, as an animation, or as a video."""

import math
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from agents import Agent
from envs.base import Env, Spec, State
from envs.rendering import DRAWINGS
from training.config import Config, evaluation_env

LONGEST = 400  # positions of a game
PAUSE = 700  # milliseconds that each is shown
COLUMNS, ROWS, GAP, STRIP = 4, 3, 12, 22  # of a sheet; pixels between its columns, and above each picture
PAPER, INK = (255, 255, 255), (25, 25, 25)
SHARE = 100  # pictures during training take one part in so many of the time, at most


def positions(agent: Agent, env: Env) -> list[State]:
    """Return the positions of a game that the student plays alone, the last one too; `env` has one copy."""
    step, states = env.reset(), []
    while len(states) < LONGEST:
        states.append(step.state)
        step = env.step(agent.greedy(step.obs, step.action_mask))
        if step.terminated | step.truncated:
            return [*states, step.final_state]
    return states


def contact_sheet(spec: Spec, states: Sequence[State]) -> np.ndarray:
    """Return some positions of a game side by side, half as large, the first and the last among them; HWC uint8."""
    shown = np.linspace(0, len(states) - 1, min(len(states), COLUMNS * ROWS)).round().astype(int).tolist()
    boards = [Image.fromarray(DRAWINGS[spec.name].image(spec, states[: at + 1])).reduce(2) for at in shown]
    width, height = boards[0].width + GAP, boards[0].height + STRIP
    columns, rows = min(len(boards), COLUMNS), math.ceil(len(boards) / COLUMNS)
    sheet = Image.new("RGB", (columns * width, rows * height), PAPER)
    pen = ImageDraw.Draw(sheet)
    for place, (at, board) in enumerate(zip(shown, boards, strict=True)):
        left, top = place % COLUMNS * width, place // COLUMNS * height
        sheet.paste(board, (left + GAP // 2, top + STRIP))
        pen.text((left + width // 2, top + STRIP // 2), str(at), fill=INK, font_size=STRIP // 2, anchor="mm")
    return np.asarray(sheet)


class Camera:
    """Takes a picture of the same game now and then, and never for more than a hundredth of the time."""

    def __init__(self, config: Config, spec: Spec) -> None:
        self.config, self.spec, self.took, self.taken_at = config, spec, 0.0, -math.inf

    def shoot(self, agent: Agent) -> np.ndarray | None:
        """Return a game of the student alone as a sheet; None if it is not time, or nobody has said how it is drawn."""
        began = time.monotonic()
        if self.spec.name not in DRAWINGS or began - self.taken_at < SHARE * self.took:
            return None
        sheet = contact_sheet(self.spec, positions(agent, evaluation_env(self.config, 1, self.config.device)))
        self.taken_at = time.monotonic()
        self.took = self.taken_at - began
        return sheet


def write_film(frames: Sequence[Image.Image], path: Path) -> None:
    """Write pictures of one size as an animation (.gif) or a video (.mp4), or the last one alone (.png)."""
    if path.suffix == ".gif":
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=PAUSE, loop=0)
    elif path.suffix == ".mp4":
        write_video(frames, path)
    else:
        frames[-1].save(path)


def check_film(path: Path) -> None:
    """Raise ValueError if a film cannot be written there: found out before a game is played."""
    if path.suffix not in (".gif", ".mp4", ".png"):
        raise ValueError(f"{path}: a game is recorded as .gif or .mp4, its last position as .png")
    if not path.parent.is_dir():
        raise ValueError(f"{path} cannot be written: there is no folder {path.parent}")
    if path.suffix == ".mp4":
        try:
            import imageio_ffmpeg  # noqa: F401
        except ImportError as error:
            raise ValueError(f"{path}: videos want imageio-ffmpeg: pip install -e '.[video]'") from error


def write_video(frames: Sequence[Image.Image], path: Path) -> None:
    """Write H.264 as browsers play it: 4:2:0, which wants even sides."""
    import imageio_ffmpeg

    width, height = frames[0].size
    raw = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(1000 / PAUSE), "-i", "-")
    even = ("-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2:color=white", "-pix_fmt", "yuv420p", "-movflags", "+faststart")
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", *raw, *even, str(path)]
    subprocess.run(command, input=b"".join(frame.tobytes() for frame in frames), check=True)
