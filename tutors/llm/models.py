"""The language models that can be tutors: those of `models.toml`, any other by its hub id, its folder or its server."""

import re
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path

from envs.registry import unknown_name_message
from tutors.llm.thinking import begins_thinking

MODELS_FILE = Path(__file__).parent / "models.toml"
REPOSITORY = Path(__file__).parents[2]
SERVED = "served"  # the tutor that is whatever a server serves
MARK = "QUESTION"  # stands for the user's message where a server renders its chat template


@dataclass(frozen=True)
class Model:
    """One language model: its name, its prompt template and how it is served."""

    name: str  # of the tutor, and under which a server may serve it
    model: str  # its id on the Hugging Face hub, or a folder
    template: str  # the chat template with {words} in place of the user's message; empty: the server is asked for it
    serve: tuple[str, ...] = ()  # flags of `vllm serve`
    closing: str = ""  # ends the thinking that the template begins
    is_named: bool = False  # by the user, so that a server need not list it
    before_label: str = ""  # between prompt and label, where the tokenizer requires it
    unthinking_template: str = ""  # of a model whose thinking is switched off in its template
    package: str = ""  # of the Python index, that holds the weights; empty: vLLM fetches them itself
    gguf_sha256: str = ""  # of its file of weights
    has_special_tokens: bool = False  # whether the template has those at its beginning that a server adds otherwise

    @property
    def answer_template(self) -> str:
        """The template after which the next token is the answer: thinking is closed, or switched off."""
        return self.unthinking_template or self.template + self.closing


def known_models() -> dict[str, Model]:
    """Return all models by name."""
    entries = tomllib.loads(MODELS_FILE.read_text(encoding="utf-8"))
    return {
        name: Model(name, **entry | {"model": resolve_model(entry["model"]), "serve": tuple(entry["serve"])})
        for name, entry in entries.items()
    }


def find_model(name: str, served_name: str | None = None) -> Model:
    """Return the model called `name`; `served_name` replaces its name and id, not its template.

    A model without an entry has the template that its server renders.

    Raises:
        ValueError: no model has that name.
    """
    models = known_models()
    by_id = {model.model: model for model in models.values()}
    if not is_model(name):
        raise ValueError(
            unknown_name_message("language model", name, (*models, SERVED, "ORGANISATION/MODEL", "FOLDER"))
        )
    model = models.get(name) or by_id.get(name) or Model(name, resolve_model(name), "")
    return model if served_name is None else replace(model, name=served_name, model=served_name, is_named=True)


def is_model(name: str) -> bool:
    """Return whether `name` may be a language model: an entry, `served`, a hub id or a folder."""
    is_hub_id = re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None
    is_folder = (Path(name) / "config.json").is_file()  # a folder may have the name of another tutor by chance
    return name in known_models() or name == SERVED or is_hub_id or is_folder


def fill_template(template: str, prompt: str) -> str:
    """Return `prompt` in a model's template. The prompt may hold braces of its own."""
    return template.replace("{words}", prompt)


def with_rendered_template(model: Model, rendered: str, unthinking: str) -> Model | None:
    """Return the model with the template that a server rendered for the message MARK; None where that is not in it.

    Args:
        model: without a template.
        rendered: the server's prompt, with the tokenizer's special tokens.
        unthinking: the same, where the server was asked to switch thinking off.
    """
    if rendered.count(MARK) != 1 or unthinking.count(MARK) != 1:
        return None
    template, unthinking = (text.replace(MARK, "{words}") for text in (rendered, unthinking))
    return replace(
        model,
        template=template,
        closing=closing_of(template),
        unthinking_template="" if unthinking == template else unthinking + closing_of(unthinking),
        has_special_tokens=True,
    )


def closing_of(template: str) -> str:
    """Return what ends the thinking that a template begins, empty where it begins none."""
    opening = re.search(r"<(\w+)>\s*$", template)
    return f"\n</{opening[1]}>\n\n" if opening and begins_thinking(opening[0]) else ""


def resolve_model(model: str) -> str:
    """Return the full path of a model in a folder, of this repository or here; the id of any other."""
    for folder in (REPOSITORY / model, Path(model).resolve()):
        if model and folder.is_dir():
            return str(folder)
    return model
