"""Hyper-parameter search with Optuna: `python -m experiments search --algo a2c --env snake`.

The sampler is TPE (Bergstra et al. 2011); the first trial has the defaults. A trial trains one seed after another, and
ends early where a Wilcoxon signed-rank test finds it worse than the best one over the same seeds. Everything is in an
Optuna journal, from which the same command continues, or a second process helps; it is the evidence for a choice in
agents/defaults.toml.
"""

import csv
import hashlib
import json
import shlex
import shutil
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Interval
from filelock import FileLock, Timeout
from rich.progress import MofNCompleteColumn, Progress
from rich.table import Table

from experiments.runner import LocalPool
from experiments.spec import RunCommand
from experiments.stats import final_score, read_curve
from training.config import Config, default_config, versions
from training.hints import install_command
from tutors.terminal import TerminalConsole

if TYPE_CHECKING:  # only searches require Optuna
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

PUBLISHED = Path("results/search")


@dataclass(frozen=True)
class LogUniform:
    """A range from which a sampler draws on a logarithmic scale."""

    low: float
    high: float


Space = dict[str, LogUniform | tuple[Any, ...]]  # a range or choices, by hyper-parameter
COMMON: Space = {"learning_rate": LogUniform(1e-4, 3e-3), "gamma": (0.95, 0.97, 0.98, 0.99, 0.995)}
ON_POLICY: Space = COMMON | {
    "num_envs": (64, 128, 256, 512),
    "ent_coef": (0.0, 0.003, 0.01, 0.03),
    "max_grad_norm": (0.5, 1.0, 5.0),
}
SPACES: dict[str, Space] = {  # by algorithm
    "dqn": COMMON
    | {
        "num_envs": (64, 128, 256, 512),
        "batch_size": (128, 256, 512, 1024),
        "updates_per_step": (1, 2, 4, 8),
        "n_step": (1, 2, 3),
        "target_network_frequency": (50, 100, 200, 500),
        "exploration_fraction": (0.05, 0.1, 0.2, 0.4),
        "end_e": (0.01, 0.05),
    },
    "ppo": ON_POLICY
    | {
        "num_steps": (8, 16, 32, 64),
        "gae_lambda": (0.8, 0.9, 0.95),
        "num_minibatches": (2, 4, 8),
        "update_epochs": (2, 3, 4, 6),
        "clip_coef": (0.1, 0.2, 0.3),
    },
    "a2c": ON_POLICY | {"num_steps": (4, 8, 16), "gae_lambda": (0.9, 0.95, 1.0)},
}

console = TerminalConsole()


