"""What a run writes down while it goes on: numbers for TensorBoard and as CSV, and where its time goes."""

import csv
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from agents import AGENTS

HEADER = ["global_step", "wall_seconds", "tag", "value"]
LAYOUT = {  # the page Custom Scalars of TensorBoard: what one wants to see first
    "student": {
        "alone": ["Multiline", ["eval/mean_return"]],
        "in training": ["Multiline", ["charts/episodic_return"]],
        "steps a second": ["Multiline", ["charts/SPS"]],
    },
    "tutor": {
        "wanted, and answered by the table": ["Multiline", ["tutor/wanted", "tutor/hit_rate"]],
        "questions": ["Multiline", ["tutor/asked"]],
        "trust": ["Multiline", ["tutor/label_mass", "tutor/agreement", "tutor/expert_agreement"]],
        "no advice": ["Multiline", ["tutor/no_advice/.*"]],
    },
    "time": {"shares": ["Multiline", ["time/.*"]]},
}

FIRST = ("algo", "env", "tutoring.tutor", "guiding.guidance", "seed")  # settings that HParams shows unasked


class Log:
    """Scalars, as TensorBoard's events and as lines of metrics.csv; histograms and pictures, as events alone.

    Args:
        folder: of the run.
        resumed: the env step from which a run goes on; what it had logged after that is taken back.
        seconds: what it had lasted until then.
        track: settings to show beside the scalars on Weights & Biases; None: they do not go there.

    Raises:
        ValueError: the folder cannot be written, or wandb is not installed.
    """

    def __init__(
        self, folder: Path, resumed: int | None = None, seconds: float = 0.0, track: dict[str, Any] | None = None
    ) -> None:
        self.tracked = None if track is None else tracked(folder, track)
        path = folder / "metrics.csv"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_suffix(".tmp")
            with unfinished.open("w", newline="") as file:
                csv.writer(file).writerows([HEADER] if resumed is None else kept_lines(path, resumed))
            unfinished.replace(path)
            self.file = path.open("a", newline="", buffering=1)
        except OSError as error:
            raise ValueError(f"the run's folder {folder} cannot be written: {error.strerror}") from error
        self.writer = SummaryWriter(folder, purge_step=None if resumed is None else resumed + 1)
        self.writer.add_custom_scalars(LAYOUT)
        self.lines = csv.writer(self.file)
        self.began = time.monotonic() - seconds

    def add(self, global_step: int, values: dict[str, float]) -> None:
        """Write values by tag, such as charts/SPS."""
        seconds = round(time.monotonic() - self.began, 2)
        for tag, value in values.items():
            self.writer.add_scalar(tag, value, global_step)
            self.lines.writerow([global_step, seconds, tag, value])
        if self.tracked is not None:
            self.tracked.log({"global_step": global_step, **values})

    def count(self, global_step: int, tag: str, counts: list[int]) -> None:
        """Write how often each action was taken, as a histogram with a bar for each."""
        edges = [action + 0.5 for action in range(len(counts))]
        moments = (sum(count * action**power for action, count in enumerate(counts)) for power in (0, 1, 2))
        self.writer.add_histogram_raw(tag, -0.5, edges[-1], *moments, edges, counts, global_step)

    def show(self, global_step: int, tag: str, picture: np.ndarray) -> None:
        """Write a picture, (height, width, 3) uint8."""
        self.writer.add_image(tag, picture, global_step, dataformats="HWC")

    def compare(self, settings: dict[str, Any], mean_return: float) -> None:
        """Write how a run ended beside its settings, for TensorBoard's page HParams, which sorts runs.

        The page has the columns that its first run names, whatever the others are: so all students' settings are named.
        """
        every = {f"agent.{name}": value for _, agent in AGENTS.values() for name, value in asdict(agent()).items()}
        experiment, *_ = hparams(plain(every | settings), {"eval/mean_return": mean_return})
        content = experiment.value[0].metadata.plugin_data
        told = HParamsPluginData.FromString(content.content)
        for info in told.experiment.hparam_infos:
            info.differs = info.name in FIRST
        content.content = told.SerializeToString()
        for summary in (experiment, *hparams(plain(settings), {"eval/mean_return": mean_return})[1:]):
            self.writer.file_writer.add_summary(summary)

    def close(self) -> None:
        """Write what is left."""
        self.writer.close()
        self.file.close()
        if self.tracked is not None:
            self.tracked.finish()


def tracked(folder: Path, settings: dict[str, Any]) -> Any:
    """Return the run on Weights & Biases: the one whose id is in the folder, or a new one.

    Raises:
        ValueError: wandb is not installed, or does not know who we are.
    """
    try:
        import wandb  # most people do without it
    except ImportError as error:
        raise ValueError("--track wants wandb: pip install -e '.[track]'") from error
    path = folder / "wandb.id"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(uuid4().hex[:8])
    try:
        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "tutored"),
            id=path.read_text(),
            name=folder.name,
            dir=folder,
            config=settings,
            resume="allow",
            settings=wandb.Settings(console="off"),  # else it takes over the terminal
        )
    except wandb.Error as error:
        raise ValueError(f"--track: Weights & Biases says: {error}") from error
    run.define_metric("*", step_metric="global_step")
    return run


def plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings as TensorBoard takes them."""
    return {
        name: value if isinstance(value, bool | int | float | str) else str(value) for name, value in settings.items()
    }


def kept_lines(path: Path, resumed: int) -> list[list[str]]:
    """Return the lines of metrics.csv up to an env step; a last one that was cut short is none."""
    if not path.exists():
        return [HEADER]
    with path.open(newline="") as file:
        lines = [line for line in csv.reader(file) if len(line) == len(HEADER)]
    return [HEADER, *(line for line in lines[1:] if int(line[0]) <= resumed)]
