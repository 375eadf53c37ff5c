"""A study: the runs that a file in experiments/configs/ describes, and the arguments of train.py for each."""

import math
import shlex
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import tyro
from annotated_types import Interval

import envs
from agents.guidance import load_method
from envs.registry import unknown_name_message
from training.config import default_config
from training.config_json import from_plain
from training.ranges import check_ranges
from tutors.display import without_password

FACTORS = ("algos", "envs", "tutors", "guidance", "seeds")  # those that a command can restrict a study to
RENAMED_KEYS = {"students": "algos", "games": "envs", "points": "num_evals", "begin": "pretrain"}  # since 0.7.0


@dataclass(frozen=True)
class TutorSpec:
    """A tutor as study files name it: a value of --tutor, or scripted:ACCURACY."""

    name: str
    accuracy: float | None = None

    @classmethod
    def parse(cls, text: str) -> "TutorSpec":
        """Return the tutor that `text` names.

        Raises:
            ValueError: the accuracy of a scripted tutor is not a number between 0 and 1.
        """
        name, separator, accuracy = text.partition(":")
        if name != "scripted" or not separator:
            return cls(text)
        try:
            value = float(accuracy)
        except ValueError:
            value = math.nan
        if not 0 <= value <= 1:
            raise ValueError(f"tutor {text!r}: the accuracy of a scripted tutor is a number between 0 and 1")
        return cls(name, value)

    def __str__(self) -> str:
        return without_password(self.name) if self.accuracy is None else f"{self.name}:{self.accuracy:g}"

    def arguments(self) -> list[str]:
        """Return the arguments of train.py."""
        accuracy = [] if self.accuracy is None else ["--tutor-accuracy", f"{self.accuracy:g}"]
        return ["--tutor", self.name, *accuracy]


NO_TUTOR = TutorSpec("none")


@dataclass(frozen=True)
class Condition:
    """What a study compares: everything but the seed."""

    env: str
    algo: str
    tutor: TutorSpec
    guidance: str
    reuse: float
    variant: str = ""  # a name of [variants]; empty: without further flags

    def is_baseline(self) -> bool:
        """Return whether the student has no tutor."""
        return self.tutor == NO_TUTOR

    def baseline(self) -> "Condition":
        """Return the same student without a tutor."""
        return Condition(self.env, self.algo, NO_TUTOR, "none", math.inf)

    def columns(self) -> dict[str, str]:
        """Return the condition as columns of a table."""
        return {one.name: str(getattr(self, one.name)) for one in fields(self)} | {"reuse": f"{self.reuse:g}"}

    def name(self) -> str:
        """Return a name that is unique in the study and can be that of a directory."""
        return "_".join(filter(None, self.columns().values())).replace(":", "-").replace("/", "-")


@dataclass(frozen=True)
class RunSpec:
    """One run of train.py."""

    condition: Condition
    seed: int
    is_pretraining: bool = False  # trains a student alone, from which the runs of other conditions continue

    def name(self) -> str:
        """Return a name that is unique in the study and can be that of a directory."""
        name = self.condition.name()
        if self.is_pretraining:
            name = f"{self.condition.env}_{self.condition.algo}_pretrain".replace(":", "-").replace("/", "-")
        return f"{name}_seed{self.seed}"


@dataclass(frozen=True)
class RunCommand:
    """A run with its arguments, its directory and what it depends on."""

    index: int  # of the run in the whole study, from 1
    arguments: tuple[str, ...]  # of train.py
    run_dir: Path
    served_tutor: str | None = None  # a model of tutors/llm/models.toml that a server must answer for
    pretrained: Path | None = None  # directory of the run that this one continues from

    def log_file(self) -> Path:
        """Return the file for what the run prints."""
        return self.run_dir.parent / "logs" / f"{self.run_dir.name}.txt"

    def is_finished(self) -> bool:
        """Return whether the run has been trained to its end."""
        return (self.run_dir / "summary.json").exists()

    def log_failure(self, message: str) -> int:
        """Append to the log why the run could not be executed, and return its exit code."""
        with self.log_file().open("a") as file:
            file.write(f"error: {message}\n")
        return 2

    def with_servers(self, urls: Sequence[str]) -> "RunCommand":
        """Return the command with the URLs of its tutor's servers, if a server must answer for it."""
        if not urls or self.served_tutor is None:
            return self
        return replace(self, arguments=(*self.arguments, "--tutor-url", *urls))


