"""`python -m tutors.tiny`: make the tiny tutor anew."""

if __name__ == "__main__":
    from training.interrupts import exit_on_interrupt  # before PyTorch is imported

    exit_on_interrupt()

import json

from training.cli import run_program
from tutors.tiny.recipe import Recipe, make_tiny


def make(recipe: Recipe) -> None:
    """Make it, and print what was measured."""
    print(json.dumps(make_tiny(recipe), indent=2))


if __name__ == "__main__":
    run_program(make, Recipe, description="Make the tiny tutor anew.")
