"""A run on Weights & Biases or on Trackio: its scalars, its pictures and, at the end, a table and a video.

The two libraries have the same calls but for how a run begins and what a step is. Neither is imported unless it is
named. A run that resumes is the same run there: its id lies in the run directory.
"""

import importlib
import logging
import os
import re
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from training.hints import install_command
from tutors.base import Warner

TITLES = {"wandb": "Weights & Biases", "trackio": "Trackio"}


class Tracker:
    """Logs a run elsewhere. What a service does not take is left out with a warning.

    Args:
        name: wandb or trackio.
        run_dir: of the run.
        settings: to show beside it.

    Raises:
        ValueError: the library is not installed, or the service does not let a run begin.
    """

    def __init__(self, name: str, run_dir: Path, settings: dict[str, Any]) -> None:
        self.name = name
        self.title = TITLES[name]
        self.warner = Warner(logging.getLogger(__name__))
        try:
            self.library: Any = importlib.import_module(name)
        except ImportError as error:
            raise ValueError(f"--track {name} requires {name}: {install_command('-e', '.[track]')}") from error
        project = os.environ.get(f"{name.upper()}_PROJECT", "tutored")
        run_id = tracked_id(run_dir / f"{name}.id", self.title)
        begin = {"wandb": self._begin_wandb, "trackio": self._begin_trackio}[name]
        try:
            with redirect_stdout(sys.stderr):
                self.run = begin(project, run_id, run_dir, settings)
        except Exception as error:  # whatever a service that does not know us makes its client raise
            raise ValueError(f"--track {name}: {self.title} says: {error}") from error

    def _begin_wandb(self, project: str, run_id: str, run_dir: Path, settings: dict[str, Any]) -> Any:
        run = self.library.init(
            project=project,
            id=run_id,
            name=run_dir.name,
            dir=run_dir,
            config=settings,
            resume="allow",
            settings=self.library.Settings(console="off"),  # else it redirects the terminal
        )
        run.define_metric("*", step_metric="global_step")
        return run

    def _begin_trackio(self, project: str, run_id: str, run_dir: Path, settings: dict[str, Any]) -> Any:
        """Begin a run whose name has the id in it, since Trackio finds a run to resume by its name."""
        return self.library.init(
            project=project, name=f"{run_dir.name}-{run_id}", config=settings, resume="allow", embed=False
        )

    def log(self, global_step: int, values: Mapping[str, Any]) -> None:
        """Log values by tag."""
        try:
            if self.name == "wandb":
                self.run.log({"global_step": global_step, **values})
            else:
                self.run.log(dict(values), step=global_step)
        except Exception as error:  # whatever a service that is gone makes its client raise
            self.warner(self.name, f"{self.title} cannot be logged to, training goes on: {error}")

    def log_image(self, global_step: int, tag: str, image: np.ndarray) -> None:
        """Log an image, (height, width, 3) uint8."""
        self.log(global_step, {tag: self.library.Image(image)})

    def log_end(self, summary: Mapping[str, Any], video: Path | None) -> None:
        """Log what a run came to as a table, and a video of an episode if there is one."""
        rows = [[name, str(value)] for name, value in flat(summary).items()]
        values = {"summary": self.library.Table(columns=["quantity", "value"], data=rows)}
        if video is not None:
            values["episode"] = self.library.Video(str(video), format=video.suffix[1:])
        self.log(summary["global_step"], values)

    def close(self) -> None:
        """Wait until all is written, or sent."""
        try:
            with redirect_stdout(sys.stderr):
                self.run.finish()
        except Exception as error:  # as above
            self.warner(self.name, f"{self.title} has not taken the end of the run: {error}")


def flat(summary: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested mappings by dotted names, without those that are None."""
    found: dict[str, Any] = {}
    for name, value in summary.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        elif value is not None:
            found[prefix + name] = value
    return found


def tracked_id(path: Path, title: str) -> str:
    """Return the id in a file, of the run elsewhere; a new one where there is none, or it is damaged."""
    found = path.read_bytes() if path.exists() else b""
    if re.fullmatch(rb"[0-9a-f]{8}", found):
        return found.decode()
    if found:
        logging.getLogger(__name__).warning("%s is damaged: a new run is begun on %s", path, title)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = uuid4().hex[:8]
    path.write_text(new)
    return new
