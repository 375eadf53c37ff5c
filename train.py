"""Train one student, with or without a tutor: `python train.py --algo dqn --env connect4 --tutor deepseek`."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from agents import Agent
from agents.base import Guidance
from agents.checkpoint import save_checkpoint
from envs.base import Env, Step
from envs.luck import ADVISING, Luck
from envs.opponents import SelfPlay
from envs.score import Score
from evaluate import Result, play, student
from run import Config, Log, Stopwatch, evaluation_env, find_device, make_agent, make_env, run_program
from tutors import open_desk
from tutors.asking import by_chance, consult_probability
from tutors.desk import Desk
from tutors.guidance.override import Override

console = Console(highlight=False)


def train(config: Config) -> dict[str, object]:
    """Train as told, leave everything in the run's folder, and return what summary.json says.

    Raises:
        ValueError: something that was asked for is not there.
        TutorError: the tutor cannot be had, or not any longer; what was learned is saved.
    """
    config.check()
    device = find_device(config.device)
    config = replace(config, device=device, folder=config.folder or new_folder(config))
    if (config.folder / "config.json").exists():
        raise ValueError(f"{config.folder} holds a run already; a run wants a folder of its own")
    if device == "cpu" and config.tutoring.tutor not in ("none", "scripted"):
        torch.set_num_threads(1)  # beside a server on two cores: 1,180 steps/s with one thread, 260 with two
    env = make_env(config, device)
    agent = make_agent(config, env.spec, device)
    log = Log(config.folder)
    (config.folder / "config.json").write_text(config.to_json() + "\n")
    console.print(f"{config.folder}: {config.algo} on {config.env}, tutor {config.tutoring.tutor}, {device}")
    try:
        with (
            console.status("") as status,
            open_desk(config.tutoring, env.game, config.seed, config.folder, device, status.update) as desk,
        ):
            summary = Training(config, env, agent, desk, log, status.update).run()
    finally:
        log.close()
    (config.folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    return summary


class Training:
    """The loop, and what it counts."""

    def __init__(
        self, config: Config, env: Env, agent: Agent, desk: Desk | None, log: Log, say: Callable[[str], None]
    ) -> None:
        self.config, self.env, self.agent, self.desk, self.log, self.say = config, env, agent, desk, log, say
        self.guidance = Guidance() if desk is None else Override()
        self.luck = Luck(config.seed, torch.arange(env.num_envs, device=env.device), ADVISING)
        self.score = Score(env.num_envs, env.device)
        self.watch = Stopwatch()
        self.agreed = torch.zeros(2, device=env.device)  # advice that the student had in mind too, all advice
        self.global_step = self.updates = 0
        self.began = self.logged_at = time.monotonic()
        self.logged_step = 0
        self.result: Result | None = None  # of the last evaluation, if nothing was learned since

    def run(self) -> dict[str, object]:
        """Train to the end and return the summary; what was learned is saved however this ends."""
        watch, agent, config = self.watch, self.agent, self.config
        step = self.env.reset()
        try:
            while self.global_step < config.total_steps:
                before, self.result = self.global_step, None
                for _ in range(agent.horizon):
                    action = self.act(step)
                    after = watch("env", self.env.step, action)
                    agent.observe(step, action, after)
                    self.score.add(after)
                    step = after
                    self.global_step += config.num_envs
                stats = watch("update", agent.update)
                self.updates += 1
                self.refresh_opponent()
                if before // config.log_every < self.global_step // config.log_every:
                    self.report(stats)
                if before // config.eval_every < self.global_step // config.eval_every:
                    self.result = self.evaluate()
        finally:
            state = {"agent": agent.state_dict(), "global_step": self.global_step}
            save_checkpoint(config.folder / "checkpoints", self.global_step, state)
        return self.summary(self.result or self.evaluate())

    def act(self, step: Step) -> Tensor:
        """Return the actions to take in `step`, (N,) int64: the student's, the tutor's where it is asked."""
        proposal = self.watch("act", self.agent.act, step)
        if self.desk is None:
            return proposal.action
        wanted = by_chance(self.consult_probability(), self.luck.draw(self.env.steps, 1)[:, 0])
        advice = self.watch("tutor", self.desk.advise, self.env.state, wanted)
        same = advice.given & (advice.probs.argmax(1) == proposal.greedy)
        self.agreed += torch.stack([same.sum(), advice.given.sum()])
        return self.guidance.choose(proposal, advice.probs, wanted)

    def refresh_opponent(self) -> None:
        """Give an opponent that is the student itself a new copy of it when it is time."""
        opponent = getattr(self.env.game, "opponent", None)
        if isinstance(opponent, SelfPlay) and self.updates % opponent.refresh == 0:
            opponent.policy = self.agent.frozen()

    def consult_probability(self) -> float:
        """Return the chance that a position is asked about now."""
        told = self.config.tutoring
        theta = self.config.total_steps // 2 if told.theta is None else told.theta
        return consult_probability(self.global_step, theta, told.consult_from, told.consult_to)

    def report(self, stats: dict[str, Tensor]) -> None:
        """Log what happened since the last report, and show it in one line."""
        now, played = time.monotonic(), self.score.take()
        sps = (self.global_step - self.logged_step) / (now - self.logged_at)
        self.logged_at, self.logged_step = now, self.global_step
        values = {"charts/SPS": sps, "charts/learning_rate": self.config.agent.learning_rate}
        line = f"step {self.global_step:,}  {sps:,.0f} steps/s"
        if played["episodes"]:
            values["charts/episodic_return"] = played["return"]
            values["charts/episodic_length"] = played["length"]
            line += f"  return {played['return']:+.2f}"
        if self.desk is not None:
            same, advised = self.agreed.tolist()
            self.agreed.zero_()
            values |= self.desk.report()
            values["tutor/consult_probability"] = self.consult_probability()
            values["tutor/agreement"] = same / max(advised, 1)
            line += f"  P {self.consult_probability():.2f}  hit rate {values['tutor/hit_rate']:.0%}"
        if stats:
            values |= dict(zip(stats, torch.stack(list(stats.values())).tolist(), strict=True))
        self.log.add(self.global_step, values | self.watch.shares())
        self.say(line)

    def evaluate(self) -> Result:
        """Play the student alone in games of its own, and log and print how it did."""
        env = evaluation_env(self.config, self.config.eval_episodes, self.config.device)
        result = self.watch("eval", play, student(self.agent), env)
        self.log.add(self.global_step, {f"eval/{name}": value for name, value in asdict(result).items()})
        low, high = result.interval()
        console.print(f"step {self.global_step:>9,}  student alone {result.mean_return:+.3f} [{low:+.3f}, {high:+.3f}]")
        return result

    def summary(self, result: Result) -> dict[str, object]:
        """Return what a run comes to."""
        seconds = time.monotonic() - self.began
        return {
            "global_step": self.global_step,
            "wall_seconds": round(seconds, 2),
            "sps": round(self.global_step / seconds, 1),
            "eval": asdict(result),
            "tutor": None if self.desk is None else self.desk.summary(),
        }


def new_folder(config: Config) -> Path:
    """Return a folder's name that no other run has."""
    when = time.strftime("%Y%m%d-%H%M%S")
    game = config.env.replace(":", "-").replace("/", "-")
    name = f"{game}_{config.algo}_{config.tutoring.tutor}_seed{config.seed}_{when}"
    folder, again = Path("runs") / name, 1
    while folder.exists():
        again += 1
        folder = Path("runs") / f"{name}_{again}"
    return folder


def main(config: Config) -> None:
    """Train, and print what came out."""
    summary = train(config)
    console.print_json(json.dumps(summary))


if __name__ == "__main__":
    run_program(main, Config, description=__doc__)