@dataclass(frozen=True)
class SearchOptions:
    """Search hyper-parameters of a student; the same command continues a search that was stopped."""

    algo: str = "dqn"
    """Student: dqn, ppo or a2c."""
    env: str = "connect4"
    """Environment, as train.py takes it."""
    flags: str = ""
    """Further flags of train.py, as one string."""
    total_steps: Annotated[int, Interval(ge=1, le=10**15)] = 300_000
    """Env steps of a run."""
    seeds: tuple[Annotated[int, Interval(ge=0, le=2**31 - 1)], ...] = (1, 2, 3, 4, 5)
    """Seeds of a trial, one run each."""
    num_evals: Annotated[int, Interval(ge=1, le=10**6)] = 10
    """Evaluations of a run."""
    eval_episodes: Annotated[int, Interval(ge=1, le=10**7)] = 500
    """Episodes of an evaluation."""
    trials: Annotated[int, Interval(ge=1, le=10**6)] = 30
    """Trials of the whole search; the first has the defaults."""
    p_threshold: Annotated[float, Interval(ge=0, le=1)] = 0.15
    """P-value of the test below which a trial ends early; with 3 seeds the least possible is 0.125, with 4 0.0625."""
    sampler_seed: Annotated[int, Interval(ge=0, le=2**31 - 1)] = 1
    """Seed of the sampler."""
    jobs: Annotated[int, Interval(ge=1, le=10**4)] = 2
    """Runs at once, each with one thread."""
    output_dir: Path | None = None
    """Directory of the runs and the journal; runs/search/ALGO_ENV_STEPS_DIGEST if not given."""
    publish: bool = False
    """Copy the journal and the table to results/search, which is under version control."""

    def name(self) -> str:
        """Return a name that searches with other runs do not have."""
        rest = f"{self.flags} {self.seeds} {self.num_evals} {self.eval_episodes}"
        digest = hashlib.sha256(rest.encode()).hexdigest()[:8]
        env = self.env.replace(":", "-").replace("/", "-")
        return f"{self.algo}_{env}_{self.total_steps}_{digest}"

    def directory(self) -> Path:
        """Return the directory of the runs and the journal."""
        return self.output_dir or Path("runs/search") / self.name()

    def run_command(self, trial: int, settings: dict[str, Any], seed: int) -> RunCommand:
        """Return the command of a trial's run."""
        interval = max(self.total_steps // self.num_evals, 1)
        arguments = ["--algo", self.algo, "--env", self.env, "--total-steps", str(self.total_steps)]
        arguments += ["--seed", str(seed), "--eval-every", str(interval), "--log-every", str(interval)]
        arguments += ["--eval-episodes", str(self.eval_episodes), *shlex.split(self.flags)]
        for name, value in settings.items():
            arguments += [f"--{name.replace('_', '-')}", str(value)]
        run_dir = self.directory() / f"trial{trial}_seed{seed}"
        return RunCommand(trial, (*arguments, "--run-dir", str(run_dir)), run_dir)


def search(options: SearchOptions) -> None:
    """Execute the trials that are left, and write and print all of them, best first.

    Raises:
        ValueError: an option is not valid, Optuna is not installed, or no trial could be trained.
    """
    if not options.seeds or options.trials < 1 or options.jobs < 1:
        raise ValueError("a search requires at least one seed, one trial and one job")
    defaults = default_config(options.algo, options.env)
    study = open_study(options, defaults)
    space = widened(SPACES[options.algo], defaults)
    with LocalPool(options.jobs) as pool, Progress(*Progress.get_default_columns(), MofNCompleteColumn()) as progress:
        task = progress.add_task(options.directory().name, total=options.trials)
        execute_trials(study, options, space, pool, lambda: progress.update(task, completed=len(finished(study))))
    ranked = sorted((one for one in finished(study) if one.value is not None), key=lambda one: -(one.value or 0.0))
    if not ranked:
        raise ValueError(f"no trial could be trained: see {options.directory() / 'logs'}")
    write_trials(options.directory() / "trials.csv", options, ranked)
    show(options, ranked)
    if options.publish:
        PUBLISHED.mkdir(parents=True, exist_ok=True)
        for name in ("journal", "csv"):
            source = options.directory() / ("optuna.journal" if name == "journal" else "trials.csv")
            shutil.copyfile(source, PUBLISHED / f"{options.name()}.{name}")


def open_study(options: SearchOptions, defaults: Config) -> "Study":
    """Return the search's Optuna study, new or from its journal.

    Raises:
        ValueError: Optuna is not installed.
    """
    try:
        import optuna
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise ValueError(f"search requires Optuna: {install_command('-e', '.[study]')}") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    options.directory().mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # the pruner is, since Optuna 3.6
        pruner = optuna.pruners.WilcoxonPruner(p_threshold=options.p_threshold)
    study = optuna.create_study(
        study_name=options.name(),
        storage=optuna.storages.JournalStorage(JournalFileBackend(str(options.directory() / "optuna.journal"))),
        sampler=optuna.samplers.TPESampler(seed=options.sampler_seed),
        pruner=pruner,
        direction="maximize",
        load_if_exists=True,
    )
    if not study.trials:
        study.enqueue_trial({name: setting_of(defaults, name) for name in SPACES[options.algo]}, skip_if_exists=True)
    return study


def setting_of(config: Config, name: str) -> Any:
    """Return a hyper-parameter of a run or of its student."""
    return getattr(config if hasattr(config, name) else config.agent, name)


def widened(space: Space, defaults: Config) -> Space:
    """Return a search space that contains the defaults."""
    found: Space = {}
    for name, values in space.items():
        default = setting_of(defaults, name)
        if isinstance(values, LogUniform):
            found[name] = LogUniform(min(values.low, default), max(values.high, default))
        else:
            found[name] = tuple(sorted({*values, default}))
    return found


def suggest(trial: "Trial", space: Space) -> dict[str, Any]:
    """Return the hyper-parameters of a trial."""
    return {
        name: trial.suggest_float(name, values.low, values.high, log=True)
        if isinstance(values, LogUniform)
        else trial.suggest_categorical(name, values)
        for name, values in space.items()
    }


def finished(study: "Study") -> "list[FrozenTrial]":
    """Return the trials that have ended."""
    return [trial for trial in study.get_trials() if trial.state.is_finished()]


def execute_trials(
    study: "Study", options: SearchOptions, space: Space, pool: LocalPool, update: Callable[[], None]
) -> None:
    """Execute the trials that are left, each seed after seed; those that were interrupted first.

    A trial belongs to the process that holds its lock: of those that run, the ones whose process is gone are free.

    Args:
        update: is called whenever a trial has ended.
    """
    with ExitStack() as locks:
        execute_claimed(study, options, space, pool, update, locks)


def execute_claimed(
    study: "Study",
    options: SearchOptions,
    space: Space,
    pool: LocalPool,
    update: Callable[[], None],
    locks: ExitStack,
) -> None:
    """Execute the trials whose locks are free; `locks` releases them in the end."""
    import optuna

    running = study.get_trials(states=(optuna.trial.TrialState.RUNNING,))
    interrupted = [optuna.Trial(study, one._trial_id) for one in running if claim(options, one.number, locks)]
    active: dict[Path, tuple[Trial, int]] = {}  # trial and seed by run directory

    def start(trial: "Trial") -> None:
        trained = scores_by_seed(study, trial)
        seed = next(seed for seed in options.seeds if seed not in trained)
        command = options.run_command(trial.number, suggest(trial, space), seed)
        active[command.run_dir] = trial, seed
        pool.start(command)

    update()
    while True:
        while pool.has_room() and (interrupted or has_trials_left(study, options)):
            if interrupted:
                start(interrupted.pop(0))
            elif claim(options, (new := study.ask()).number, locks):  # else a process that began now took it as left
                start(new)
        if not active:
            return
        for command, code in pool.wait():
            trial, seed = active.pop(command.run_dir)
            if code:
                message = f"trial {trial.number} failed with exit code {code}: see {command.log_file()}"
                console.print(message, soft_wrap=True)
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
            else:
                trial.report(final_score(read_curve(command.run_dir)), seed)
                scores = scores_by_seed(study, trial)
                if len(scores) < len(options.seeds) and not trial.should_prune():
                    start(trial)
                    continue
                study.tell(trial, fmean(scores.values()))  # also if pruned, as WilcoxonPruner's documentation says
            update()


def claim(options: SearchOptions, trial: int, locks: ExitStack) -> bool:
    """Return whether a trial belongs to this process, which holds its lock from now on."""
    folder = options.directory() / "locks"
    folder.mkdir(exist_ok=True)
    try:
        locks.enter_context(FileLock(folder / f"trial{trial}", timeout=0))
    except Timeout:
        return False
    return True


def scores_by_seed(study: "Study", trial: "Trial") -> dict[int, float]:
    """Return the final scores of the seeds that a trial has trained."""
    return study.get_trials(deepcopy=False)[trial.number].intermediate_values


def has_trials_left(study: "Study", options: SearchOptions) -> bool:
    """Return whether another trial may start: one that is enqueued, or a new one."""
    trials = study.get_trials(deepcopy=False)
    return len(trials) < options.trials or any(trial.state.name == "WAITING" for trial in trials)


def write_trials(path: Path, options: SearchOptions, trials: "Iterable[FrozenTrial]") -> None:
    """Write the trials as CSV, best first, with the origin of the numbers in the first line."""
    origin = versions()
    with path.open("w", newline="") as file:
        file.write(f"# {options.name()}, flags {options.flags!r}, commit {origin['commit']}, {origin['machine']}\n")
        writer = csv.writer(file)
        writer.writerow(["trial", "score", "seeds", "settings"])
        for trial in trials:
            score, seeds = round(trial.value or 0.0, 6), len(trial.intermediate_values)
            writer.writerow([trial.number, score, seeds, json.dumps(trial.params)])


def show(options: SearchOptions, trials: "Sequence[FrozenTrial]") -> None:
    """Print the trials, and the best one as agents/defaults.toml would hold it."""
    table = Table(title=f"{options.algo} on {options.env}, {options.total_steps:,} env steps, student alone")
    for name in ("trial", "score", "seeds", "settings"):
        table.add_column(name)
    for trial in trials:
        settings = ", ".join(f"{name} {shown(value)}" for name, value in trial.params.items())
        table.add_row(str(trial.number), f"{trial.value:.4f}", str(len(trial.intermediate_values)), settings)
    console.print(table)
    best = trials[0]
    chosen = f"search {options.name()}, trial {best.number} of {len(trials)}: {best.value:.4f}"
    env = options.env if options.env.isidentifier() else json.dumps(options.env)
    print(f"[{options.algo}.{env}]\nchosen = {json.dumps(chosen)}")
    for name, value in best.params.items():
        print(f"{name} = {shown(value)}")


def shown(value: Any) -> str:
    """Return a setting, a number to three digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
