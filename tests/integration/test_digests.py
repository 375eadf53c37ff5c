"""Short runs come to the same weights, metrics and counts as at 0.7.0, to the bit.

tests/golden/digests.json was written by `python -m tests.integration.test_digests`. A change that is meant to alter
what is learned writes it anew, and its commit says why. Another kind of CPU may add up in another order: where the
arithmetic probe differs from the one in the file, the runs are skipped.
"""

import csv
import hashlib
import json
import sys
from pathlib import Path

import pytest
import torch
import tyro

from tests.helpers.paths import GOLDEN
from train import train
from training.config import Config, defaults_from_flags

pytestmark = pytest.mark.train

DIGESTS = GOLDEN / "digests.json"
SIZES = {
    "dqn": "--buffer-size 4096 --learning-starts 512 --batch-size 64 --hidden 32 32 --network mlp --updates-per-step 2 "
    "--target-network-frequency 100",
    "ppo": "--num-steps 16 --num-minibatches 4 --hidden 32 32 --network mlp",
    "a2c": "--num-steps 8 --hidden 32 32 --network mlp",
}
COMMON = "--device cpu --num-envs 32 --total-steps 2048 --seed 3 --log-every 512 --eval-every 1024 --eval-episodes 8"
TUTORED = "--tutor scripted --tutor-accuracy 0.8 --tutor-depth 2 --trust none --guidance"
METHODS = {
    "dqn": ("kl", "hint", "mask", "shape", "demonstrate"),
    "ppo": ("override-corrected", "kl", "blend", "hint", "mask", "shape", "advantage"),
}
ENVS = {"blackjack": "", "connect4": "", "snake": "--env-kwargs size=6 time_limit=60"}
LOGGED = ("losses/", "charts/episodic", "charts/learning_rate", "eval/")  # tags of what the digest of metrics holds


def runs() -> dict[str, str]:
    """Return each run's flags by its name."""
    found = {}
    for algo, sizes in SIZES.items():
        for env, options in ENVS.items():
            flags = f"--algo {algo} --env {env} {sizes} {COMMON} {options}"
            found[f"{algo} {env}"] = flags
            for method in ("override", "distill"):
                found[f"{algo} {env} {method}"] = f"{flags} {TUTORED} {method}"
    for algo, methods in METHODS.items():
        for method in methods:
            flags = f"--algo {algo} --env connect4 {SIZES[algo]} {COMMON} {TUTORED} {method}"
            found[f"{algo} connect4 {method}"] = flags
    budget = "--query-strategy mistake --query-budget 300 --query-budget-per-step 9 --reuse 3"
    found["dqn connect4 mistakes"] = f"{found['dqn connect4 override']} {budget}"
    found["ppo connect4 itself"] = f"{found['ppo connect4']} --env-kwargs opponent=self"
    return found


def digest(flags: str, folder: Path) -> dict[str, object]:
    """Train in `folder`, and return what the run came to."""
    argv = [*flags.split(), "--run-dir", str(folder), "--progress", "quiet"]
    config = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff, tyro.conf.AvoidSubcommands)
    summary = train(tyro.cli(Config, args=argv, default=defaults_from_flags(argv), config=config))
    with (folder / "metrics.csv").open() as file:
        rows = [(row["global_step"], row["tag"], row["value"]) for row in csv.DictReader(file)]
    logged = [row for row in rows if row[1].startswith(LOGGED)]
    checkpoint = torch.load(max((folder / "checkpoints").glob("*.pt")), weights_only=True)
    weights = hashlib.sha256()
    for tensor in checkpoint["agent"]["network"].values():
        weights.update(tensor.numpy().tobytes())
    tutor = summary["tutor"] or {}
    return {
        "weights": weights.hexdigest(),
        "metrics": hashlib.sha256(json.dumps(sorted(logged)).encode()).hexdigest(),
        "mean_return": summary["eval"]["mean_return"],
        "counts": {name: tutor[name] for name in ("consulted", "asked", "hits") if name in tutor},
    }


def probe() -> str:
    """Return what this CPU makes of some arithmetic, as a digest."""
    chance = torch.Generator().manual_seed(0)
    rows = [torch.rand(size, 84, generator=chance) for size in (8, 32, 64, 512)]
    weights = torch.rand(84, 32, generator=chance) - 0.5
    found = [(part @ weights).tanh().log_softmax(1).exp().sum(0) for part in rows]
    return hashlib.sha256(torch.cat(found).numpy().tobytes()).hexdigest()


@pytest.mark.parametrize("name", runs())
def test_run_comes_to_its_digest(name: str, tmp_path: Path) -> None:
    golden = json.loads(DIGESTS.read_text())
    if golden["probe"] != probe():
        pytest.skip("another kind of CPU than the one that wrote tests/golden/digests.json")
    assert digest(runs()[name], tmp_path / "run") == golden["runs"][name]


if __name__ == "__main__":
    from tempfile import TemporaryDirectory

    torch.set_num_threads(1)
    names = sys.argv[1:] or list(runs())
    with TemporaryDirectory() as folder:
        found = {name: digest(runs()[name], Path(folder) / str(number)) for number, name in enumerate(names)}
    DIGESTS.write_text(json.dumps({"probe": probe(), "runs": found}, indent=1) + "\n")
