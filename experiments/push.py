"""A run on the Hugging Face Hub: `python -m experiments push RUN --repo NAME`."""

import json
import shlex
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import tyro

from training.checkpoint import newest_step
from training.config import Config, default_config, evaluation_env, load_config
from training.config_json import read_object, to_plain
from training.evaluation import describe_game
from training.hints import command
from training.hub import write_run
from training.student import Student, load
from training.video import EpisodeRecorder
from tutors.display import markdown_text, printable, without_password
from tutors.hub import PREFIX, library, upload

VIDEO = "episode.gif"


@dataclass(frozen=True)
class PushOptions:
    """Upload a run to the Hugging Face Hub: its student, all that resuming it requires, and a model card."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run directory."""
    repo: str
    """Repository, NAME or ORGANISATION/NAME; made if there is none."""
    private: bool = False
    """A repository that only its owner sees, if it is made now."""


def push(options: PushOptions) -> None:
    """Upload a run.

    Raises:
        ValueError: there is no run, or the hub refuses.
    """
    library()
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        config = write_run(options.run, folder)
        student = load(options.run)
        has_video = (
            EpisodeRecorder(replace(config, device="cpu"), student.env.spec).film(student.agent, folder / VIDEO)
            is not None
        )
        card = model_card(options, config, student, has_video)
        (folder / "README.md").write_text(card, encoding="utf-8")
        address = upload(folder, options.repo, "model", options.private)
    name = address.rstrip("/").partition("://")[2].partition("/")[2]
    print(f"{address}: {command('evaluate.py', f'{PREFIX}{name}')}")


def model_card(options: PushOptions, config: Config, student: Student, has_video: bool) -> str:
    """Return the page that the hub shows: what it is, how good, with which tutor, and how it was made."""
    hub = library()
    run = load_config(options.run)
    summary = summary_of(options.run, student)
    result = summary["eval"]
    interval = f"{result['mean_return']:+.3f} [{result['low']:+.3f}, {result['high']:+.3f}]"
    tutor = printable(without_password(config.tutoring.tutor))
    title = f"{config.algo.upper()} on {config.env}" + ("" if tutor == "none" else f", tutored by {tutor}")
    data = hub.ModelCardData(
        library_name="tutored",
        tags=["reinforcement-learning", "deep-reinforcement-learning", config.algo, "tutored"],
        model_name=title,
        eval_results=[
            hub.EvalResult(
                task_type="reinforcement-learning",
                dataset_type=config.env,
                dataset_name=config.env,
                metric_type="mean_reward",
                metric_value=interval,
            )
        ],
    )
    asked = summary.get("tutor") or {}
    rows = {
        "student": config.algo,
        "environment": describe_game(evaluation_env(config, 1, "cpu")),
        "env steps": f"{summary['global_step']:,}",
        "mean return, 95 % interval": f"{interval}, {result['episodes']:,} episodes of the student alone",
        "tutor": tutor if tutor == "none" else f"{tutor}, guidance {config.guiding.guidance}",
        **({"questions to the tutor": f"{asked['asked']:,}"} if "asked" in asked else {}),
        "commit": made_with(options.run),
    }
    table = "\n".join(f"| {name} | {markdown_text(value)} |" for name, value in rows.items())
    video = f"\n![an episode of the student]({VIDEO})\n" if has_video else ""
    return f"""---
{data.to_yaml()}
---

# {title}

| | |
|---|---|
{table}
{video}
Made by:

```sh
{command_of(run)}
```

Use it:

```sh
pip install -e '.[hub]'
python evaluate.py {PREFIX}{options.repo}
python train.py --resume {PREFIX}{options.repo} --total-steps {2 * config.total_steps} --force
```

`model.safetensors` holds every tensor of the run's checkpoint, the student's under `agent.`; `state.json` says where
each belongs.
"""


def summary_of(run: Path, student: Student) -> dict[str, Any]:
    """Return what summary.json says; of a run that is not finished, what is known of it, and an evaluation."""
    try:
        return read_object(run / "summary.json")
    except (OSError, ValueError):
        result = student.evaluate(student.config.eval_episodes)
        evaluation = {name: getattr(result, name) for name in ("mean_return", "low", "high", "episodes")}
        return {"global_step": newest_step(run / "checkpoints"), "eval": evaluation}


def made_with(run: Path) -> str:
    """Return the commit of the program that began a run."""
    versions = json.loads((run / "config.json").read_text(encoding="utf-8")).get("versions")
    return printable(str(versions.get("commit", "unknown"))) if isinstance(versions, dict) else "unknown"


def command_of(config: Config) -> str:
    """Return the command line that such a run begins with: the flags whose values are not the defaults."""
    default = default_config(config.algo, config.env)
    words = ["python", "train.py", "--algo", config.algo, "--env", config.env]
    for part, usual in parts(config, default):
        for one in fields(part):
            value = getattr(part, one.name)
            if one.name in ("algo", "env", "run_dir", "resume", "force") or is_dataclass(value):
                continue
            if value == getattr(usual, one.name) or value is None:
                continue
            plain = to_plain(value, without_password)
            values = [] if value is True else plain if isinstance(plain, list) else [plain]
            words += [f"--{one.name.replace('_', '-')}", *map(str, values)]
    return shlex.join(words)


def parts(config: Config, default: Config) -> list[tuple[Any, Any]]:
    """Return the config and its parts, each beside the default one."""
    names = [one.name for one in fields(config) if is_dataclass(getattr(config, one.name))]
    return [(config, default), *((getattr(config, name), getattr(default, name)) for name in names)]
