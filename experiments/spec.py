"""The runs that a file in experiments/configs/ describes, and the flags of train.py for each."""

import shlex
import tomllib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import envs
from agents.guidance import METHODS
from envs.registry import unknown_name_message
from training.config import default_config

ALONE = "none"  # the tutor of a student that has none
PARTS = ("students", "games", "tutors", "guidance", "seeds")  # of which a study may do some
FIRST = "first"  # in place of a guidance: the run that others go on with


class Cell(NamedTuple):
    """What is compared: all but the seed."""

    game: str
    student: str
    tutor: str  # a name, or scripted:ACCURACY
    guidance: str
    reuse: str

    def baseline(self) -> "Cell":
        """Return the same student without a tutor."""
        return Cell(self.game, self.student, ALONE, "none", "inf")


class Job(NamedTuple):
    """One run of train.py."""

    cell: Cell
    seed: int

    def name(self) -> str:
        """Return a name that no other job of a study has, fit for a folder."""
        return "_".join([*self.cell, f"seed{self.seed}"]).replace(":", "-").replace("/", "-")


@dataclass(frozen=True)
class Grid:
    """All combinations of these, and each student in each game without a tutor."""

    students: tuple[str, ...]
    games: tuple[str, ...]
    tutors: tuple[str, ...]
    guidance: tuple[str, ...]
    reuse: tuple[str, ...]
    seeds: tuple[int, ...]
    steps: dict[str, int]  # env steps of a run, by game
    points: int = 10  # evaluations of a run
    eval_episodes: int = 200  # games of each
    flags: dict[str, str] | None = None  # further flags of train.py, by game, by student or by both: "ppo snake"
    begin: dict[str, int] | None = None  # env steps, by game, of a student alone, whom all other runs go on with

    def __post_init__(self) -> None:
        for student in self.students:
            for game in self.games:
                default_config(student, game)
        for game in self.games:
            if not game.startswith("gym:"):
                envs.make_game(game)
            if self.steps.get(game, 0) < self.points:
                raise ValueError(f"[steps] gives {game} fewer steps than its run has evaluations")
        for method in self.guidance:
            if method not in METHODS:
                raise ValueError(unknown_name_message("guidance", method, METHODS))
            if METHODS[method].needs_episode_review and not self.begin:
                raise ValueError(f"guidance {method} goes on with a student: [begin] says after how many steps")
        for game in self.begin or {}:
            if game not in self.games or not 0 < self.begin[game] < self.steps[game]:
                raise ValueError(f"[begin] wants games of the study and fewer steps than theirs, not {game}")
        both = [f"{student} {game}" for student in self.students for game in self.games]
        for name, told in (self.flags or {}).items():
            if "--tutor-url" in shlex.split(told):
                raise ValueError(
                    "where servers answer is said to experiments.study run, by --tutor-url, and not in [flags]"
                )
            if name not in (*self.games, *self.students, *both):
                raise ValueError(
                    unknown_name_message("game or student in [flags]", name, (*self.games, *self.students, *both))
                )
        if not self.seeds or min(self.points, self.eval_episodes) < 1:
            raise ValueError("a study wants at least one seed, one evaluation and one game in it")
        names = [job.name() for job in self.jobs()]
        if len(set(names)) < len(names):
            raise ValueError("the study names something twice: two runs would share a folder")

    def cells(self) -> list[Cell]:
        """Return what is compared: baselines first. A method is left out for students that cannot use it."""
        pairs = [(game, student) for game in self.games for student in self.students]
        found = [Cell(game, student, ALONE, "none", "inf") for game, student in pairs]
        for game, student in pairs:
            for tutor in self.tutors:
                for method in self.guidance:
                    if student in METHODS[method].students:
                        found += [Cell(game, student, tutor, method, reuse) for reuse in self.reuse]
        return found

    def first(self, job: Job) -> Job | None:
        """Return the run that a job goes on with."""
        begins = (self.begin or {}).get(job.cell.game) and job.cell.guidance != FIRST
        return Job(job.cell.baseline()._replace(guidance=FIRST), job.seed) if begins else None

    def steps_of(self, job: Job) -> int:
        """Return the env steps at which a job's run ends."""
        return (self.begin or {})[job.cell.game] if job.cell.guidance == FIRST else self.steps[job.cell.game]

    def jobs(self) -> list[Job]:
        """Return all runs, seed by seed, so that a study which is stopped early has a bit of everything."""
        jobs = [Job(cell, seed) for seed in self.seeds for cell in self.cells()]
        firsts = [first for job in jobs if (first := self.first(job)) is not None]
        return [*dict.fromkeys(firsts), *jobs]

    def arguments(self, job: Job, folder: Path, store: str | Path | None) -> list[str]:
        """Return the flags of train.py for a job; `store` is shared where answers are used without end, if given."""
        game, student, tutor, guidance, reuse = job.cell
        begun = (self.begin or {}).get(game, 0)
        every = max((self.steps[game] - begun) // self.points, 1)
        told = (
            f"--algo {student} --env {game} --total-steps {self.steps_of(job)} --seed {job.seed} --eval-every {every}"
        )
        told += f" --log-every {every} --eval-episodes {self.eval_episodes}"
        if tutor != ALONE:
            name, _, accuracy = tutor.partition(":")
            if name == "scripted" and accuracy:
                told += f" --tutor-accuracy {accuracy}"
                tutor = name
            told += f" --tutor {shlex.quote(tutor)} --guidance {guidance} --reuse {reuse}"
            if reuse == "inf" and store is not None:
                told += f" --advice-store {shlex.quote(str(store))}"
        if (first := self.first(job)) is not None:
            told += f" --resume {shlex.quote(str(folder.with_name(first.name())))}"
        further = " ".join((self.flags or {}).get(name, "") for name in (game, student, f"{student} {game}"))
        return [*shlex.split(f"{told} {further}"), "--run-dir", str(folder)]


def read_grid(path: Path) -> Grid:
    """Return the grid that a TOML file describes.

    Raises:
        ValueError: the file is not there, or says what cannot be run.
    """
    try:
        told: dict[str, Any] = tomllib.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"the study {path} cannot be read: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"the study {path} cannot be read: {error}") from error
    names = [one.name for one in fields(Grid)]
    for name in told:
        if name not in names:
            raise ValueError(unknown_name_message("setting of a study", name, names))
    missing = [name for name in names[:7] if name not in told]
    if missing:
        raise ValueError(f"the study {path} says nothing about {', '.join(missing)}")
    lists = {name: tuple(value) for name, value in told.items() if isinstance(value, list)}
    if "reuse" in lists:
        lists["reuse"] = tuple(map(str, lists["reuse"]))  # 3 and inf are numbers of TOML, too
    try:
        return Grid(**(told | lists))
    except (AttributeError, TypeError) as error:
        raise ValueError(f"the study {path} says something of the wrong type: {error}") from error


@dataclass(frozen=True)
class Study:
    """What both commands must know."""

    grid: Path = Path("experiments/configs/paper.toml")
    """The file that describes the runs."""
    folder: Path | None = None
    """Where they keep things; runs/study/NAME if not given."""

    students: tuple[str, ...] | None = None
    """Of the grid, these alone; so with the next four."""
    games: tuple[str, ...] | None = None
    """These games."""
    tutors: tuple[str, ...] | None = None
    """These tutors."""
    guidance: tuple[str, ...] | None = None
    """These methods."""
    seeds: tuple[int, ...] | None = None
    """These seeds."""

    def part(self) -> Grid:
        """Return what is to be done of the grid.

        Raises:
            ValueError: it cannot be read, or has no such part.
        """
        grid = read_grid(self.grid)
        wanted = {name: getattr(self, name) for name in PARTS if getattr(self, name) is not None}
        for name, parts in wanted.items():
            known = getattr(grid, name)
            for one in parts:
                if one not in known:
                    raise ValueError(
                        unknown_name_message(f"one of the {name} of {self.grid}", str(one), map(str, known))
                    )
        games, students = (wanted.get(name, getattr(grid, name)) for name in ("games", "students"))
        parts = {*games, *students}
        flags = {name: told for name, told in (grid.flags or {}).items() if parts.issuperset(name.split())}
        begin = {name: steps for name, steps in (grid.begin or {}).items() if name in games}
        return replace(grid, flags=flags, begin=begin, **wanted)

    def place(self) -> Path:
        """Return the folder."""
        return self.folder or Path("runs/study") / self.grid.stem
