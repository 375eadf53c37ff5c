"""Peers that are not there."""

from pathlib import Path


def without_sb3(folder: Path) -> Path:
    """Return a folder of packages in which Stable-Baselines3 cannot be imported, installed or not."""
    package = folder / "peers" / "stable_baselines3"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'stable_baselines3'\")\n")
    return package.parent