@dataclass(frozen=True)
class StudySpec:
    """Every combination of these factors, and each student in each environment without a tutor."""

    algos: tuple[str, ...]
    envs: tuple[str, ...]
    tutors: tuple[TutorSpec, ...]
    guidance: tuple[str, ...]
    reuse: tuple[Annotated[float, Interval(ge=0, le=math.inf)], ...]
    seeds: tuple[Annotated[int, Interval(ge=0, le=2**31 - 1)], ...]
    # env steps of a run, by env, or by "algo env"
    steps: dict[str, Annotated[int, Interval(ge=1, le=10**15)]]
    num_evals: Annotated[int, Interval(ge=1, le=10**6)] = 10  # evaluations of a run
    eval_episodes: Annotated[int, Interval(ge=1, le=10**7)] = 200  # episodes of an evaluation
    flags: dict[str, str] = field(default_factory=dict)  # of train.py, by env, by algo or by "algo env"
    tutor_flags: dict[str, str] = field(default_factory=dict)  # the same, of runs with a tutor only
    variants: dict[str, str] = field(default_factory=dict)  # a further factor of runs with a tutor: flags by name
    pretrain: dict[str, Annotated[int, Interval(ge=1, le=10**15)]] = field(
        default_factory=dict
    )  # env steps, by env, of a student from which runs continue

    def __post_init__(self) -> None:
        pairs = [f"{algo} {env}" for algo in self.algos for env in self.envs]
        scopes = (*self.envs, *self.algos, *pairs)
        for env in self.envs:
            if not env.startswith("gym:"):
                envs.make_game(env)
            for algo in self.algos:
                default_config(algo, env)
                if self.steps_for(algo, env) < self.num_evals:
                    raise ValueError(f"[steps] gives {env} fewer env steps than a run has evaluations")
        for method in self.guidance:
            if method != "auto" and load_method(method).needs_episode_review and not self.pretrain:
                raise ValueError(f"guidance {method} requires a pretrained student: give its env steps in [pretrain]")
        for env, steps in self.pretrain.items():
            if env not in self.envs or not 0 < steps < min(self.steps_for(algo, env) for algo in self.algos):
                raise ValueError(f"[pretrain] requires envs of the study and fewer env steps than theirs: see {env}")
        for table in ("flags", "tutor_flags"):
            for scope, text in getattr(self, table).items():
                if scope not in scopes:
                    raise ValueError(unknown_name_message(f"env or algo in [{table}]", scope, scopes))
                if "--tutor-url" in shlex.split(text):
                    raise ValueError(f"[{table}] contains --tutor-url: give it to the command that executes the study")
        if not self.seeds or min(self.num_evals, self.eval_episodes) < 1:
            raise ValueError("a study requires at least one seed, one evaluation and one episode of it")
        names = [run.name() for run in self.runs()]
        if len(set(names)) < len(names):
            raise ValueError("the study lists a factor's value twice: two runs would share a directory")
        check_ranges(self)

    def steps_for(self, algo: str, env: str) -> int:
        """Return the env steps of a student's runs in an environment; 0 if the study has none."""
        return self.steps.get(f"{algo} {env}", self.steps.get(env, 0))

    def conditions(self) -> list[Condition]:
        """Return all conditions, baselines first; methods that a student cannot use are left out."""
        pairs = [(env, algo) for env in self.envs for algo in self.algos]
        found = [Condition(env, algo, NO_TUTOR, "none", math.inf) for env, algo in pairs]
        for env, algo in pairs:
            for tutor in self.tutors:
                for method in self.guidance:
                    if method == "auto" or algo in load_method(method).students:
                        found += [
                            Condition(env, algo, tutor, method, reuse, variant)
                            for variant in ("", *self.variants)
                            for reuse in self.reuse
                        ]
        return found

    def pretraining(self, run: RunSpec) -> RunSpec | None:
        """Return the run that another one continues from; None if it starts from scratch."""
        if run.is_pretraining or run.condition.env not in self.pretrain:
            return None
        return RunSpec(run.condition.baseline(), run.seed, is_pretraining=True)

    def total_steps(self, run: RunSpec) -> int:
        """Return the env steps at which a run ends."""
        if run.is_pretraining:
            return self.pretrain[run.condition.env]
        return self.steps_for(run.condition.algo, run.condition.env)

    def runs(self) -> list[RunSpec]:
        """Return all runs, seed by seed, so that a study that is stopped early has some of every condition."""
        runs = [RunSpec(condition, seed) for seed in self.seeds for condition in self.conditions()]
        pretraining = [first for run in runs if (first := self.pretraining(run)) is not None]
        return [*dict.fromkeys(pretraining), *runs]

    def arguments(self, run: RunSpec, run_dir: Path, store: str | Path | None) -> list[str]:
        """Return the arguments of train.py for a run.

        Args:
            store: the advice store of all runs with unlimited reuse; if None, each keeps its own.
        """
        condition = run.condition
        env, algo = condition.env, condition.algo
        interval = max((self.steps_for(algo, env) - self.pretrain.get(env, 0)) // self.num_evals, 1)
        arguments = ["--algo", algo, "--env", env, "--total-steps", str(self.total_steps(run)), "--seed", str(run.seed)]
        arguments += ["--eval-every", str(interval), "--log-every", str(interval)]
        arguments += ["--eval-episodes", str(self.eval_episodes)]
        if (first := self.pretraining(run)) is not None:
            arguments += ["--resume", str(run_dir.with_name(first.name()))]
        tables = [self.flags]
        if not condition.is_baseline():
            arguments += condition.tutor.arguments()
            arguments += ["--guidance", condition.guidance, "--reuse", f"{condition.reuse:g}"]
            if math.isinf(condition.reuse) and store is not None:
                arguments += ["--advice-store", str(store)]
            tables.append(self.tutor_flags)
        for table in tables:
            for scope in (env, algo, f"{algo} {env}"):
                arguments += shlex.split(table.get(scope, ""))
        arguments += shlex.split(self.variants.get(condition.variant, ""))
        return [*arguments, "--run-dir", str(run_dir)]


def read_study(path: Path) -> StudySpec:
    """Return the study that a TOML file describes.

    Raises:
        ValueError: the file cannot be read, or describes runs that cannot be made.
    """
    try:
        content: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"the study {path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the study {path} cannot be read: {error}") from error
    names = [one.name for one in fields(StudySpec)]
    for name in content:
        if name in RENAMED_KEYS:
            raise ValueError(f"the study {path} has the key {name!r} of version 0.7: it is {RENAMED_KEYS[name]!r} now")
        if name not in names:
            raise ValueError(unknown_name_message("key of a study", name, names))
    missing = [name for name in names[:7] if name not in content]
    if missing:
        raise ValueError(f"the study {path} has no {', '.join(missing)}")
    kinds = get_type_hints(StudySpec, include_extras=True) | {"tutors": tuple[str, ...]}
    if isinstance(content["reuse"], list):
        content["reuse"] = [as_number(budget) for budget in content["reuse"]]  # "3" and 3, "inf" and inf
    try:
        values = {name: from_plain(kinds[name], value, name) for name, value in content.items()}
    except ValueError as error:
        raise ValueError(f"the study {path} has a value of the wrong type: {error}") from error
    values["tutors"] = tuple(map(TutorSpec.parse, values["tutors"]))
    return StudySpec(**values)


