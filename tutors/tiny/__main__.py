"""`python -m tutors.tiny`: make the tiny tutor anew."""

import json

import tyro

from tutors.tiny.recipe import Recipe, make_tiny

print(json.dumps(make_tiny(tyro.cli(Recipe, description="Make the tiny tutor anew.")), indent=2))
