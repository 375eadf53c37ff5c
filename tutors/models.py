"""The language models that can be tutors, from `models.toml`."""

import tomllib
from dataclasses import dataclass
from pathlib import Path

from envs import closest

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Model:
    """One model: what it is called, how it is asked and how it is served."""

    name: str  # of the tutor, and under which a server may serve it
    model: str  # its id on the Hugging Face hub, or a folder
    template: str  # holds {words}
    serve: tuple[str, ...]  # flags of the server

    def prompt(self, words: str) -> str:
        """Return a question as the model is asked it."""
        return self.template.replace("{words}", words)


def known_models() -> dict[str, Model]:
    """Return all models by name."""
    entries = tomllib.loads((HERE / "models.toml").read_text())
    return {
        name: Model(name, local(entry["model"]), entry["template"], tuple(entry["serve"]))
        for name, entry in entries.items()
    }


def find_model(name: str, served: str | None = None) -> Model:
    """Return the model called `name`; `served` takes the place of its id.

    Raises:
        ValueError: no model has that name.
    """
    models = known_models()
    if name not in models:
        raise ValueError(closest("language model", name, [*models, "scripted"]))
    model = models[name]
    return model if served is None else Model(served, served, model.template, model.serve)


def local(model: str) -> str:
    """Return the full path of a model that lies in this repository, else the id as it is."""
    folder = HERE.parent / model
    return str(folder) if folder.is_dir() else model
