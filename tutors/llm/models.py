"""The language models that can be tutors, from `models.toml`."""

import tomllib
from dataclasses import dataclass, replace
from pathlib import Path

from envs.registry import unknown_name_message

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Model:
    """One model: what it is called, how it is asked and how it is served."""

    name: str  # of the tutor, and under which a server may serve it
    model: str  # its id on the Hugging Face hub, or a folder
    template: str  # holds {words}
    serve: tuple[str, ...] = ()  # flags of the server
    closing: str = ""  # ends the thinking that the template begins
    before_label: str = ""  # between prompt and label, where the tokens need it

    @property
    def brief(self) -> str:
        """The template after which the next token is the answer."""
        return self.template + self.closing


def known_models() -> dict[str, Model]:
    """Return all models by name."""
    entries = tomllib.loads((HERE / "models.toml").read_text())
    return {
        name: Model(name, **entry | {"model": local(entry["model"]), "serve": tuple(entry["serve"])})
        for name, entry in entries.items()
    }


def find_model(name: str, served: str | None = None) -> Model:
    """Return the model called `name`; `served` takes the place of its id.

    Raises:
        ValueError: no model has that name.
    """
    models = known_models()
    if name not in models:
        raise ValueError(unknown_name_message("language model", name, [*models, "scripted", "recorded:STORE"]))
    model = models[name]
    return model if served is None else replace(model, name=served, model=served)


def fill(template: str, words: str) -> str:
    """Return a question as a model is asked it."""
    return template.replace("{words}", words)


def local(model: str) -> str:
    """Return the full path of a model that lies in this repository, else the id as it is."""
    folder = HERE.parents[1] / model
    return str(folder) if folder.is_dir() else model
