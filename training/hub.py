"""Runs on the Hugging Face Hub, `hub:NAME`: everything that a checkpoint holds, as safetensors and JSON.

What comes from there is not trusted. No pickle is read: the checkpoint of the folder that a download becomes is written
here, from tensors and plain values. Its config is checked field by field as any other, may not name code to import, and
loses what leads elsewhere: servers, key files, stores.
"""

import json
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.checkpoint import load_checkpoint, save_checkpoint
from training.config import Config, config_from_json, load_config
from tutors.hub import PREFIX, download, library

WEIGHTS, STATE, CONFIG = "model.safetensors", "state.json", "config.json"
BESIDE = ("summary.json", "metrics.csv")  # of a run, for those who read or resume it
FOLDER = Path("runs") / "hub"  # of the run directories that downloads become


def local_run(run: Path | str) -> Path:
    """Return a run directory as it is, and that of a run on the hub, `hub:NAME`, after its download.

    Raises:
        ValueError: there is no such run, or it holds what none from the hub may.
    """
    return fetched(str(run)) if str(run).startswith(PREFIX) else Path(run)


@cache  # the flags of a command are read more than once
def fetched(name: str) -> Path:
    """Download a run, and return its run directory: one for each commit, in which training may go on."""
    source = download(name, "model", [WEIGHTS, STATE, CONFIG, *BESIDE])
    folder = FOLDER / name.removeprefix(PREFIX) / source.name[:12]
    if (folder / CONFIG).exists():
        return folder
    try:
        config = shared_config(config_from_json((source / CONFIG).read_text(encoding="utf-8")))
        state = read_state(source)
        if type(state.get("global_step")) is not int or state["global_step"] < 0:
            raise ValueError(f"{STATE} is not the state of a run")
    except (OSError, ValueError) as error:
        raise ValueError(f"{name} is no run of this program: {error}") from error
    folder.mkdir(parents=True, exist_ok=True)
    save_checkpoint(folder / "checkpoints", state["global_step"], state)
    for beside in BESIDE:
        if (source / beside).exists():
            shutil.copyfile(source / beside, folder / beside)
    (folder / CONFIG).write_text(config.to_json() + "\n", encoding="utf-8")  # the last one: now the run is complete
    return folder


def write_run(run_dir: Path, folder: Path) -> Config:
    """Write what the hub gets of a run but for its card, and return its config.

    Raises:
        ValueError: there is no run, or one that the hub could not give back.
    """
    config = shared_config(load_config(run_dir))
    write_state(load_checkpoint(run_dir / "checkpoints", "cpu"), folder)
    (folder / CONFIG).write_text(config.to_json() + "\n", encoding="utf-8")
    for beside in BESIDE:
        if (run_dir / beside).exists():
            shutil.copyfile(run_dir / beside, folder / beside)
    return config


def shared_config(config: Config) -> Config:
    """Return a config without what is of one machine alone.

    Raises:
        ValueError: it names code that would be imported.
    """
    tutoring, guiding = config.tutoring, config.guiding
    names = (config.env.removeprefix("gym:"), guiding.guidance, tutoring.tutor, tutoring.view or "")
    own = [name for name in names if ":" in name]  # module:Class, module:function, and the URL of a recording
    if own:
        raise ValueError(f"it names {own[0]!r}, which is not of this program: a run on the hub brings no code with it")
    tutoring = replace(tutoring, tutor_url=(), tutor_key_file=None, advice_store=None)
    return replace(config, tutoring=tutoring, run_dir=None, resume=None, force=False, track=None, device="auto")


def write_state(state: Any, folder: Path) -> None:
    """Write nested containers: the tensors to one file, everything else, with their names, to another."""
    library()
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    tree = packed(state, "", tensors)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    (folder / STATE).write_text(json.dumps(tree), encoding="utf-8")


def read_state(folder: Path) -> Any:
    """Return what `write_state` wrote.

    Raises:
        ValueError: the files hold something else.
    """
    library()
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return unpacked(json.loads((folder / STATE).read_text(encoding="utf-8")), load_file(folder / WEIGHTS))
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{STATE} and {WEIGHTS} are damaged: {type(error).__name__}: {error}") from error


def packed(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Return a value as JSON holds it, [kind, content] of a container; its tensors go to `tensors` by their names."""
    if torch.is_tensor(value):
        name = name or "tensor"
        tensors[name] = value.detach().cpu().contiguous().clone()
        return ["tensor", name]
    if isinstance(value, dict):
        prefix = f"{name}." if name else ""
        return ["dict", [[key, packed(one, f"{prefix}{key}", tensors)] for key, one in value.items()]]
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return [kind, [packed(one, f"{name}.{index}", tensors) for index, one in enumerate(value)]]
    assert value is None or isinstance(value, bool | int | float | str), f"{name} is no plain value"
    return value


def unpacked(tree: Any, tensors: dict[str, Tensor]) -> Any:
    """Return the value that `packed` was given.

    Raises:
        ValueError: it was given none.
    """
    if not isinstance(tree, list):
        return tree
    match tree:
        case ["tensor", str(name)]:
            return tensors[name]
        case ["dict", list(pairs)]:
            return {key: unpacked(one, tensors) for key, one in pairs}
        case ["list" | "tuple" as kind, list(parts)]:
            return (list if kind == "list" else tuple)(unpacked(one, tensors) for one in parts)
    raise ValueError(f"{STATE} holds {str(tree)[:80]}, which is no value of a run")
