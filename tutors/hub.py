"""Folders on the Hugging Face Hub: the few calls of huggingface_hub, and what they fail with, in one place."""

import sys
from pathlib import Path
from typing import Any, Literal

PREFIX = "hub:"  # before the name of a repository, where a folder or a file is expected
Kind = Literal["model", "dataset"]


def upload(folder: Path, repo: str, kind: Kind, private: bool) -> str:
    """Upload a folder's files to a repository, which is made if there is none, and return its address.

    Raises:
        ValueError: huggingface_hub is not installed, or the hub refuses.
    """
    hub = library()
    api = hub.HfApi()
    try:
        made = api.create_repo(repo, repo_type=kind, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=made.repo_id, repo_type=kind, folder_path=folder, commit_message="Upload from tutored"
        )
    except Exception as error:  # whatever a service that refuses or is gone makes its client raise
        raise ValueError(f"{PREFIX}{repo} cannot be written: {shortened(error)}") from error
    return str(made)


def download(name: str, kind: Kind, patterns: list[str]) -> Path:
    """Return the folder that holds the files of a repository, `hub:NAME`, whose name is its commit.

    Raises:
        ValueError: huggingface_hub is not installed, or there is no such repository.
    """
    hub = library()
    try:
        repo = name.removeprefix(PREFIX)
        return Path(hub.snapshot_download(repo, repo_type=kind, allow_patterns=patterns))
    except Exception as error:  # whatever a service that refuses or is gone makes its client raise
        raise ValueError(f"{name} cannot be read: {shortened(error)}") from error


def library() -> Any:
    """Return the module huggingface_hub.

    Raises:
        ValueError: it, or safetensors, is not installed.
    """
    try:
        import huggingface_hub
        import safetensors.torch  # noqa: F401
    except ImportError as error:
        install = f"{sys.executable} -m pip install huggingface_hub safetensors"
        raise ValueError(f"{PREFIX}NAME requires {error.name}: {install}") from error
    return huggingface_hub


def shortened(error: Exception) -> str:
    """Return what an error says, without the advice about other programs that follows."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[:2])
