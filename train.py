"""Train one student, with or without a tutor: `python train.py --algo dqn --env connect4 --tutor deepseek`."""

import json
import math
import time
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial

import torch
from torch import Tensor

from agents import Agent
from agents.base import frozen_copy
from agents.compile import compile_methods
from agents.distributed import (
    all_gather_sum,
    all_reduce_sum,
    broadcast_object,
    init,
    rank,
    shard_size,
    shutdown,
    world_size,
)
from agents.guidance import METHODS
from agents.policy import Decision
from envs.base import Env, Step
from envs.episode_stats import EpisodeStats
from envs.opponents import SelfPlay
from envs.rng import ADVISING, GUIDING, CounterRNG
from training.checkpoint import load_checkpoint, write
from training.cli import run_program
from training.config import COMMON_FLAGS, EXAMPLES, Config, evaluation_env, find_device, make_agent, make_env, tuned_for
from training.console import QUIET, Progress, progress_for
from training.episode_review import pause, reading_desk
from training.evaluation import Result, judge
from training.logger import Log
from training.resume import Resumable, Stop, alone_in, settings, settled
from training.timing import Stopwatch, untimed
from training.video import Camera
from tutors import open_desk
from tutors.advisor import Desk, Query
from tutors.base import TutorError
from tutors.prompts import make_view
from tutors.query import Asking, Rations, consult_probability
from tutors.store import without_password


def train(config: Config) -> dict[str, object]:
    """Train as told, leave everything in the run's folder, and return what summary.json says.

    Raises:
        ValueError: something that was asked for is not there.
        TutorError: the tutor cannot be had, or not any longer; what was learned is saved.
        SystemExit: it was told to stop; what was learned is saved.
    """
    device = init(find_device(config.device))
    config.check()
    if config.compile_mode == "graph" and not device.startswith("cuda"):
        raise ValueError(f"--compile-mode graph is for CUDA devices: on {device} compile is as far as it goes")
    config, goes_on = settled(replace(config, device=device))
    source, pauses = config.run_dir if goes_on else config.resume, METHODS[config.guiding.guidance].needs_episode_review
    state = None if source is None else load_checkpoint(source / "checkpoints", device, rank(), world_size())
    if source is not None and state is not None and state["global_step"] >= config.total_steps:
        done = f"{source} has done {state['global_step']:,} of {config.total_steps:,} steps"
        if not goes_on or (source / "summary.json").exists():  # else its last evaluation is still to do
            raise ValueError(f"{done}; --total-steps says how far to go on, with --force")
    if device == "cpu" and config.tutoring.tutor not in ("none", "scripted"):
        torch.set_num_threads(1)  # beside a server on two cores: 1,180 steps/s with one thread, 260 with two
    env = make_env(config, device)
    if config.tutoring.tutor != "none":
        make_view(env.game, config.tutoring.view, not config.tutoring.no_symmetry)  # errs before there is a folder
    agent = make_agent(config, env)
    with ExitStack() as stack:
        stack.callback(shutdown)
        log = None
        if rank() == 0:
            stack.enter_context(alone_in(config.run_dir))
            told = {name: part for name, part in json.loads(config.to_json()).items() if name != "versions"}
            known = dict(settings(told))  # as config.json: without passwords
            resumed = () if state is None else (state["global_step"], state["seconds"])
            log = Log(config.run_dir, *resumed, track=known if config.track else None)
            stack.callback(log.close)
        begun = 0 if state is None else state["global_step"]
        progress = QUIET if log is None else progress_for(config.progress, config.total_steps, begun)
        stack.enter_context(progress)
        tutor = without_password(config.tutoring.tutor)
        progress.tell(f"{config.run_dir}: {config.algo} on {config.env}, tutor {tutor}, {device}")
        for turn in range(world_size()):  # one after the other: the first may start a server, which the others find
            if broadcast_object(turn) == rank():
                told = (config.tutoring, env.game, config.seed, config.run_dir, device, progress.say)
                desk = reading_desk(config, env) if pauses else stack.enter_context(open_desk(*told))
        trainer = Trainer(config, env, agent, desk, log, progress)
        if state is not None:
            try:
                trainer.load_state_dict(state, goes_on)
            except (KeyError, RuntimeError) as error:
                raise ValueError(
                    f"{source} has another kind of student or game, or is another version's: {error}"
                ) from error
        if pauses and not goes_on:
            progress.tell(pause(config, agent, desk, progress.say))
        if rank() == 0:
            write(config.run_dir / "config.json", config.to_json().encode() + b"\n")
        progress.say("")  # nothing is waited for any more
        summary = trainer.run()
        if rank() == 0:
            log.compare(known, summary["eval"]["mean_return"])
            write(config.run_dir / "summary.json", json.dumps(summary, indent=2).encode() + b"\n")
            progress.end(summary, config.run_dir)
    return summary