def as_number(value: Any) -> Any:
    """Return the number that a text denotes; whatever else stands there as it is."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


@dataclass(frozen=True)
class StudyOptions:
    """Options that `run` and `report` share."""

    config: Annotated[Path, tyro.conf.Positional]
    """Study file, such as experiments/configs/laptop.toml."""
    output_dir: Path | None = None
    """Directory of the study's runs; runs/study/NAME if not given."""

    algos: tuple[str, ...] | None = None
    """Only these students of the study; likewise the next four."""
    envs: tuple[str, ...] | None = None
    """Only these environments."""
    tutors: tuple[str, ...] | None = None
    """Only these tutors."""
    guidance: tuple[str, ...] | None = None
    """Only these guidance methods."""
    seeds: tuple[Annotated[int, Interval(ge=0, le=2**31 - 1)], ...] | None = None
    """Only these seeds."""

    def subset(self) -> StudySpec:
        """Return the part of the study that the options select.

        Raises:
            ValueError: the study cannot be read, or has no such part.
        """
        study = read_study(self.config)
        selected: dict[str, Any] = {}
        for name in FACTORS:
            if (values := getattr(self, name)) is not None:
                known = {str(value): value for value in getattr(study, name)}
                for value in map(without_password, map(str, values)):
                    if value not in known:
                        raise ValueError(unknown_name_message(f"one of the {name} of {self.config}", value, known))
                selected[name] = tuple(known[without_password(str(value))] for value in values)
        algos, environments = selected.get("algos", study.algos), selected.get("envs", study.envs)
        return replace(
            study,
            flags=in_scope(study.flags, algos, environments),
            tutor_flags=in_scope(study.tutor_flags, algos, environments),
            pretrain=in_scope(study.pretrain, algos, environments),
            **selected,
        )

    def arguments(self) -> list[str]:
        """Return the options as a command line."""
        found = [str(self.config)]
        if self.output_dir is not None:
            found += ["--output-dir", str(self.output_dir)]
        for name in FACTORS:
            if (values := getattr(self, name)) is not None:
                found += [f"--{name}", *map(str, values)]
        return found

    def runs_dir(self) -> Path:
        """Return the directory of the study's runs."""
        return self.output_dir or Path("runs/study") / self.config.stem


def in_scope(table: dict[str, Any], algos: Sequence[str], environments: Sequence[str]) -> dict[str, Any]:
    """Return the entries of a table by env, algo or "algo env" that concern some of these students."""
    return {scope: value for scope, value in table.items() if {*algos, *environments}.issuperset(scope.split())}
