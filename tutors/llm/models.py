"""The language models that can be tutors, from `models.toml`."""

import tomllib
from dataclasses import dataclass, replace
from pathlib import Path

from envs.registry import unknown_name_message

MODELS_FILE = Path(__file__).parent / "models.toml"
REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Model:
    """One language model: its name, its prompt template and how it is served."""

    name: str  # of the tutor, and under which a server may serve it
    model: str  # its id on the Hugging Face hub, or a folder
    template: str  # the chat template with {words} in place of the user's message
    serve: tuple[str, ...] = ()  # flags of `vllm serve`
    closing: str = ""  # ends the thinking that the template begins
    before_label: str = ""  # between prompt and label, where the tokenizer requires it

    @property
    def answer_template(self) -> str:
        """The template after which the next token is the answer: thinking is closed."""
        return self.template + self.closing


def known_models() -> dict[str, Model]:
    """Return all models by name."""
    entries = tomllib.loads(MODELS_FILE.read_text())
    return {
        name: Model(name, **entry | {"model": resolve_model(entry["model"]), "serve": tuple(entry["serve"])})
        for name, entry in entries.items()
    }


def find_model(name: str, served_name: str | None = None) -> Model:
    """Return the model called `name`; `served_name` replaces its name and id, not its template.

    Raises:
        ValueError: no model has that name.
    """
    models = known_models()
    if name not in models:
        raise ValueError(unknown_name_message("language model", name, models))
    model = models[name]
    return model if served_name is None else replace(model, name=served_name, model=served_name)


def fill_template(template: str, prompt: str) -> str:
    """Return `prompt` in a model's template. The prompt may hold braces of its own."""
    return template.replace("{words}", prompt)


def resolve_model(model: str) -> str:
    """Return the full path of a model in a folder of this repository, or the id of any other."""
    folder = REPOSITORY / model
    return str(folder) if folder.is_dir() else model
