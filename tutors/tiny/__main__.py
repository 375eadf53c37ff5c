"""`python -m tutors.tiny`: make the tiny tutor anew."""

if __name__ == "__main__":
    from training.interrupts import exit_on_interrupt  # before PyTorch is imported

    exit_on_interrupt()

import json

import tyro

from training.cli import exit_codes
from training.hints import called
from tutors.tiny.recipe import Recipe, make_tiny

if __name__ == "__main__":
    with exit_codes():
        print(json.dumps(make_tiny(tyro.cli(Recipe, prog=called(), description="Make the tiny tutor anew.")), indent=2))
