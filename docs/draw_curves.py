"""Draw the curves of the algorithms' pages from results/study/alone/curves: `make docs`.

A picture holds the digest of the files that it was drawn from, by which a test finds one that is not current.
"""

import csv
import hashlib
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

FOLDER = Path(__file__).resolve().parent.parent / "results" / "study" / "alone"
ENVS = {  # title and what a return counts, in the order of the panels
    "blackjack": ("Blackjack", "return per hand, exact"),
    "connect4": ("Connect Four against tactical", "+1 win, −1 loss"),
    "snake": ("Snake, 12 x 12", "fruits"),
    "gym-CartPole-v1": ("CartPole-v1", "time steps"),
}
BLUE = "#0072B2"
PANEL = (3.6, 3.0)  # inches


def files(algo: str) -> list[tuple[str, Path]]:
    """Return the curves of a student, by env."""
    found = ((env, FOLDER / "curves" / f"{algo}_{env}.csv") for env in ENVS)
    return [(env, path) for env, path in found if path.exists()]


def digest(algo: str) -> str:
    """Return the digest of what a student's picture is drawn from."""
    return hashlib.sha256(b"".join(path.read_bytes() for _, path in files(algo))).hexdigest()


def draw(algo: str, out: Path) -> None:
    """Draw a student's mean return over env steps: a panel per env, the mean over seeds and its interval."""
    curves = files(algo)
    figure = Figure(figsize=(PANEL[0] * len(curves), PANEL[1]), layout="constrained")
    for axes, (env, path) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves, strict=True):
        with path.open(encoding="utf-8") as file:
            rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
        steps, mean, low, high = ([float(row[name]) for row in rows] for name in ("global_step", "mean", "low", "high"))
        title, unit = ENVS[env]
        axes.fill_between(steps, low, high, color=BLUE, alpha=0.25, linewidth=0)
        axes.plot(steps, mean, color=BLUE)
        axes.set_title(title, fontsize=10)
        axes.set_ylabel(f"mean return: {unit}", fontsize=8)
        axes.set_xlabel("env steps", fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
    figure.savefig(out, dpi=110, metadata={"Description": digest(algo)})


if __name__ == "__main__":
    for algo in ("a2c", "dqn", "ppo"):
        draw(algo, FOLDER / f"{algo}.png")
