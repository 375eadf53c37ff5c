"""Train with tutors that no study has: whether trust keeps them harmless, and finds what is good in them.

`python -m tests.integration.adverse_tutors --seeds 141 142 143` prints a line for each run: its mean return at the end
and over the whole run, less those of the student alone with the same seed, in shares of what that student gains.

turncoat  right in the first half of the run, random after
wrong     certain of the worst action
silent    never answers
tenth     answers, rightly, in a tenth of the positions
half      right and sure in half of the positions, wrong and unsure in the others
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from statistics import mean

import torch

import train as program
from envs.base import State, Step
from tests.helpers.small_runs import series
from training.config import Config, default_config
from tutors import TutorConfig
from tutors.base import Advice
from tutors.prompts.base import PromptView
from tutors.registry import LOCAL_TUTORS
from tutors.scripted import ScriptedTutor, one_hot

KINDS = ("turncoat", "wrong", "silent", "tenth", "half")
SNAKE = ("size=6", "time_limit=200")
CELLS = {  # algo, env, its options, env steps, options of the run, of the student
    "ppo snake": ("ppo", "snake", SNAKE, 60_000, {"num_envs": 64}, {"num_steps": 16, "network": "mlp"}),
    "ppo connect4": ("ppo", "connect4", (), 60_000, {"num_envs": 128}, {"update_epochs": 10}),
    "dqn snake": ("dqn", "snake", SNAKE, 20_000, {}, {"updates_per_step": 16, "learning_starts": 1000}),
    "dqn connect4": ("dqn", "connect4", (), 30_000, {}, {"updates_per_step": 16, "learning_starts": 1000}),
}


class AdverseTutor(ScriptedTutor):
    """One of KINDS."""

    progress = 0.0  # of the run

    def __init__(self, view: PromptView, kind: str, seed: int) -> None:
        super().__init__(view, 1.0, 4, seed)
        self.kind = self.name = kind
        self.identity = {"tutor": kind, "seed": seed}
        self.random = ScriptedTutor(view, 0.0, 4, seed + 1, stochastic=kind == "turncoat")

    def advise(self, state: State) -> Advice:
        """Return advice as the kind says."""
        mask, number = self.view.action_mask(state), self.view.key(state)[:, 0] % 20
        if self.kind == "wrong":
            values = self.view.expert_values(state, self.depth).float()
            return one_hot(values.masked_fill(~mask, torch.inf).argmin(1), mask.shape[1])
        right, random = super().advise(state), self.random.advise(state)
        if self.kind == "turncoat":
            return right if AdverseTutor.progress < 0.5 else random
        if self.kind == "half":
            knows = number < 10
            sure = torch.where(knows, 0.9, 0.5)[:, None]
            probs = torch.where(knows[:, None], right.probs, random.probs)
            return right._replace(probs=sure * probs + (1 - sure) * mask / mask.sum(1, keepdim=True))
        answers = number < (2 if self.kind == "tenth" else 0)
        return Advice(right.probs * answers[:, None], right.valid & answers, right.label_mass * answers)


class TimedTrainer(program.Trainer):
    """Tells the tutor how far the run is."""

    def update(self, step: Step) -> tuple[Step, dict[str, torch.Tensor]]:
        """Do as `Trainer.update`."""
        AdverseTutor.progress = self.state.global_step / self.config.total_steps
        return super().update(step)


def make_config(cell: str, kind: str, seed: int, run_dir: Path | None) -> Config:
    """Return a run of a cell with one of KINDS, or alone."""
    algo, env, options, total_steps, run, student = CELLS[cell]
    config = default_config(algo, env)
    return replace(
        config,
        **run,
        env_kwargs=options,
        seed=seed,
        total_steps=total_steps,
        eval_every=total_steps // 20,
        eval_episodes=200,
        device="cpu",
        progress="quiet",
        run_dir=run_dir,
        agent=replace(config.agent, **student),
        tutoring=TutorConfig(tutor=kind, reuse=0 if kind == "turncoat" else float("inf")),
    )


def run(job: tuple[str, str, int]) -> list[float]:
    """Return the evaluations of a run."""
    torch.set_num_threads(1)
    program.Trainer = TimedTrainer  # type: ignore[misc]
    for kind in KINDS:
        LOCAL_TUTORS[kind] = lambda _, view, seed, kind=kind: AdverseTutor(view, kind, seed)
    with tempfile.TemporaryDirectory() as folder:
        program.train(make_config(*job, Path(folder) / "run"))
        return list(series(Path(folder) / "run", "eval/mean_return").values())


def main(argv: Sequence[str] | None = None) -> None:
    """Print how each run compares with the student alone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, each with one thread")
    options = parser.parse_args(argv)
    pairs = [(cell, seed) for seed in options.seeds for cell in options.cells]
    jobs = [(cell, kind, seed) for cell, seed in pairs for kind in ("none", *options.kinds)]
    with get_context("spawn").Pool(options.jobs, maxtasksperchild=1) as pool:
        for job, curve in zip(jobs, pool.imap(run, jobs), strict=True):
            cell, kind, seed = job
            if kind == "none":
                alone, gain = curve, mean(curve[-5:]) - curve[0]
            end, height = mean(curve[-5:]) - mean(alone[-5:]), mean(curve) - mean(alone)
            print(
                f"{cell:13} seed {seed} {kind:9} end {mean(curve[-5:]):+.2f}, {end / gain:+.2f} of alone's gain; "
                f"height {height / gain:+.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