class Trainer(Resumable):
    """The loop, and what it counts."""

    def __init__(
        self, config: Config, env: Env, agent: Agent, desk: Desk | None, log: Log | None, progress: Progress = QUIET
    ) -> None:
        self.config, self.env, self.agent, self.desk, self.log, self.progress = config, env, agent, desk, log, progress
        self.guidance = agent.guidance
        games = torch.arange(env.first_env_id, env.first_env_id + env.num_envs, device=env.device)
        self.rng, self.guidance_rng = (CounterRNG(config.seed, games, stream) for stream in (ADVISING, GUIDING))
        told = config.tutoring
        self.asking = Asking(told.asking, told.asking_threshold, agent.has_policy, env.device)
        limits = (None if most is None else shard_size(most) for most in (told.ask_budget, told.ask_per_step))
        self.rations = Rations(*limits, env.device)
        self.acted = torch.zeros((), dtype=torch.int64, device=env.device)  # env steps, as global_step
        self.score = EpisodeStats(env.num_envs, env.device)
        self.watch = self.within = Stopwatch()
        self.agreed = torch.zeros(2, device=env.device)  # advice that the student had in mind too, all advice
        self.columns = torch.arange(env.spec.num_actions, device=env.device)
        self.actions = torch.zeros(2, env.spec.num_actions, dtype=torch.int64, device=env.device)  # student's, tutor's
        if isinstance(opponent := getattr(env.game, "opponent", None), SelfPlay):
            self.rival, self.mirror = opponent, frozen_copy(agent)
            opponent.policy, opponent.errs = self.mirror.greedy, torch.ones((), device=env.device)
        self.camera = Camera(config, env.spec)
        self.global_step = self.updates = 0
        self.began = self.logged_at = self.saved_at = time.monotonic()
        self.logged_step = 0
        self.result: Result | None = None  # of the last evaluation, if nothing was learned since
        if desk is not None:
            desk.make_ring(env.state)
        self.accelerate()

    def accelerate(self) -> None:
        """Make the loop's functions as fast as was asked for; a rollout step that waits for nobody is one function."""
        mode = self.config.compile_mode
        if mode in ("auto", "eager"):
            return
        compile_methods(mode, self.agent, *self.agent.compiled_methods)
        if type(self.env) is not Env:  # a Gymnasium env is not made of tensors
            compile_methods(mode, self.agent, "act", "observe")
            if self.desk is not None:
                compile_methods(mode, self, "look_up", "follow")
            return
        self.within = untimed
        for name in ("rollout_step",) if self.desk is None or self.desk.clerk is not None else ("decide", "advance"):
            compile_methods(mode, self, name)
            setattr(self, name, partial(self.watch, "play", getattr(self, name)))

    def run(self) -> dict[str, object]:
        """Train to the end and return the summary.

        Raises:
            TutorError: the tutor cannot be had any longer; what was learned is saved.
            SystemExit: a signal said to stop; what was learned is saved.
            ValueError: the loss is no number, and nothing is saved; or what was learned cannot be saved.
        """
        config = self.config
        step = self.env.reset() if self.step is None else self.step
        stats: dict[str, Tensor] = {}
        with Stop() as stop:
            while self.global_step < config.total_steps and not broadcast_object(stop.number):
                before, self.result = self.global_step, None
                try:
                    step, stats = self.update(step)
                except TutorError:
                    self.save({})
                    raise
                self.refresh_opponent()
                self.progress.at(self.global_step)
                if before // config.log_every < self.global_step // config.log_every:
                    self.report(stats)
                if before // config.eval_every < self.global_step // config.eval_every:
                    self.result = self.evaluate()
                if self.global_step < config.total_steps and broadcast_object(self.is_time_to_save()):
                    self.save(stats)
            self.save(stats, last=True)
        if broadcast_object(stop.number):
            self.progress.tell(f"stopped: python train.py --resume {config.run_dir} goes on")
            raise SystemExit(128 + broadcast_object(stop.number))
        return self.summary(self.result or self.evaluate())

    def update(self, step: Step) -> tuple[Step, dict[str, Tensor]]:
        """Collect transitions and learn from them once; return the next step, and what to log."""
        whole = self.config.total_steps - self.guided_from
        self.guidance.strength.fill_(self.config.guiding.strength_at((self.global_step - self.guided_from) / whole))
        for _ in range(self.agent.steps_per_update):
            step = self.rollout_step(step)
            self.global_step += self.config.num_envs
            if self.desk is not None:
                self.watch("tutor", self.desk.tend)
        self.updates += 1
        return step, self.watch("learn", self.agent.update, step)

    def rollout_step(self, step: Step) -> Step:
        """Act once in all env copies, and return the step that this leads to."""
        decision, query = self.decide(step)
        if query is not None and self.desk is not None and self.desk.clerk is None:
            self.watch("tutor", self.desk.ask, query.told, query.missing, query.advice)
        return self.advance(step, decision, query)

    def decide(self, step: Step) -> tuple[Decision, Query | None]:
        """Return the student's own decision, and where advice is wanted."""
        decision = self.within("act", self.agent.act, step.obs, step.action_mask)
        return decision, None if self.desk is None else self.within("tutor", self.look_up, step, decision)

    def advance(self, step: Step, decision: Decision, query: Query | None) -> Step:
        """Act on the decision and the advice, store the transition, and return the step that this leads to."""
        self.actions[0].add_((decision.action[:, None] == self.columns).sum(0))
        if query is None:
            next_step = self.within("env", self.env.step, decision.action)
            self.within("store", self.agent.observe, step, decision, decision.action, next_step, next_step.reward)
        else:
            next_step = self.advance_guided(step, decision, self.within("tutor", self.follow, step, decision, query))
        self.score.add(next_step)
        self.acted += self.config.num_envs
        return next_step.as_initial()

    def advance_guided(self, step: Step, decision: Decision, advice: Tensor) -> Step:
        """Act with advice (N, A), zeros where there is none to follow."""
        if self.guidance.uses_advice_as_input:
            decision = self.within("act", self.agent.decide, step.obs, step.action_mask, advice)
        u = self.guidance_rng.uniform(self.env.steps, step.action_mask.shape[1] + 1)
        action, followed = self.within("tutor", self.guidance.act, decision, advice, step.action_mask, u)
        next_step = self.within("env", self.env.step, action)
        reward, bonus = self.guidance.reward(next_step, action, advice)
        transition = (step, decision, action, next_step, reward, advice, followed, bonus)
        self.within("store", self.agent.observe, *transition)
        return next_step

    def look_up(self, step: Step, decision: Decision) -> Query:
        """Return where advice is wanted, what the table knows of it, and where a question is put."""
        desk = self.desk
        assert desk is not None
        told = desk.tell(step.state)
        u = self.rng.uniform(self.env.steps, 2)
        wish = self.asking.wish(told.keys, decision.scores, step.action_mask, self.consult_probability(), u)
        if self.guidance.is_annealed:
            wish = wish._replace(wanted=wish.wanted & (self.guidance.strength > 0))
        advice = desk.look_up(told, wish.wanted)
        missing = self.rations.admit(told.keys, wish, wish.wanted & ~advice.given)
        if desk.clerk is not None:
            desk.queue(told, missing)
        return Query(told, wish, advice, missing)

    def follow(self, step: Step, decision: Decision, query: Query) -> Tensor:
        """Return the advice to follow, (N, A) in the env's own actions; zeros where there is none."""
        assert self.desk is not None
        advice = self.desk.turn_back(query.told, query.advice)
        best = advice.probs.argmax(1)
        same = advice.given & (best == decision.greedy)
        self.actions[1].add_(((best[:, None] == self.columns) & advice.given[:, None]).sum(0))
        self.agreed += torch.stack([same.sum(), advice.given.sum()])
        followed = self.asking.heed(query.wish.wanted, advice.given & ~same, self.rations)
        return advice.probs * (advice.given & followed)[:, None]

    def consult_probability(self) -> Tensor:
        """Return the chance that a position is asked about now, 0-d."""
        told = self.config.tutoring
        theta = (self.config.total_steps - self.guided_from) // 2 if told.theta is None else told.theta
        last = (1.0 if self.guidance.is_annealed else 0.1) if told.consult_to is None else told.consult_to
        return consult_probability(self.acted - self.guided_from, theta, told.consult_from, last)

    def report(self, stats: dict[str, Tensor]) -> None:
        """Log what happened since the last report, and show it."""
        numbers = self.check(stats)
        all_reduce_sum(self.score.sums)
        now, played = time.monotonic(), self.score.pop()
        sps = (self.global_step - self.logged_step) / (now - self.logged_at)
        self.logged_at, self.logged_step = now, self.global_step
        values = {"charts/SPS": sps}
        if played["episodes"]:
            values["charts/episodic_return"] = played["return"]
            values["charts/episodic_length"] = played["length"]
        if self.desk is not None:
            same, advised = all_reduce_sum(self.agreed).tolist()
            self.agreed.zero_()
            values |= self.desk.report(all_gather_sum) | all_gather_sum(self.rations.report())
            values["tutor/agreement"] = same / max(advised, 1)
            if self.asking.method == "chance":
                values["tutor/consult_probability"] = float(self.consult_probability())
            if self.guidance.is_annealed or self.guidance.needs_episode_review:
                values["tutor/strength"] = float(self.guidance.strength)
        values |= numbers | self.watch.shares()
        for who, counts in zip(("student", "tutor"), all_reduce_sum(self.actions).tolist(), strict=True):
            if self.log is not None and any(counts):
                self.log.count(self.global_step, f"policy/actions_{who}", counts)
        self.actions.zero_()
        if self.log is not None:
            self.log.add(self.global_step, values)
        self.progress.report(self.global_step, values)

    def evaluate(self) -> Result:
        """Play the student alone in games of its own, and log and show how it did. Only rank 0 does."""
        if self.log is None:
            return Result(math.nan, math.nan, 0)
        env = evaluation_env(self.config, self.config.eval_episodes, self.config.device)
        result = self.watch("eval", judge, self.agent, env)
        self.log.add(self.global_step, {f"eval/{name}": value for name, value in asdict(result).items()})
        if (picture := self.watch("draw", self.camera.shoot, self.agent)) is not None:
            self.log.show(self.global_step, "game", picture)
        self.progress.evaluation(self.global_step, result)
        return result

    def summary(self, result: Result) -> dict[str, object]:
        """Return what a run comes to."""
        seconds = time.monotonic() - self.began
        return {
            "global_step": self.global_step,
            "wall_seconds": round(seconds, 2),
            "sps": round(self.global_step / seconds, 1),
            "eval": asdict(result),
            "tutor": None
            if self.desk is None
            else self.desk.summary(all_gather_sum) | all_gather_sum(self.rations.summary()),
        }


if __name__ == "__main__":
    run_program(train, Config, __doc__, defaults=tuned_for, common=COMMON_FLAGS, examples=EXAMPLES)
