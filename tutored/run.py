"""Train a student from a program of one's own."""

from dataclasses import replace

import train as program
from training.config import Config
from training.resume import new_run_dir
from training.student import Student, load


def train(config: Config) -> Student:
    """Train a student as train.py does, leave everything in its run directory, and return the student.

    Raises:
        ValueError: a setting cannot be fulfilled.
        TutorError: the tutor is not available, or no longer; what was learned is saved.
        SystemExit: a signal stopped the run; what was learned is saved.
    """
    run_dir = config.run_dir or config.resume or new_run_dir(config)
    program.train(replace(config, run_dir=run_dir))
    return load(run_dir, config.device)
