"""What a run logs: scalars, action counts and images, to TensorBoard, metrics.csv and a tracker."""

import csv
import io
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard import summary

from agents import AGENTS
from training.checkpoint import atomic_write
from training.event_file import AppendedFile, EventFile
from training.metrics_file import HEADER, read_rows
from training.tracking import Tracker

# TensorBoard's page Custom Scalars: one quantity a chart, since a tag has another marker in every run
LAYOUT = {
    "Student": {
        "Student alone: mean return": ["Multiline", ["eval/mean_return"]],
        "In training, with advice: mean return": ["Multiline", ["charts/episodic_return"]],
        "Speed: env steps per second": ["Multiline", ["charts/SPS"]],
    },
    "Tutor": {
        "Advice wanted: share of positions": ["Multiline", ["tutor/wanted"]],
        "Answered by the table: share of wanted": ["Multiline", ["tutor/hit_rate"]],
        "Questions to the tutor: number": ["Multiline", ["tutor/asked"]],
        "Trust in the tutor: 0 to 1": ["Multiline", ["tutor/trust"]],
        "Advice as the student would: share": ["Multiline", ["tutor/agreement"]],
        "Tutor's legal answers: probability": ["Multiline", ["tutor/label_mass"]],
    },
    "Time": {
        "Time for the tutor: share": ["Multiline", ["time/tutor"]],
        "Time for learning: share": ["Multiline", ["time/learn"]],
        "Time for envs: share": ["Multiline", ["time/env"]],
        "Time for evaluations: share": ["Multiline", ["time/eval"]],
    },
}
HPARAM_COLUMNS = (
    "algo",
    "env",
    "tutoring.tutor",
    "guiding.guidance",
)  # shown first on the page HParams, which has five
FINAL_RETURN = "(mean return)"  # a column of that page; its name sorts before all settings, metrics come behind them


class Logger:
    """Writes scalars to TensorBoard, metrics.csv and a tracker; images to the first and the last, counts to the first.

    What cannot be written, on a full disk or to a service that is gone, is left out with a warning.

    Args:
        run_dir: of the run.
        resumed: env step from which a run resumes; what it had logged after that is removed.
        seconds: that the run had taken until then.
        tracker: the run elsewhere; None: it is logged here alone.

    Raises:
        ValueError: the run_dir cannot be written.
    """

    def __init__(
        self, run_dir: Path, resumed: int | None = None, seconds: float = 0.0, tracker: Tracker | None = None
    ) -> None:
        self.tracker = tracker
        path = run_dir / "metrics.csv"
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            atomic_write(path, csv_lines([HEADER] if resumed is None else rows_until(path, resumed)))
            self.metrics = AppendedFile(path)
            self.events = EventFile(run_dir, None if resumed is None else resumed + 1)
        except OSError as error:
            raise ValueError(f"the run directory {run_dir} cannot be written: {error.strerror}") from error
        self.events.add(summary.custom_scalars(LAYOUT))
        self.began = time.monotonic() - seconds

    def add_scalars(self, global_step: int, values: dict[str, float]) -> None:
        """Log values by tag, such as charts/SPS."""
        seconds = round(time.monotonic() - self.began, 2)
        self.metrics.write(csv_lines([global_step, seconds, tag, value] for tag, value in values.items()))
        for tag, value in values.items():
            self.events.add(summary.scalar(tag, value), global_step)
        if self.tracker is not None:
            self.tracker.log(global_step, values)

    def add_action_counts(self, global_step: int, tag: str, counts: list[int]) -> None:
        """Log how often each action was taken, as a histogram with a bin per action."""
        edges = [action + 0.5 for action in range(len(counts))]
        number, total, squares = (sum(n * action**power for action, n in enumerate(counts)) for power in (0, 1, 2))
        found = summary.histogram_raw(tag, -0.5, edges[-1], number, total, squares, edges, counts)
        self.events.add(found, global_step)

    def add_image(self, global_step: int, tag: str, image: np.ndarray) -> None:
        """Log an image, (height, width, 3) uint8."""
        self.events.add(summary.image(tag, image, dataformats="HWC"), global_step)
        if self.tracker is not None:
            self.tracker.log_image(global_step, tag, image)

    def add_hparams(self, settings: dict[str, Any], mean_return: float) -> None:
        """Log the final mean return with the settings, for TensorBoard's page HParams, which sorts runs.

        The page has only the columns that its first run names: so the settings of all students are named.
        """
        settings = {FINAL_RETURN: round(mean_return, 3)} | settings
        columns = {f"agent.{name}": value for _, agent in AGENTS.values() for name, value in asdict(agent()).items()}
        experiment, *_ = summary.hparams(tensorboard_values(columns | settings), {"eval/mean_return": mean_return})
        content = experiment.value[0].metadata.plugin_data
        plugin_data = HParamsPluginData.FromString(content.content)
        for info in plugin_data.experiment.hparam_infos:
            info.differs = info.name in (FINAL_RETURN, *HPARAM_COLUMNS)
        content.content = plugin_data.SerializeToString()
        _, *session = summary.hparams(tensorboard_values(settings), {"eval/mean_return": mean_return})
        for found in (experiment, *session):
            self.events.add(found)

    def close(self) -> None:
        """Close all files."""
        self.events.close()
        self.metrics.close()


def csv_lines(rows: Iterable[Sequence[object]]) -> bytes:
    """Return rows as lines of a CSV file."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def tensorboard_values(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings as TensorBoard accepts them: numbers, booleans and strings."""
    return {
        name: value if isinstance(value, bool | int | float | str) else str(value) for name, value in settings.items()
    }


def rows_until(path: Path, resumed: int) -> list[list[str]]:
    """Return the header of metrics.csv, and its rows up to an env step."""
    if not path.exists():
        return [HEADER]
    return [HEADER, *(row for row in read_rows(path) if int(row[0]) <= resumed)]
